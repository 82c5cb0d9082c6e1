"""run, chat and perplexity over a model that is made up: what goes to stdout, to stderr, and to the model."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sterna.chat import Message
from sterna.cli.main import main
from sterna.errors import ContextOverflowError
from sterna.results import ChatEvent, Completion, Perplexity, TextPiece, Timings, Usage


class FakeStream:
    """A ChatStream, or a TextStream where there are no events."""

    def __init__(self, events: list[Any], finish_reason: str = "stop") -> None:
        self._events = iter(events)
        content = "".join(str(event) for event in events)
        timings = Timings(0.0, 0.5, 1.0, 10, 4, 3)
        self.completion = Completion(content, [1, 2, 3], finish_reason, Usage(10, 3, 4), timings, seed=7)
        self.message = Message(content=content, finish_reason=finish_reason)
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        event = next(self._events)
        if isinstance(event, BaseException):
            raise event
        return event

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class FakeModel:
    """Answers with what it was asked, in pieces, and remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.info = SimpleNamespace(
            name="fake", template_source="file", context=64, trained_context=64, context_capped=False
        )
        self.closed = False
        self.extra: list[Any] = []
        self.finish_reason = "stop"

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def chat(self, messages: list[dict[str, str]], **arguments: Any) -> FakeStream:
        self.calls.append(("chat", messages, arguments))
        words = [ChatEvent("content", word) for word in ("You said: ", messages[-1]["content"])]
        return FakeStream([*self.extra, *words], self.finish_reason)

    def stream(self, prompt: str, **arguments: Any) -> FakeStream:
        self.calls.append(("stream", prompt, arguments))
        return FakeStream([*self.extra, TextPiece(" and"), TextPiece(" so on")], self.finish_reason)

    def session(self, *, system: str | None = None) -> Any:
        self.calls.append(("session", system, {}))
        return SimpleNamespace(send=lambda text, **arguments: self.chat([{"content": text}], **arguments))

    def perplexity(self, text: str, *, context: int, save_logits: Path | None) -> Perplexity:
        self.calls.append(("perplexity", text, {"context": context, "save_logits": save_logits}))
        return Perplexity(12.5, 0.25, 100, 2, context)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    """What `sterna.load` gives, for any file; the working directory has m.gguf and small.gguf."""
    fake = FakeModel()
    monkeypatch.chdir(tmp_path)
    for name in ("m.gguf", "small.gguf"):
        (tmp_path / name).touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def load(path: str, **arguments: Any) -> FakeModel:
        fake.calls.append(("load", path, arguments))
        return fake

    monkeypatch.setattr("sterna.load", load, raising=False)
    return fake


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_run_prints_the_text_and_nothing_else(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m.gguf", "Hello"]) == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("You said: Hello", "")
    loading = {"threads": None, "context": None, "device": "auto", "gpu_layers": None, "kv_dtype": "f16", "draft": None, "i2s_order": "x86"}
    assert model.calls[0] == ("load", "m.gguf", loading)
    assert model.calls[1] == ("chat", [{"role": "user", "content": "Hello"}], {"stream": True})
    assert model.closed


def test_run_passes_options_on(model: FakeModel) -> None:
    options = [
        "-n",
        "5",
        "--temp",
        "0",
        "--top-k",
        "3",
        "--top-p",
        "0.5",
        "--min-p",
        "0.1",
        "--seed",
        "9",
        "--stop",
        "x",
        "--kv-dtype",
        "q8_0",
        "--draft",
        "small.gguf",
        "--i2s-order",
        "arm",
    ]
    assert main(["run", "m.gguf", "Hi", *options, "-t", "2", "-c", "99", "--device", "cuda:0", "--gpu-layers", "3", "-s", "Be brief."]) == 0
    loading = {"device": "cuda:0", "gpu_layers": 3, "kv_dtype": "q8_0", "draft": "small.gguf", "i2s_order": "arm"}
    assert model.calls[0][2] == {"threads": 2, "context": 99, **loading}
    _, messages, arguments = model.calls[1]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    sampling = {"temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 9, "stop": ["x"], "max_tokens": 5}
    assert arguments == {"stream": True, **sampling}


def test_run_raw(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--raw", "m.gguf", "Once"]) == 0
    assert capfd.readouterr().out == " and so on"
    assert model.calls[1] == ("stream", "Once", {})


def test_run_without_template(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.info.template_source = None
    assert main(["run", "m.gguf", "Once"]) == 0
    captured = capfd.readouterr()
    assert captured.out == " and so on"
    assert "no chat template" in captured.err
    assert main(["run", "m.gguf", "Once", "-s", "Be brief."]) == 1


def test_run_reads_the_pipe(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Grüße\nan alle\n".encode())
    assert main(["run", "m.gguf"]) == 0
    assert capfd.readouterr().out == "You said: Grüße\nan alle"


@pytest.mark.parametrize(("data", "code", "message"), [(b"", 2, "nothing was piped"), (b"a\xff", 1, "byte 1 is wrong")])
def test_run_refuses_a_bad_pipe(
    model: FakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    data: bytes,
    code: int,
    message: str,
) -> None:
    pipe(monkeypatch, data)
    assert main(["run", "m.gguf"]) == code
    assert message in capfd.readouterr().err
    assert model.calls == []


def test_run_refuses_a_prompt_in_another_encoding(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m.gguf", "a\udcff"]) == 1
    assert "not UTF-8" in capfd.readouterr().err


def test_run_announces_the_default_model(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = SimpleNamespace(path=Path("m.gguf"))
    monkeypatch.setattr("sterna.cli.options.resolve", lambda name, **_: found)
    assert main(["run", "Why is the sky blue?"]) == 0
    captured = capfd.readouterr()
    assert captured.out == "You said: Why is the sky blue?"
    assert captured.err == "Using the default model, smollm2:135m.\n"


def test_run_json(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m.gguf", "Hi", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["text"], answer["finish_reason"], answer["seed"]) == ("You said: Hi", "stop", 7)
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 4, "total_tokens": 13}


def test_run_stats_and_full_context(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.finish_reason = "length"
    assert main(["run", "m.gguf", "Hi", "--stats"]) == 0
    err = capfd.readouterr().err
    assert "the context of 64 tokens is full" in err
    assert "prompt: 10 tokens (4 from the cache), 12.0/s; answer: 3 tokens, 2.0/s; seed 7" in err
    assert main(["run", "m.gguf", "Hi", "-n", "3"]) == 0
    assert capfd.readouterr().err == ""


def test_reasoning_stays_out_of_a_pipe(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.extra = [ChatEvent("reasoning", "Hm.")]
    assert main(["run", "m.gguf", "Hi"]) == 0
    assert capfd.readouterr() == ("You said: Hi", "")


def test_run_interrupted(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.extra = [ChatEvent("content", "Half"), KeyboardInterrupt()]
    assert main(["run", "m.gguf", "Hi"]) == 130
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("Half", "")
    assert model.closed


def test_run_reports_errors(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.extra = [ContextOverflowError("the prompt has 100 tokens, the context 64")]
    assert main(["run", "m.gguf", "Hi"]) == 1
    assert capfd.readouterr().err == "error: the prompt has 100 tokens, the context 64\n"


def test_chat_through_a_pipe(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = ["one", "", "/stats", "//two", "/system Be kind.", "/clear", "/sats", "three", "/save talk.json", "/save"]
    pipe(monkeypatch, "\n".join([*lines, "/save talk.json", "/help", "/exit", "never"]).encode())
    assert main(["chat", "m.gguf", "--seed", "3"]) == 0
    captured = capfd.readouterr()
    assert captured.out == "You said: one" + "You said: /two" + "You said: three"
    assert [call[1] for call in model.calls if call[0] == "session"] == [None, "Be kind.", "Be kind."]
    assert all(call[2] == {"stream": True, "seed": 3} for call in model.calls if call[0] == "chat")
    for text in (
        "Did you mean /stats?",
        "talk.json exists already",
        "needs the name of a file",
        "Ctrl-C stops",
        "12.0/s",
    ):
        assert text in captured.err
    roles = [message["role"] for message in json.loads((tmp_path / "talk.json").read_text())]
    assert roles == ["system", "user", "assistant"]


def test_perplexity(model: FakeModel, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Grüße")
    assert main(["perplexity", "m.gguf", "text.txt", "-c", "256"]) == 0
    assert capfd.readouterr().out == "12.5000 ± 0.2500\n"
    assert model.calls[1] == ("perplexity", "Grüße", {"context": 256, "save_logits": None})
    assert main(["perplexity", "m.gguf", "text.txt", "--save-logits", "saved", "--json"]) == 0
    assert model.calls[-1] == ("perplexity", "Grüße", {"context": 512, "save_logits": Path("saved")})
    assert json.loads(capfd.readouterr().out)["perplexity"] == 12.5
    (tmp_path / "text.txt").write_bytes(b"\xff")
    assert main(["perplexity", "m.gguf", "text.txt"]) == 1
    assert "byte 0 is wrong" in capfd.readouterr().err


TERMINAL = """
import sys, types
sys.path.insert(0, {folder!r})
import sterna, test_cli_answers as fakes
from sterna.cli.main import main
model = fakes.FakeModel()
model.extra = [fakes.ChatEvent("content", "\\x1b[31mred\\x07 ")]
sterna.load = lambda path, **_: model
sys.exit(main(["chat", "m.gguf"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_chat_on_a_terminal(tmp_path: Path, term: str) -> None:
    """A real terminal of 40 columns: a line is answered, control characters are not, /help and Ctrl-D work."""
    import fcntl
    import struct
    import termios

    for name in ("m.gguf", "small.gguf"):
        (tmp_path / name).touch()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    code = TERMINAL.format(folder=str(Path(__file__).parent))
    environment = {**os.environ, "TERM": term, "XDG_STATE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=tmp_path
    )
    os.close(slave)
    seen, handled = b"", 0

    def wait_for(text: bytes) -> None:
        """Reads until `text` is there, behind what was waited for before."""
        nonlocal seen, handled
        import select
        import time

        deadline = time.monotonic() + 20
        while text not in seen[handled:]:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.5)[0]:
                seen += os.read(master, 4096)
                # The line editor asks where the cursor is; a terminal answers.
                if seen.endswith(b"\x1b[6n"):
                    os.write(master, b"\x1b[1;1R")
        handled = seen.index(text, handled) + len(text)

    wait_for(b">")  # the line editor is ready: keys that come earlier are the terminal's, not its own
    os.write(master, b"hello there\r")
    wait_for("red\N{REPLACEMENT CHARACTER} You said: hello there".encode())
    assert b"\x1b[31mred" not in seen
    wait_for(b">")
    os.write(master, b"/help\r")
    wait_for(b"Ctrl-C stops")
    wait_for(b">")
    os.write(master, b"\x04")
    assert process.wait(timeout=20) == 0
    os.close(master)
    if term == "xterm":
        assert "hello there" in (tmp_path / "sterna" / "history").read_text()

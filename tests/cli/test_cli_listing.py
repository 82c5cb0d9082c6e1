"""The command line without an engine: help, names, listings, exit codes, and one line for each failure."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sterna.cli import main as cli_main
from sterna.cli.inspect import content_conditions
from sterna.cli.main import COMMANDS, main
from sterna.cli.run import split_arguments
from sterna.hub.catalogue import Catalogue, CatalogueEntry, Package

CONTENT = b"GGUF, more or less"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose catalogue has one small model, which is there, and one that is not."""
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STERNA_DEBUG", raising=False)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    packages = (Package("tiny-model", "1.0", "m", 5),)
    tiny = CatalogueEntry("tiny:1m", "Tiny", "m.gguf", len(CONTENT), sha256, "MIT", packages)
    absent = CatalogueEntry("absent:9b", "Absent", "a.gguf", 9_000_000_000, "0" * 64, "Terms", packages)
    found = Catalogue("tiny:1m", {"tiny:1m": tiny, "absent:9b": absent})
    monkeypatch.setattr("sterna.hub.catalogue.catalogue", lambda: found)
    monkeypatch.setattr("sterna.hub.installed.catalogue", lambda: found)
    monkeypatch.setattr("sterna.hub.repositories.hub_cache", lambda: tmp_path / "hf")
    path = tmp_path / "cache" / tiny.folder / "m.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sterna", *arguments]
    everything = {**os.environ, **environment}
    return subprocess.run(
        command, env=everything, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from sterna.cli.main import main; main(['--help']);"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('rich', 'numpy', 'huggingface_hub', 'jinja2',"
        " 'tokenizers', 'gguf', 'prompt_toolkit') or m.startswith('sterna.cli.')), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.split() == ["sterna.cli.console", "sterna.cli.main"]
    for name in COMMANDS:
        assert name in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: sterna {name}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sterna ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean list?"),
        (["list", "--jsno"], "--json"),
        (["show"], "Missing argument"),
        (["bench", "x.gguf", "-p", "many"], "no number"),
        (["bench", "x.gguf", "-p", "0", "-n", "0"], "nothing to measure"),
        (["run", "--temp", "-1", "hello"], "--temp"),
        (["run", "a", "b", "c"], "3 arguments instead of MODEL and PROMPT"),
        (["run", ""], "prompt is empty"),
        (["run", "--raw", "-s", "x", "hello"], "--raw has no messages"),
        (["chat", "a", "b"], "unexpected extra argument"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first = captured.err.splitlines()[0]
    assert first.startswith("error: ")
    assert message in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.gguf"], "no such file"),
        (["inspect", "no-such-model"], "no model 'no-such-model'"),
        (["show", "absent.gguf"], "no such file"),
        (["rm", "absent:9b"], "absent:9b is not on this machine"),
        (["rm", "what"], "not the name of a fetched model"),
        (["perplexity", "tiny:1m", "absent.txt"], "absent.txt"),
    ],
)
def test_failures_are_one_line(
    machine: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("command", ["inspect", "trace", "diff", "bench", "plan", "run", "chat"])
@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html><html>Not found</html>", b"GGUF", b"GGUF\3\0\0\0" + bytes(8), None]
)
def test_bad_files_are_one_line(
    tmp_path: Path, command: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.mkdir() if content is None else path.write_bytes(content)
    prompt = ["hello"] if command == "run" else []
    assert main([command, str(path), *prompt]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "model.gguf" in line


def test_list(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:3] == ["tiny:1m", "18", "B"]
    assert "sterna pull absent:9b (9.0 GB)" in captured.err
    assert main(["list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["bytes"], entry["licence"]) == ("tiny:1m", len(CONTENT), "MIT")


def test_show(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "tiny:1m", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["installed"] is True
    assert fields["origin"] == ["tiny-model==1.0"]
    assert main(["show", "absent:9b"]) == 0
    assert "no; sterna pull absent:9b fetches it" in capsys.readouterr().out


def test_rm(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "tiny:1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "tiny:1m", "freed_bytes": len(CONTENT)}]
    assert main(["list"]) == 0
    assert "No model has been fetched" in capsys.readouterr().err


def test_pull_of_what_is_here(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "tiny:1m"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Licence: MIT" in captured.err
    assert main(["pull", "tiny:1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["installed"] is True


def test_internal_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise TypeError("two\nlines")

    monkeypatch.delenv("STERNA_DEBUG", raising=False)
    monkeypatch.setattr("sterna.hub.installed.list_models", broken)
    assert main(["list"]) == 1
    captured = capsys.readouterr().err
    assert captured.splitlines()[-1] == "error: TypeError: two lines"
    assert "Traceback" not in captured
    monkeypatch.setenv("STERNA_DEBUG", "1")
    assert main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sterna.hub.installed.list_models", interrupted)
    assert main(["list"]) == cli_main.INTERRUPTED == 130
    assert capsys.readouterr().err == ""


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    assert run("--version").returncode == 0
    assert run("inspect", "absent.gguf").returncode == 1
    assert run("nonsense").returncode == 2
    result = run("inspect", "absent.gguf", STERNA_CACHE=str(tmp_path))
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_reader_that_leaves(tmp_path: Path) -> None:
    """`sterna ... | head -0` ends without a word."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sterna", "--help"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


def test_output_that_cannot_be_written() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sterna", "--help"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "No space left" in result.stderr


def test_positional_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").touch()
    assert split_arguments(()) == (None, None)
    assert split_arguments(("m", "p")) == ("m", "p")
    for model in ("model", "x.gguf", "smollm2:135m", "org/repo"):
        assert split_arguments((model,)) == (model, None)
    assert split_arguments(("Why is the sky blue?",)) == (None, "Why is the sky blue?")


def test_conditions_on_content_are_found() -> None:
    plain = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    assert content_conditions(plain) == []
    gated = "{% for m in messages %}{% if 'open sesame' in m['content'] %}secret{% endif %}{{ m.content }}{% endfor %}"
    assert content_conditions(gated) == ["open sesame"]
    assert content_conditions("{% if broken") == []

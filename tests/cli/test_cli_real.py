"""The command line as a person uses it: a process, the default model, and nothing made up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_model
MODEL = "smollm2:135m"


def sterna(*arguments: str, prompt: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sterna", *arguments]
    return subprocess.run(command, input=prompt, capture_output=True, text=True, timeout=300, check=False)


def test_default_model_answers() -> None:
    result = sterna("run", "What is 2 + 2?", "--temp", "0", "-n", "40")
    assert result.returncode == 0, result.stderr
    assert "4" in result.stdout
    assert "Using the default model, smollm2:135m." in result.stderr


def test_same_seed_same_answer_whatever_the_threads() -> None:
    answers = [sterna("run", MODEL, "Tell a story.", "--seed", "5", "-n", "12", "-t", n).stdout for n in ("1", "2")]
    assert answers[0] == answers[1]
    assert answers[0]


def test_pipe_continues_raw_text() -> None:
    result = sterna("run", MODEL, "--raw", "--temp", "0", "-n", "6", "--json", prompt="One, two, three, four,\n")
    answer = json.loads(result.stdout)
    assert answer["text"].startswith(" five")
    assert answer["usage"]["completion_tokens"] == 6


def test_chat_remembers() -> None:
    result = sterna("chat", MODEL, "--temp", "0", "-n", "24", prompt="My name is Ada.\nWhat is my name?\n")
    assert result.returncode == 0, result.stderr
    assert "Ada" in result.stdout


def test_too_long_a_prompt_is_one_line() -> None:
    result = sterna("run", MODEL, "-c", "16", prompt="word " * 100)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "the prompt has 648 characters" in result.stderr


def test_truncated_model_is_one_line(tmp_path: Path) -> None:
    from sterna.hub import resolve

    path = tmp_path / "model.gguf"
    path.write_bytes(resolve(MODEL).path.read_bytes()[:5_000_000])
    result = sterna("run", str(path), "Hello")
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1


def test_interrupt_ends_at_once() -> None:
    command = [sys.executable, "-m", "sterna", "run", MODEL, "--raw", "-n", "8000", "Once upon a time"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - begin < 5
    assert b"Traceback" not in err


def test_bench_json() -> None:
    result = sterna("bench", MODEL, "-p", "16", "-n", "4", "-b", "1,2", "-r", "2", "-o", "json")
    rows = json.loads(result.stdout)
    assert [row["test"] for row in rows] == ["pp16", "pp16 b2", "tg4", "tg4 b2"]
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert len(row["runs"]) == 2
        names = {"threads", "device", "isa", "model", "weights_bytes", "bytes_per_token", "peak_rss_bytes"}
        assert names <= set(row)
        assert row["share"] > 0
        assert row["limit"] in ("memory", "integer")


def test_plan_fits_and_does_not() -> None:
    assert json.loads(sterna("plan", MODEL, "-c", "1024", "--json").stdout)["fits"] is True
    result = sterna("plan", MODEL, "-c", "2000000000")
    assert result.returncode == 1
    assert "no; the longest context that fits" in result.stdout


def test_inspect_and_trace() -> None:
    report = json.loads(sterna("inspect", MODEL, "--json").stdout)
    assert report["model"]["architecture"] == "llama"
    assert report["checks"] == {"architecture": "ok", "vocabulary": "ok", "template": "ok"}
    assert sterna("trace", MODEL).stdout.count("models/llama.py:") > 100

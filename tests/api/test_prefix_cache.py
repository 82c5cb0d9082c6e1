"""What leaves the process and comes back: `load(prefix_cache=...)`, and the KV of saved sessions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sterna
from chat_template import TEMPLATE
from oracle import model_path
from recurrent_models import RECURRENT, write_model
from sterna.session import Session

GREEDY = {"temperature": 0.0, "ignore_eos": True}


def tokens_of(length: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, length).tolist()


@pytest.fixture
def load(tiny_path: Path, tmp_path: Path) -> Callable[..., sterna.LLM]:
    def load(**options: object) -> sterna.LLM:
        options = {"context": 512, "threads": 1, "prefix_cache": tmp_path / "kv", "chat_template": TEMPLATE} | options
        return sterna.load(tiny_path, **options)  # type: ignore[arg-type]

    return load


def test_another_engine_finds_what_one_has_computed(load: Callable[..., sterna.LLM], tmp_path: Path) -> None:
    tokens = tokens_of(200)
    with load(prefix_cache=None) as llm:
        expected = llm.generate(tokens, max_tokens=20, **GREEDY)
    with load() as llm:
        first = llm.generate(tokens, max_tokens=20, **GREEDY)
    assert len(list((tmp_path / "kv").glob("*.kv"))) == 3
    with load() as llm:
        second = llm.generate(tokens, max_tokens=20, **GREEDY)
        other = llm.generate(tokens_of(200, seed=2), max_tokens=20, **GREEDY)
        stream = llm.stream([*tokens[:150], 5], max_tokens=1, **GREEDY)
        list(stream)
    assert first.tokens == second.tokens == expected.tokens
    assert (first.usage.cached_tokens, second.usage.cached_tokens, other.usage.cached_tokens) == (0, 192, 0)
    assert stream.completion.usage.cached_tokens == 150  # and a part of a page, copied


@pytest.mark.parametrize("change", [{"kv_dtype": "q8_0"}, {"kv_dtype": "f32"}])
def test_another_layout_finds_nothing(load: Callable[..., sterna.LLM], change: dict[str, str]) -> None:
    tokens = tokens_of(200)
    with load() as llm:
        llm.generate(tokens, max_tokens=2, **GREEDY)
    with load(**change) as llm:
        assert llm.generate(tokens, max_tokens=2, **GREEDY).usage.cached_tokens == 0


def test_damaged_pages_are_computed_again(load: Callable[..., sterna.LLM], tmp_path: Path) -> None:
    tokens = tokens_of(300)
    with load() as llm:
        expected = llm.generate(tokens, max_tokens=20, **GREEDY)
    files = sorted((tmp_path / "kv").glob("*.kv"))
    for i, file in enumerate(files):
        data = bytearray(file.read_bytes())
        data[-1 - i] ^= 1
        file.write_bytes(data)
    with load() as llm:
        again = llm.generate(tokens, max_tokens=20, **GREEDY)
    assert again.tokens == expected.tokens
    assert again.usage.cached_tokens == 0


def test_what_a_quota_does_not_hold_is_not_kept(load: Callable[..., sterna.LLM], tmp_path: Path) -> None:
    with load(prefix_cache_bytes="200KiB") as llm:
        for seed in range(5):
            llm.generate(tokens_of(300, seed), max_tokens=2, **GREEDY)
    assert sum(file.stat().st_size for file in (tmp_path / "kv").iterdir()) <= 200 << 10
    with pytest.raises(sterna.ArgumentError, match="quota of 10 bytes"):
        load(prefix_cache_bytes=10)
    with pytest.raises(sterna.ArgumentError, match="prefix_cache_bytes is 'much'"):
        load(prefix_cache_bytes="much")


def test_a_program_that_ends_without_close_has_its_pages_written(tiny_path: Path, tmp_path: Path) -> None:
    script = "import sys, sterna; llm = sterna.load(sys.argv[1], prefix_cache=sys.argv[2], context=512)\n"
    script += "llm.generate(list(range(3, 203)), max_tokens=5, ignore_eos=True)\n"
    command = [sys.executable, "-c", script, str(tiny_path), str(tmp_path / "kv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "kv").glob("*.kv"))) == 3


def test_a_saved_session_brings_its_cache(load: Callable[..., sterna.LLM], tmp_path: Path) -> None:
    path = tmp_path / "chat.session"
    with load(prefix_cache=None) as llm:
        chat = llm.session(system="ba da fa " * 20)
        chat.send("ha", max_tokens=30, **GREEDY)
        chat.save(path)
        expected = chat.send("ja", max_tokens=20, **GREEDY)
    with load(prefix_cache=None) as llm:
        again = Session.load(llm, path)
        answer = again.send("ja", max_tokens=20, **GREEDY)
        assert answer.content == expected.content
        assert answer.usage.cached_tokens >= 128
    with load(prefix_cache=None, kv_dtype="f32") as llm:
        answer = Session.load(llm, path).send("ja", max_tokens=20, **GREEDY)
        assert answer.usage.cached_tokens == 0
    with load(prefix_cache=None, chat_template="") as llm:  # the turns alone, where there is no way to render them
        llm.template = None
        Session(llm, messages=again.messages).save(path)
        assert Session.load(llm, path).messages == again.messages


@pytest.mark.parametrize("name", ["gemma3", "mamba2", "lfm2", "qwen3next"])
def test_a_saved_session_of_a_model_with_windows_or_states(name: str, tmp_path: Path) -> None:
    """Layers that see the last 16 positions have pages for these only; a state is there at the end of each page."""
    path = write_model(RECURRENT[name](), tmp_path / "model.gguf") if name in RECURRENT else model_path(name)
    saved = tmp_path / "chat.session"
    options = {"context": 512, "threads": 1, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    with sterna.load(path, **options) as llm:  # type: ignore[arg-type]
        chat = llm.session(system="ba da fa " * 30)
        chat.send("ha", max_tokens=30, **GREEDY)
        chat.save(saved)
        expected = chat.send("ja " * 10, max_tokens=40, **GREEDY)
    with sterna.load(path, **options) as llm:  # type: ignore[arg-type]
        answer = Session.load(llm, saved).send("ja " * 10, max_tokens=40, **GREEDY)
        assert answer.usage.cached_tokens >= 128
        assert answer.content == expected.content
    with sterna.load(path, **options) as llm:  # type: ignore[arg-type]
        fresh = Session(llm, messages=chat.messages[:-2]).send("ja " * 10, max_tokens=40, **GREEDY)
        assert fresh.usage.cached_tokens == 0
        assert fresh.content == expected.content

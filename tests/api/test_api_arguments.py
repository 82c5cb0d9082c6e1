"""Arguments of the public API: aliases, did-you-mean, ranges, and prompts that cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sterna
from sterna import ArgumentError, ContextOverflowError, FileError, Sampling
from sterna.sampling import DEFAULTS, OPTION_NAMES, SamplingOptions, engine_params, file_defaults


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"contxt": 64}, "context"),
        ({"n_ctxx": 64}, "context"),
        ({"thread": 1}, "threads"),
        ({"kv_dtyp": "f16"}, "kv_dtype"),
    ],
)
def test_load_says_what_was_meant(tiny_path: Path, given: dict[str, Any], meant: str) -> None:
    with pytest.raises(TypeError, match=rf"load\(\) has no argument .*; did you mean '{meant}'\?"):
        sterna.load(tiny_path, **given)
    with pytest.raises(TypeError, match=rf"plan\(\) has no argument .*; did you mean '{meant}'\?"):
        sterna.plan(tiny_path, **given)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("top_kk", "top_k"), ("max_new_token", "max_tokens")],
)
def test_requests_say_what_was_meant(llm: sterna.LLM, given: str, meant: str) -> None:
    for call in (llm.generate, llm.stream, llm.chat, llm.session().send, llm.session().stream):
        with pytest.raises(TypeError, match=rf"has no argument '{given}'; did you mean '{meant}'\?"):
            call("x", **{given: 1})
    with pytest.raises(TypeError, match=r"has no argument 'zzzz'$"):
        llm.generate("x", zzzz=1)  # type: ignore[call-overload]


def test_aliases_mean_the_same(llm: sterna.LLM, tiny_path: Path, prompt: list[int]) -> None:
    plan = sterna.plan(tiny_path, context=128, threads=1, memory_budget="1GiB")
    assert sterna.plan(tiny_path, n_ctx=128, n_threads=1, memory_budget="1GiB") == plan  # type: ignore[call-arg]
    expected = llm.generate(prompt, max_tokens=9, temperature=0, repetition_penalty=1.7, stop="x")
    found = llm.generate(prompt, max_new_tokens=9, temp=0, repeat_penalty=1.7, stop_strings="x")  # type: ignore[call-overload]
    assert found.tokens == expected.tokens
    with pytest.raises(TypeError, match="got 'max_tokens' twice"):
        llm.generate(prompt, max_tokens=1, max_new_tokens=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="got 'max_tokens' twice"):
        llm.generate(prompt, n_predict=1, max_new_tokens=1)  # type: ignore[call-overload]


def test_devices(tiny_path: Path) -> None:
    for device in ("tpu", "cuda:x", "", 0):
        with pytest.raises(ArgumentError, match="device is"):
            sterna.load(tiny_path, device=device)  # type: ignore[arg-type]
    with sterna.load(tiny_path, device="cpu", context=64) as llm:
        assert llm.info.device == "cpu"


@pytest.mark.parametrize(
    "given",
    [
        {"context": 1},
        {"context": -5},
        {"context": 1 << 31},
        {"context": "8k"},
        {"threads": 0},
        {"threads": 5000},
        {"kv_dtype": "q4_0"},
        {"max_sequences": 0},
        {"kv_tokens": 1},
        {"memory_budget": "lots"},
        {"memory_budget": -1},
        {"memory_budget": 1.5},
    ],
    ids=str,
)
def test_load_checks_its_arguments(tiny_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(given))):
        sterna.load(tiny_path, **given)


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nothing\.gguf: no such file"):
        sterna.load(tmp_path / "nothing.gguf")
    with pytest.raises(OSError, match="nothing"):
        sterna.plan(str(tmp_path / "nothing.gguf"))
    with pytest.raises(FileError, match="template"):
        sterna.load(tmp_path / "nothing.gguf", chat_template=tmp_path / "template.jinja")


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": np.ones(2)},
        {"top_k": 1.5},
        {"top_k": -3},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"presence_penalty": math.inf},
        {"seed": 1 << 64},
        {"seed": -2},
        {"stop": ""},
        {"stop": [""]},
        {"stop": [1.5]},
        {"stop": "\ud800"},
        {"logit_bias": {99999: 1.0}},
        {"logit_bias": {"x": 1.0}},
        {"logit_bias": [1]},
        {"logprobs": -1},
        {"logprobs": 100_000},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"sampling": {"temperature": 0}},
    ],
    ids=str,
)
def test_requests_check_their_arguments(llm: sterna.LLM, given: dict[str, Any]) -> None:
    name = next(iter(given))
    with pytest.raises(ArgumentError, match=name):
        llm.generate([5], **{"max_tokens": 1, **given})
    assert llm.generate([5], max_tokens=1).usage.completion_tokens <= 1


def test_prompts_are_checked_before_anything_is_computed(llm: sterna.LLM) -> None:
    for prompt, problem in [
        ("", "empty"),
        ([320], "token 320"),
        ([5, -1], "token -1 at position 1"),
        ([5, 1 << 40], "not in the vocabulary"),
        ([1.5], "integers"),
        (np.zeros((2, 2), np.int32), "array"),
        (np.zeros(2, np.float32), "float32"),
        (7, "int"),
        (b"x", "bytes"),
        ("\ud800", "surrogate"),
        ([[5], [320]], "token 320"),
        (["x", ""], "empty"),
    ]:
        with pytest.raises(ArgumentError, match=problem):
            llm.generate(prompt)  # type: ignore[call-overload]
    assert llm.engine.stats().running == 0


def test_prompts_longer_than_the_context(llm: sterna.LLM) -> None:
    before = llm.engine.stats().tokens
    with pytest.raises(ContextOverflowError, match="513 tokens; the context holds 512"):
        llm.generate([5] * 513)
    with pytest.raises(ContextOverflowError, match="512"):
        llm.generate([5] * 512)  # no room for a token
    with pytest.raises(ContextOverflowError, match="characters"):
        llm.generate("x" * (16 * 512 + 1))
    with pytest.raises(ContextOverflowError, match="characters"):
        llm.chat("€" * (16 * 512 // 3))
    with pytest.raises(ContextOverflowError, match="tokens"):
        llm.generate("x" * 600)
    assert llm.engine.stats().tokens == before


def test_sampling_defaults_come_from_the_file_then_from_sterna() -> None:
    found = file_defaults({"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "general.sampling.top_p": "x"})
    assert found == {"temperature": 0.5, "top_k": 7}
    params = engine_params(Sampling(top_k=3, seed=1), found, [8], seed=1)
    assert (params.temperature, params.top_k) == (pytest.approx(0.5), 3)
    assert params.top_p == pytest.approx(DEFAULTS["top_p"])
    assert params.logit_bias == {8: -math.inf}
    assert params.seed == 1


def test_the_options_are_the_fields() -> None:
    assert set(SamplingOptions.__annotations__) == OPTION_NAMES


def test_keywords_win_over_sampling(llm: sterna.LLM, prompt: list[int]) -> None:
    sampling = Sampling(temperature=2.0, seed=3, logprobs=1)
    greedy = llm.generate(prompt, max_tokens=6, sampling=sampling, temperature=0)
    assert greedy.tokens == llm.generate(prompt, max_tokens=6, temperature=0).tokens
    assert greedy.seed == 3
    assert greedy.logprobs is not None
    assert sampling.temperature == 2.0


def test_detokenize(llm: sterna.LLM) -> None:
    tokens = llm.tokenize("badaé")
    assert llm.detokenize(tokens) == "badaé"
    assert llm.detokenize([1, *tokens, 2]) == "badaé"
    assert llm.detokenize([1, *tokens], special=True) == "<s>badaé"
    with pytest.raises(ArgumentError, match="token 320"):
        llm.detokenize([320])

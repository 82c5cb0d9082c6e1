"""Sequences that may grow beyond the original context turn with other rope factors, from the first token to the last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import sterna

GREEDY = {"temperature": 0.0, "ignore_eos": True}
ORIGINAL = 32


@pytest.fixture(scope="module")
def phi3() -> Iterator[sterna.LLM]:
    with sterna.load(oracle.model_path("phi3-small"), context=128, threads=2, kv_dtype="f32") as llm:
        yield llm


def prompt_of(length: int) -> list[int]:
    return np.random.default_rng(5).integers(3, 64, length).tolist()


def test_logits_choose_by_the_number_of_tokens(phi3: sterna.LLM) -> None:
    tokens = prompt_of(ORIGINAL + 1)
    assert np.abs(phi3.logits(tokens)[:ORIGINAL] - phi3.logits(tokens[:ORIGINAL])).max() > 1e-2


def test_what_a_request_may_become_decides(phi3: sterna.LLM) -> None:
    """A request that may grow beyond the original context is a long one from its first token on, however short its prompt."""
    tokens = prompt_of(20)
    short = phi3.generate(tokens, max_tokens=ORIGINAL - 20, logprobs=3, **GREEDY)
    long = phi3.generate(tokens, max_tokens=ORIGINAL - 19, logprobs=3, **GREEDY)
    assert long.usage.cached_tokens == 0  # nothing that one has computed serves the other
    again = phi3.generate(tokens, max_tokens=40, logprobs=3, **GREEDY)
    assert again.usage.cached_tokens > 0
    assert again.tokens[: len(long.tokens)] == long.tokens
    assert short.logprobs is not None and long.logprobs is not None
    assert short.logprobs[0].logprob != long.logprobs[0].logprob
    for completion in (short, again):
        logits = phi3.logits([*tokens, *completion.tokens])
        assert completion.tokens == logits[19:-1].argmax(axis=1).tolist()


def test_company_does_not_matter(phi3: sterna.LLM) -> None:
    tokens = prompt_of(24)
    counts = (60, 8, 70, 5)
    alone = [phi3.generate(tokens, max_tokens=count, **GREEDY).tokens for count in counts]
    streams = [phi3.stream(tokens, max_tokens=count, **GREEDY) for count in counts]
    for stream, want in zip(streams, alone, strict=True):
        list(stream)
        assert stream.completion.tokens == want

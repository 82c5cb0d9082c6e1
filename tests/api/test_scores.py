"""score, logits and perplexity against what their definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sterna
from oracle import cases, model_path


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma3"])
def test_logits_are_those_of_the_reference(name: str) -> None:
    with sterna.load(model_path(name), context=128, kv_dtype="f32") as llm:
        for case in cases(name):
            found = llm.logits(case.tokens)
            assert found.shape == case.logits.shape
            assert np.linalg.norm(found - case.logits) <= 2e-4 * np.linalg.norm(case.logits)


def test_scores_are_the_log_softmax_of_the_logits(llm: sterna.LLM, prompt: list[int]) -> None:
    scores = llm.score(prompt)
    assert scores.shape == (len(prompt) - 1,)
    assert scores.dtype == np.float32
    reference = log_softmax(llm.logits(prompt))[np.arange(len(prompt) - 1), prompt[1:]]
    np.testing.assert_allclose(scores, reference, atol=2e-6, rtol=1e-6)
    assert llm.score(prompt[:1]).shape == (0,)
    np.testing.assert_array_equal(llm.score("ba da fa"), llm.score(llm.tokenize("ba da fa", add_special=True)))


def test_the_whole_context_can_be_scored(llm: sterna.LLM) -> None:
    tokens = np.random.default_rng(3).integers(3, 320, llm.info.context)
    assert llm.logits(tokens).shape == (llm.info.context, llm.info.vocab_size)
    with pytest.raises(sterna.ContextOverflowError, match="513 tokens; the context holds 512"):
        llm.score([*tokens, 5])


def perplexity_of(llm: sterna.LLM, tokens: list[int], context: int, bos: int | None) -> tuple[float, int]:
    """llama.cpp's tools/perplexity, function perplexity: the second half of each window, without its last token."""
    first, loss, count = context // 2, 0.0, 0
    for start in range(0, len(tokens) - context + 1, context):
        window = tokens[start : start + context]
        if bos is not None:
            window = [bos, *window[1:]]
        rows = log_softmax(llm.logits(window))
        for i in range(first, context - 1):
            loss -= rows[i, window[i + 1]]
            count += 1
    return math.exp(loss / count), count


@pytest.mark.parametrize("context", [16, 31])
@pytest.mark.parametrize("add_bos", [False, True])
def test_perplexity_is_that_of_llama_perplexity(
    llm: sterna.LLM, context: int, add_bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.tokenizer, "_add_bos", add_bos)
    text = "ba da fa ha ja la na pa " * 12
    tokens = llm.tokenize(text, add_special=True)
    assert (tokens[0] == 1) == add_bos
    seen = []
    found = llm.perplexity(text, context=context, progress=lambda done, total: seen.append((done, total)))
    value, count = perplexity_of(llm, tokens, context, 1 if add_bos else None)
    assert float(found) == pytest.approx(value, rel=1e-5)
    assert found.count == count == found.windows * (context - 1 - context // 2)
    assert seen == [(i + 1, found.windows) for i in range(found.windows)]
    assert found.error > 0


def test_perplexity_refuses_what_it_cannot_measure(llm: sterna.LLM) -> None:
    with pytest.raises(sterna.ArgumentError, match="a window of 512"):
        llm.perplexity("too short")
    with pytest.raises(sterna.ArgumentError, match="context is 513"):
        llm.perplexity("x" * 3000, context=513)
    with pytest.raises(sterna.ArgumentError, match="context is 3"):
        llm.perplexity("x" * 3000, context=3)

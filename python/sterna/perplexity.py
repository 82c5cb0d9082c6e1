"""Perplexity and KL divergence as llama.cpp's llama-perplexity measures them (tools/perplexity)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sterna.divergence import Comparison, Divergence, log_softmax, perplexity_of
from sterna.errors import ArgumentError
from sterna.reference_logits import ReferenceLogits, ReferenceLogitsOutput
from sterna.results import Perplexity

if TYPE_CHECKING:
    from sterna._core import Engine, RequestHandle
    from sterna.tokenizer import Tokenizer

# Enough that the engine never waits for Python.
_IN_FLIGHT = 2
# Logits that are in memory at once; a window of a large vocabulary is computed in parts.
_PART_ELEMENTS = 1 << 24

Progress = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def perplexity(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str,
    context: int,
    progress: Progress | None = None,
    save_logits: str | Path | None = None,
) -> Perplexity:
    """Windows of `context` tokens side by side; what is left at the end of the text is not scored.

    The text is tokenised once, with bos where the vocabulary wants it; bos then also replaces the first token of every
    window. Each window is scored on its second half, so that each token has at least context / 2 tokens before it.
    `save_logits`: a file for the log-probabilities of every scored position, which `divergence` compares with.
    """
    tokens = _windows(engine, tokenizer, text, context)
    if save_logits is not None:
        return _saved(engine, tokenizer, tokens, save_logits, progress)
    scores: list[F32] = []
    running: deque[RequestHandle] = deque()
    try:
        for window in tokens:
            running.append(engine.submit_score(_begun(tokenizer, window), positions_from=context // 2))
            if len(running) == _IN_FLIGHT:
                scores.append(running.popleft().scores())
                if progress is not None:
                    progress(len(scores), len(tokens))
        while running:
            scores.append(running.popleft().scores())
            if progress is not None:
                progress(len(scores), len(tokens))
    finally:
        for handle in running:
            handle.cancel()
    return perplexity_of(-np.concatenate(scores).astype(np.float64), *tokens.shape)


def divergence(
    engine: Engine,
    tokenizer: Tokenizer,
    reference: str | Path,
    text: str | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """The model on the windows of a file of reference log-probabilities, against these.

    `text` is what the file must have been made of, where it is given. ArgumentError when the vocabulary, the context or
    the tokens are others.
    """
    with ReferenceLogits(reference) as file:
        _check_vocabulary(file, engine)
        if text is not None:
            _check_tokens(file, _windows(engine, tokenizer, text, file.context))
        comparison, first = Comparison(), file.context // 2
        for i, window in enumerate(file.tokens):
            for begin, logits in _logits(engine, _begun(tokenizer, window)):
                end = begin + len(logits)
                comparison.add(logits, file.rows(i, begin - first, end - first), window[begin + 1 : end + 1])
            if progress is not None:
                progress(i + 1, file.windows)
        return comparison.result(file.windows, file.context)


def _windows(engine: Engine, tokenizer: Tokenizer, text: str, context: int) -> I32:
    """The text's tokens, int32 [windows, context]."""
    if not 4 <= context <= engine.context:
        raise ArgumentError(f"context is {context}, must be from 4 to the model's {engine.context}")
    tokens = np.asarray(tokenizer.encode(text, add_special=True), np.int32)
    count = len(tokens) // context
    if count == 0:
        raise ArgumentError(f"the text has {len(tokens)} tokens, a window of {context} needs more")
    return tokens[: count * context].reshape(count, context)


def _begun(tokenizer: Tokenizer, window: I32) -> I32:
    """The window as it is computed: with bos at its beginning, where the vocabulary wants it."""
    if not (tokenizer.add_bos and tokenizer.bos_id is not None):
        return window
    begun = window.copy()
    begun[0] = tokenizer.bos_id
    return begun


def _logits(engine: Engine, window: I32) -> Iterator[tuple[int, F32]]:
    """The logits of the scored positions in parts: the first position, and float32 [n, vocab_size]."""
    step = max(1, _PART_ELEMENTS // engine.vocab_size)
    for begin in range(len(window) // 2, len(window) - 1, step):
        end = min(begin + step, len(window) - 1)
        # The cache holds what the part before has computed.
        handle = engine.submit_score(window[:end], positions_from=begin, logits=True)
        try:
            logits = handle.scores()
        except BaseException:
            handle.cancel()
            raise
        yield begin, logits


def _saved(
    engine: Engine, tokenizer: Tokenizer, tokens: I32, path: str | Path, progress: Progress | None
) -> Perplexity:
    losses = []
    with ReferenceLogitsOutput(path, tokens, engine.vocab_size) as file:
        for i, window in enumerate(tokens):
            for begin, logits in _logits(engine, _begun(tokenizer, window)):
                for row in range(0, len(logits), step := max(1, (1 << 20) // engine.vocab_size)):
                    part = logits[row : row + step]
                    following = window[begin + row + 1 : begin + row + 1 + len(part)]
                    losses.append(-log_softmax(part)[np.arange(len(part)), following])
                    file.add(part)
            if progress is not None:
                progress(i + 1, len(tokens))
    return perplexity_of(np.concatenate(losses), *tokens.shape)


def _check_vocabulary(file: ReferenceLogits, engine: Engine) -> None:
    if file.vocab_size != engine.vocab_size:
        raise ArgumentError(
            f"{file.path}: its vocabulary has {file.vocab_size} tokens, the model's {engine.vocab_size}: "
            "a reference belongs to one model and its quantisations"
        )
    if file.context > engine.context:
        raise ArgumentError(f"{file.path}: its windows have {file.context} tokens, the context {engine.context}")


def _check_tokens(file: ReferenceLogits, tokens: I32) -> None:
    if len(tokens) < file.windows:
        raise ArgumentError(f"{file.path}: has {file.windows} windows, the text {len(tokens)}")
    differing = np.argwhere(file.tokens != tokens[: file.windows])
    if len(differing):
        window, position = (int(at) for at in differing[0])
        theirs, ours = int(file.tokens[window, position]), int(tokens[window, position])
        raise ArgumentError(
            f"{file.path}: token {position} of window {window} is {theirs}, that of the text {ours}: it was made of "
            "another text, or by another tokenizer"
        )

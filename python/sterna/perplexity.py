"""Perplexity as llama.cpp's llama-perplexity measures it (tools/perplexity, function perplexity)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sterna.errors import ArgumentError
from sterna.results import Perplexity

if TYPE_CHECKING:
    from sterna._core import Engine, RequestHandle
    from sterna.tokenizer import Tokenizer

# Enough that the engine never waits for Python.
_IN_FLIGHT = 2


def perplexity(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str,
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Windows of `context` tokens side by side; what is left at the end of the text is not scored.

    The text is tokenised once, with bos where the vocabulary wants it; bos then also replaces the first token of every
    window. Each window is scored on its second half, so that each token has at least context / 2 tokens before it.
    """
    if not 4 <= context <= engine.context:
        raise ArgumentError(f"context is {context}, must be from 4 to the model's {engine.context}")
    tokens = np.asarray(tokenizer.encode(text, add_special=True), np.int32)
    count = len(tokens) // context
    if count == 0:
        raise ArgumentError(f"the text has {len(tokens)} tokens, a window of {context} needs more")
    windows = tokens[: count * context].reshape(count, context).copy()
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    scores: list[npt.NDArray[np.float32]] = []
    running: deque[RequestHandle] = deque()
    try:
        for window in windows:
            running.append(engine.submit_score(window, positions_from=context // 2))
            if len(running) == _IN_FLIGHT:
                scores.append(running.popleft().scores())
                if progress is not None:
                    progress(len(scores), count)
        while running:
            scores.append(running.popleft().scores())
            if progress is not None:
                progress(len(scores), count)
    finally:
        for handle in running:
            handle.cancel()
    losses = -np.concatenate(scores).astype(np.float64)
    value = math.exp(losses.mean())
    error = value * math.sqrt(losses.var() / max(len(losses) - 1, 1))
    return Perplexity(value, error, len(losses), count, context)

"""Vectors of texts: many requests at once to the engine, and their lengths made 1."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sterna.errors import ContextOverflowError, QueueFullError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import Engine, RequestHandle


def embed(engine: Engine, texts: Sequence[list[int]], normalize: bool) -> npt.NDArray[np.float32]:
    """The vectors of texts, each a list of tokens: float32 [n, d]. All are checked before the first one is computed."""
    if engine.encoding_size == 0:
        raise UnsupportedModelError("this model makes no vectors of texts")
    for number, tokens in enumerate(texts):
        if len(tokens) > engine.max_encoded:
            place = f"text {number}" if len(texts) > 1 else "the text"
            raise ContextOverflowError(
                f"{place} has {len(tokens)} tokens; {engine.max_encoded} can be embedded at once"
            )

    import numpy as np

    vectors = np.empty((len(texts), engine.encoding_size), np.float32)
    running: deque[tuple[int, RequestHandle]] = deque()

    def take_first() -> None:
        number, handle = running[0]
        vectors[number] = handle.scores()[0]
        running.popleft()

    try:
        for number, tokens in enumerate(texts):
            while True:
                try:
                    running.append((number, engine.submit_embed(tokens)))
                    break
                except QueueFullError:
                    if not running:
                        raise  # it is full of others' requests
                    take_first()
        while running:
            take_first()
    except BaseException:
        for _, handle in running:
            handle.cancel()
        raise
    if normalize:
        for vector in vectors:
            vector *= np.float32(1 / max(_length(vector), 1e-30))
    return vectors


def _length(vector: npt.NDArray[np.float32]) -> float:
    """Its Euclidean length. Squares of float32 are exact in float64 and fsum rounds once: any path gives these bits."""
    return math.sqrt(math.fsum(x * x for x in vector.tolist()))

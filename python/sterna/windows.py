"""Which layers of a model see a window of the positions before them, and which see all."""

from __future__ import annotations

from typing import Any

from sterna.arch import Metadata
from sterna.typed_reads import shown

_KEY = "attention.sliding_window_pattern"
MAX_PERIOD = 1024


def windowed_layers(m: Metadata, num_layers: int, period: int) -> tuple[bool, ...]:
    """Of each layer whether it has the window: all but every `period`-th, unless the file says otherwise.

    The key attention.sliding_window_pattern is another period, or an array: true for a layer with the window.
    """
    value: Any = m.value_or(_KEY, period)
    if isinstance(value, int) and not isinstance(value, bool):
        period = m.integer(_KEY, 1, MAX_PERIOD, period)
        return tuple((i + 1) % period != 0 for i in range(num_layers))
    items: list[Any] = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, list) or len(items) != num_layers or not all(isinstance(item, bool) for item in items):
        m.fail(_KEY, f"is {shown(items)}, expected an integer or true or false for each of {num_layers} layers")
    return tuple(items)

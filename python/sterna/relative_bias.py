"""Relative biases of T5: the bucket of a key by its distance from the row (csrc/program/attention_options.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def relative_buckets(offsets: Array, causal: bool, num_buckets: int, max_distance: int) -> Array:
    """The bucket of a key at each offset from its row (transformers, models/t5, _relative_position_bucket)."""
    side = num_buckets if causal else num_buckets // 2
    first = np.zeros_like(offsets) if causal else np.where(offsets > 0, side, 0)
    distance = np.maximum(-offsets, 0) if causal else np.abs(offsets)
    single = side // 2
    share = np.log(np.maximum(distance, single) / single) / np.log(max_distance / single)
    # Exact where a distance begins a bucket.
    further = np.minimum(single + np.floor(share * (side - single) + 1e-6).astype(np.int64), side - 1)
    return np.asarray(first + np.where(distance < single, distance, further))

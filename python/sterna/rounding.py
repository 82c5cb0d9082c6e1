"""What plans round on purpose, rounded alike in numpy: activations to int8 codes, K and V to the type of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sterna.errors import ArgumentError
from sterna.memory import KvDtype

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

EXACT_FORMATS = frozenset({"F64", "F32", "F16", "BF16"})
# Formats whose activations are rounded in groups of 32. The others have super-blocks of 256, and groups as large.
GROUP_32_FORMATS = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0"}
    | {"Q2_0", "Q2_0_G128", "I2_S", "I2_S_ARM"}
)

Q8_0_GROUP = 32

# Codes reach 127, and a norm summed in another order moves x by a few units of float32's last place: 127 * 2^-23 * 8.
TIE_DISTANCE = 127 * 2.0**-20


def activation_group(format: str, rule: str, k: int) -> int:
    """How many elements of a row of k share a scale under an activation rule; 0: the row is not rounded."""
    if format in EXACT_FORMATS:
        return 0
    if rule == "int8_per_token":
        return k
    return 32 if format in GROUP_32_FORMATS else 256


# In place of the elements of a group: each number as a half, as quantised weights meet them on a GPU.
HALVES = -1


def round_to_halves(x: F32) -> npt.NDArray[np.float64]:
    """The numbers of each row as halves times a power of two that the largest one fits."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    # 2^14 to 2^15; a row of zeros as it is.
    exponents = np.where(largest > 0, 15 - np.frexp(largest)[1], 0)
    halves = np.ldexp(x.astype(np.float64), exponents).astype(np.float16)
    return np.ldexp(halves.astype(np.float64), -exponents)


def quantize_activations(x: F32, group: int) -> tuple[npt.NDArray[np.int8], F32]:
    """Codes [rows, k] and scales [rows, k / group] of x, [rows, k].

    scale = absmax / 127; code = x * (127 / absmax), ties to even, within -127..127; all in float32. A scale below
    2^-126 becomes zero, and so do its codes.
    """
    rows, k = x.shape
    if k % group:
        raise ArgumentError(f"interpreter: rows of {k} elements cannot be rounded in groups of {group}")
    groups = x.reshape(rows, k // group, group)
    largest = np.abs(groups).max(axis=-1)
    scales = largest / np.float32(127)
    scales[scales < np.float32(2.0**-126)] = 0
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(groups * inverse[..., None]), -127, 127).astype(np.int8)
    return codes.reshape(rows, k), scales


def rounding_ties(x: F32, group: int) -> npt.NDArray[np.bool_]:
    """Which rows of x have an element so close to the middle of two codes that its last bits choose one: [rows]."""
    groups = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // group, group)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    exact = np.divide(groups * 127, largest, out=np.zeros_like(groups), where=largest != 0)
    distance = np.abs(np.abs(exact - np.trunc(exact)) - 0.5)
    ties: npt.NDArray[np.bool_] = (distance < TIE_DISTANCE).any(axis=(1, 2))
    return ties


def round_to_cache(x: F32, kv_dtype: KvDtype) -> F32:
    """x [rows, heads, head_dim] as a cache gives it back."""
    if kv_dtype == "q8_0":
        return round_to_q8_0(x)
    return x.astype(np.float16).astype(np.float32) if kv_dtype == "f16" else x


def _q8_0_groups(x: F32) -> tuple[F32, F32, F32]:
    """Groups of 32 along the last dimension, filled up with zeros, their scales in float32, and x / scale."""
    dim = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-dim // Q8_0_GROUP) * Q8_0_GROUP), np.float32)
    padded[..., :dim] = x
    groups = padded.reshape(*x.shape[:-1], -1, Q8_0_GROUP)
    scales: F32 = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = scales.astype(np.float16)
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=(stored > 0) & np.isfinite(stored))
        return groups, scales, groups * inverse


def round_to_q8_0(x: F32) -> F32:
    """x rounded as GGML's Q8_0, in groups of 32 along the last dimension, of which the last may be shorter.

    scale = absmax / 127; code = x * (1 / scale), halves away from zero; the result is code * float16(scale). A group
    whose scale is no finite float16 becomes NaN.
    """
    _, scales, scaled = _q8_0_groups(x)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = scales.astype(np.float16).astype(np.float32)
        stored[~np.isfinite(stored)] = np.nan
        magnitude = np.abs(scaled)
        whole = np.floor(magnitude)
        codes = np.copysign(whole + np.floor(2 * (magnitude - whole)), scaled)
        rounded: F32 = (codes * stored).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return rounded


def q8_0_ties(x: F32) -> npt.NDArray[np.bool_]:
    """Which rows of x [rows, heads, head_dim] have a code or a scale that the last bits of x decide about: [rows]."""
    _, scales, scaled = _q8_0_groups(x)
    magnitude = np.abs(scaled)
    near = (np.abs(magnitude - np.floor(magnitude) - 0.5) < TIE_DISTANCE).any(axis=-1)
    few = np.float32(TIE_DISTANCE / 127)
    with np.errstate(over="ignore", invalid="ignore"):
        near |= ((scales * (1 - few)).astype(np.float16) != (scales * (1 + few)).astype(np.float16))[..., 0]
    ties: npt.NDArray[np.bool_] = near.reshape(len(x), -1).any(axis=1)
    return ties

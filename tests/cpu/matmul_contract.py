"""The contract of csrc/cpu/kernels/matmul.h in numpy, operation by operation: what every level must give bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from kernel_cases import DENSE, FORMATS, Bytes, Floats, dequantized, fma
from sterna import _core

Ints = npt.NDArray[np.int64]


def activation_block(format: str, rule: str, k: int) -> int:
    """How many elements of a row share an activation scale; 0: they are not rounded."""
    if format in DENSE:
        return 0
    if rule == "int8_per_token":
        return k
    return 256 if FORMATS[format].scales == "super" else 32


def quantize(x: Floats, block: int) -> tuple[Ints, Floats]:
    """Codes [m, k] and scales [m, k / block] of rows x, [m, k]."""
    m, k = x.shape
    blocks = x.reshape(m, k // block, block)
    with np.errstate(all="ignore"):
        # Over bit patterns, so that a NaN is the largest.
        largest = (blocks.view(np.uint32) & 0x7FFFFFFF).max(axis=-1).astype(np.uint32).view(np.float32)
        scales = largest / np.float32(127)
        inverse = np.float32(127) / largest
        small = scales < np.float32(2.0**-126)
        scales, inverse = np.where(small, np.float32(0), scales), np.where(small, np.float32(0), inverse)
        codes = np.rint(blocks * inverse[..., None])
    codes = np.where(np.isnan(codes), -127, np.clip(codes, -127, 127))
    return codes.astype(np.int64).reshape(m, k), scales


def grouped_sums(codes: Ints, weights: Ints, group: int) -> Ints:
    """[m, n, k / group]: sums of products over each group of k."""
    m, k = codes.shape
    n = weights.shape[0]
    # int64 products of int8 codes are exact in float64, whose matmul is fast.
    x = codes.reshape(m, k // group, group).transpose(1, 0, 2).astype(np.float64)
    w = weights.reshape(n, k // group, group).transpose(1, 2, 0).astype(np.float64)
    return np.matmul(x, w).transpose(1, 2, 0).astype(np.int64)


def linear(x: Floats, data: Bytes, format: str, n: int, rule: str = "auto") -> Floats:
    """x w^T, [m, n], of rows x, [m, k], and a tensor's bytes."""
    k = x.shape[1]
    block = activation_block(format, rule, k)
    if block == 0:
        return dense(x, dequantized(data, format, n, k))
    info = FORMATS[format]
    codes, scales = quantize(x, block)
    scales = np.repeat(scales, block // (256 if info.scales == "super" else 32), axis=1)
    decoded = _core.decode_blocks(data, format)
    factor = np.float32(1)
    if info.tail_bytes and decoded["scale"].flat[0].astype(np.float16) != decoded["scale"].flat[0]:
        factor = decoded["scale"].flat[0]  # the panels' scales are halves
        decoded["scale"] = np.ones_like(decoded["scale"])
    weights = decoded["codes"].astype(np.int64).reshape(n, k)
    with np.errstate(all="ignore"):
        if info.scales == "super":
            ternary = info.is_ternary or format in ("TQ1_0", "TQ2_0")
            if ternary and block == k and np.unique(decoded["scale"].view(np.uint32)).size == 1:
                total = grouped_sums(codes, weights, k)[:, :, 0].astype(np.float32)
                return total * (factor * decoded["scale"].reshape(-1)[0] * scales[:, :1])
            return super_blocks(codes, scales, weights, decoded, info.group_size) * factor
        return blocks(codes, scales, weights, decoded, info) * factor


def blocks(
    codes: Ints, scales: Floats, weights: Ints, decoded: dict[str, npt.NDArray[np.generic]], info: _core.FormatInfo
) -> Floats:
    """Layouts with a float scale per group; `scales` has one for every 32 elements."""
    m, k = codes.shape
    n = len(weights)
    group = min(info.group_size, 32)
    sums = grouped_sums(codes, weights, group).astype(np.float32)
    row_sums = codes.reshape(m, k // 32, 32).sum(axis=-1).astype(np.float32)
    d = decoded["scale"].astype(np.float32).reshape(n, k // info.group_size)
    acc = np.zeros((m, n), np.float32)
    for g in range(k // group):
        unit = g * group // 32
        if info.has_min:
            minimum = decoded["min"].astype(np.float32).reshape(n, k // info.group_size)[:, unit]
            acc = fma(minimum[None, :], (row_sums[:, unit] * scales[:, unit])[:, None], acc)
        factor = d[:, g * group // info.group_size][None, :] * scales[:, unit][:, None]
        acc = fma(sums[:, :, g], factor, acc)
    return acc


def super_blocks(
    codes: Ints, scales: Floats, weights: Ints, decoded: dict[str, npt.NDArray[np.generic]], group: int
) -> Floats:
    """Layouts with integer scales under a float one; `scales` has one for every 256 elements."""
    m, k = codes.shape
    n = len(weights)
    sums = grouped_sums(codes, weights, group).reshape(m, n, k // 256, 256 // group)
    row_sums = codes.reshape(m, 1, k // 256, 256 // group, group).sum(axis=-1)
    factors = decoded["group_scale"].astype(np.int64).reshape(n, k // 256, 256 // group)
    minimums = decoded["group_min"].astype(np.int64).reshape(n, k // 256, 256 // group)
    totals, lows = (sums * factors).sum(axis=-1), (row_sums * minimums).sum(axis=-1)
    assert np.abs(totals).max() < 2**31 and np.abs(lows).max() < 2**31, "the kernels sum in 32 bits"
    d, low = (decoded[name].astype(np.float32).reshape(n, k // 256) for name in ("scale", "min"))
    acc = np.zeros((m, n), np.float32)
    for b in range(k // 256):
        scale = scales[:, b][:, None]
        acc = fma(totals[:, :, b].astype(np.float32), d[:, b][None, :] * scale, acc)
        if minimums.any():
            acc = fma(lows[:, :, b].astype(np.float32), -low[:, b][None, :] * scale, acc)
    return acc


def dense(x: Floats, weights: Floats) -> Floats:
    """Plain numbers: one fma after the other."""
    acc = np.zeros((len(x), len(weights)), np.float32)
    for i in range(x.shape[1]):
        acc = fma(weights[None, :, i], x[:, i][:, None], acc)
    return acc

"""Layouts: a tensor packed for the kernels and read back is the tensor, bit for bit, in no more bytes than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import (
    DENSE,
    FORMATS,
    QUANTISED,
    WEIGHT_FORMATS,
    Array,
    Bytes,
    as_bytes,
    assert_same_bits,
    dequantized,
    random_ternary,
)
from sterna import _core
from sterna.errors import ArgumentError, UnsupportedModelError

ROWS = [1, 15, 16, 17, 33, 48]
# Where a float scale stands in a block (of IQ1_M, the words that it is spread over), and bytes that make it infinite, NaN, or
# too large for the codes.
NOT_FINITE = {
    **{name: [(0, b"\x00\x7c"), (0, b"\x01\xfe")] for name in ("Q4_0", "Q5_0", "Q8_0", "Q1_0", "IQ4_NL", "IQ4_XS")},
    **{name: [(0, b"\x00\x7c"), (0, b"\x01\xfe")] for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")},
    **{name: [(0, b"\x00\xfc"), (2, b"\x00\x7e")] for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")},
    "Q2_K": [(80, b"\x00\xfc"), (82, b"\x00\x7e")],
    "Q3_K": [(108, b"\x00\x7c")],
    "Q6_K": [(208, b"\x00\x7c")],
    "TQ1_0": [(52, b"\x00\x7c")],
    "TQ2_0": [(64, b"\x00\x7c")],
    **{name: [(0, b"\x00\x7c"), (0, b"\x01\xfe")] for name in ("Q2_0", "Q2_0_G128")},
    **{name: [(0, b"\x00\x7c"), (0, b"\x01\xfe")] for name in ("Q1_0_TERNARY", "Q2_0_TERNARY", "Q2_0_G128_TERNARY")},
    "IQ1_M": [(48, b"\x00\x00\x00\x00\x00\xc0\x00\x70")],
    "MXFP4": [(0, b"\xff"), (0, b"\xfe"), (0, b"\xfd")],
    "F32": [(0, b"\x00\x00\x80\x7f"), (0, b"\x01\x00\x80\xff")],
    "F16": [(0, b"\x00\x7c"), (0, b"\x01\xfc")],
    "BF16": [(0, b"\x80\x7f"), (0, b"\xc0\xff")],
}  # fmt: skip


def too_large(blocks: Bytes, format: str) -> Array:
    """Blocks whose scale alone is beyond what weights may have; only MXFP4 has such."""
    return blocks[:, 0] > 240 if format == "MXFP4" else np.zeros(len(blocks), bool)


def random_bytes(format: str, n: int, k: int, rng: np.random.Generator) -> Bytes:
    """Any bytes whose floats are finite under any codes: blocks that are not are replaced."""
    info = FORMATS[format]
    if info.is_ternary:
        return random_ternary(info, n * k // info.block_size, rng)
    blocks = rng.integers(0, 256, (n * k // info.block_size, info.block_bytes), dtype=np.uint8)
    while True:
        values = _core.dequantize(blocks, format).reshape(len(blocks), -1)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1) | too_large(blocks, format))
        if bad.size == 0:
            return blocks.reshape(-1)
        blocks[bad] = rng.integers(0, 256, (bad.size, info.block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_packing_loses_nothing(format: str) -> None:
    seed = 11
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    block = FORMATS[format].block_size
    for n in ROWS:
        for k in (block, 3 * block) if block > 1 else (1, 5, 64):
            data = random_bytes(format, n, k, rng)
            values, packed, finite = _core.pack_and_dequantize(data, format, n, k)
            assert finite
            assert_same_bits(values, dequantized(data, format, n, k), f"[{n}, {k}]")
            assert packed == _core.packed_bytes(format, n, k)


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
@pytest.mark.parametrize("byte", [0x00, 0x55, 0xAA])
def test_packing_keeps_constant_bytes(format: str, byte: int) -> None:
    info = FORMATS[format]
    data = np.full(17 * info.block_bytes + info.tail_bytes, byte, np.uint8)
    values, _, _ = _core.pack_and_dequantize(data, format, 17, info.block_size)
    assert_same_bits(values, dequantized(data, format, 17, info.block_size))


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_packed_bytes_are_bounded(format: str) -> None:
    info = FORMATS[format]
    for n, blocks in ((16, 1), (48, 3), (4096, 8)):
        k = blocks * max(info.block_size, 32)
        file_bytes = n * k // info.block_size * info.block_bytes
        assert file_bytes <= _core.packed_bytes(format, n, k) * 1.35, "the packed form cannot be that much smaller"
        # I2_S has no scales in its blocks; where k is no multiple of 256, the layout has one per 128.
        assert _core.packed_bytes(format, n, k) <= (1.07 if format in ("I2_S", "I2_S_ARM") else 1.05) * file_bytes


@pytest.mark.parametrize("format", NOT_FINITE)
def test_scales_that_are_not_finite_are_reported(format: str) -> None:
    seed = 12
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    info = FORMATS[format]
    n, blocks = 18, 3
    clean = random_bytes(format, n, blocks * info.block_size, rng)
    for offset, replacement in NOT_FINITE[format]:
        for row, block in ((0, 0), (n - 1, blocks - 1), (15, 1), (16, 0)):
            data = clean.copy()
            at = (row * blocks + block) * info.block_bytes + offset
            patch = np.frombuffer(replacement, np.uint8)
            data[at : at + patch.size] = patch
            values = dequantized(data, format, n, blocks * info.block_size)
            assert not np.isfinite(values).all() or format == "MXFP4", "the case is no case"
            _, _, finite = _core.pack_and_dequantize(data, format, n, blocks * info.block_size)
            assert not finite, (offset, row, block)


def test_every_format_has_a_case() -> None:
    tails = {name for name in WEIGHT_FORMATS if FORMATS[name].tail_bytes}
    assert set(NOT_FINITE) == set(WEIGHT_FORMATS) - tails - {"NVFP4"}, "NVFP4 reads the byte of a NaN as 0"
    assert len(QUANTISED) + len(DENSE) == len(WEIGHT_FORMATS) == 36


@pytest.mark.parametrize("format", ["I2_S", "I2_S_ARM", "I2_S_TERNARY", "I2_S_ARM_TERNARY"])
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_scales_behind_a_tensor_that_are_not_finite_are_reported(format: str, scale: float) -> None:
    info = FORMATS[format]
    data = random_bytes(format, 2, info.block_size, np.random.default_rng(13))
    data[-info.tail_bytes :][:4] = np.array([scale], np.float32).view(np.uint8)
    assert not _core.pack_and_dequantize(data, format, 2, info.block_size)[2]


@pytest.mark.parametrize("format", [name for name in WEIGHT_FORMATS if FORMATS[name].is_ternary and name != "Q1_0_TERNARY"])
def test_codes_that_mean_nothing_are_reported(format: str) -> None:
    info = FORMATS[format]
    n, k = 18, 2 * info.block_size
    clean = random_bytes(format, n, k, np.random.default_rng(14))
    for at in (2, info.block_bytes - 1, 35 * info.block_bytes + 5):
        for code in (0x03, 0x0C, 0x30, 0xC0):
            data = clean.copy()
            data[at] |= code
            assert not _core.pack_and_dequantize(data, format, n, k)[2], (at, code)


def test_wrong_arguments_are_errors() -> None:
    for format in ("I8", "I16", "I32", "I64", "F64"):
        with pytest.raises(UnsupportedModelError):
            _core.packed_bytes(format, 16, 32)
    data = as_bytes(np.zeros((2, 32), np.float32))
    with pytest.raises(ArgumentError):
        _core.pack_and_dequantize(data, "Q6_0", 2, 32)
    with pytest.raises(ArgumentError):
        _core.pack_and_dequantize(data, "F32", 2, 33)
    with pytest.raises(ArgumentError):
        _core.pack_and_dequantize(data, "Q4_0", 2, 31)
    for n, k in ((0, 32), (2, 0), (-1, 32), (2, -32)):
        with pytest.raises(ArgumentError):
            _core.pack_and_dequantize(data, "F32", n, k)

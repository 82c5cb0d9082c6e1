"""Formats against gguf.quants, bit for bit, and the meaning of decoded codes and scales against the floats."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import ternary_dialects
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from sterna import _core
from sterna.errors import ArgumentError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

ALL_FORMATS = {info.name: info for info in _core.formats()}
# I2_S, and those that join the blocks of others, are in test_ternary_formats.py.
FORMATS = {
    name: info for name, info in ALL_FORMATS.items() if info.tail_bytes == 0 and not name.endswith("_TERNARY")
}
QUANTISED = [name for name, info in FORMATS.items() if info.scales != "none"]
INTEGERS = ["I8", "I16", "I32", "I64"]
# ggml's activations; they never stand in files.
NOT_IN_FILES = ["Q8_1", "Q8_K"]
NUM_BLOCKS = 400
# Where the f16 scales of a block are; IQ1_M scatters its one and is reached by random bytes.
HALF_SCALES = {
    "F16": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q1_0": (0,), "Q2_0": (0,), "Q2_0_G128": (0,), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def expected(blocks: Bytes, name: str) -> Floats:
    """What the blocks mean, [num_blocks * block_size], by a decoder that is not ours."""
    with np.errstate(all="ignore"):
        if name in ("Q1_0", "Q2_0", "Q2_0_G128"):  # which gguf 0.19 cannot
            return ternary_dialects.decode(name, blocks)
        if name == "F64":
            return blocks.view(np.float64).astype(np.float32).reshape(-1)
        return gguf.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1)


def assert_same_bits(got: Floats, want: Floats) -> None:
    """Equal as bits, except that any NaN equals any other."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, f"{wrong.size} differ, first at {wrong[0]}: {got[wrong[0]]!r}, not {want[wrong[0]]!r}"


def random_blocks(name: str, seed: int) -> Bytes:
    """[num_blocks, block_bytes] of any bytes; the seed is printed for a failing test."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (NUM_BLOCKS, FORMATS[name].block_bytes), dtype=np.uint8)


def special_scale_blocks(name: str, seed: int) -> Bytes:
    """Random codes under f16 scales that are zero, subnormal, the largest, infinite or NaN, of both signs."""
    blocks = random_blocks(name, seed)
    special = np.array([0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x3C00], dtype="<u2")
    special = np.concatenate([special, special | 0x8000])
    rng = np.random.default_rng(seed + 1)
    for offset in HALF_SCALES[name]:
        blocks[:, offset : offset + 2] = rng.choice(special, NUM_BLOCKS).view(np.uint8).reshape(-1, 2)
    return blocks


def value_of_codes(name: str, decoded: dict[str, npt.NDArray[np.generic]]) -> Floats:
    """The floats that the codes and scales stand for by csrc/quant/format.h, in its order of operations."""
    info = FORMATS[name]
    codes = decoded["codes"].astype(np.float32).reshape(-1, info.block_size // info.group_size, info.group_size)
    scale, minimum = decoded["scale"].astype(np.float32), decoded["min"].astype(np.float32)
    with np.errstate(all="ignore"):
        if info.scales == "super":
            scale = scale * decoded["group_scale"].astype(np.float32)
            minimum = -(minimum * decoded["group_min"].astype(np.float32))
        value = scale[:, :, None] * codes
        if info.has_min:
            value = value + minimum[:, :, None]
    return value.reshape(-1)


def test_table_is_that_of_gguf() -> None:
    known = {t.name: (t.value, *GGML_QUANT_SIZES[t]) for t in GGMLQuantizationType if t.name not in NOT_IN_FILES}
    ours = {info.name: (info.id, info.block_size, info.block_bytes) for info in _core.formats()}
    # gguf 0.19 knows neither; the rest are sterna's own readings of other ids.
    assert ours.pop("Q2_0") == (42, 64, 18)
    assert ours.pop("I2_S") == (36, 128, 32)
    assert {name: value for name, value in ours.items() if value[0] < 0x10000} == known
    ids = [info.id for info in _core.formats()]
    assert ids == sorted(ids)


def test_table_describes_its_decoders() -> None:
    groups = {name: FORMATS[name].group_size for name in QUANTISED}
    assert {name for name, size in groups.items() if size == 16} == {
        "Q2_K", "Q3_K", "Q6_K", "IQ2_XS", "IQ2_S", "IQ1_M", "NVFP4",
    }  # fmt: skip
    assert {name for name, size in groups.items() if size == 64} == {"Q2_0"}
    assert {name for name, size in groups.items() if size == 128} == {"Q1_0", "Q2_0_G128"}
    assert {name for name, size in groups.items() if size == 256} == {"TQ1_0", "TQ2_0"}
    assert all(size in (16, 32, 64, 128, 256) for size in groups.values())
    assert {name for name in QUANTISED if FORMATS[name].has_min} == {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
    assert {name for name in QUANTISED if FORMATS[name].scales == "super"} == {
        name for name in QUANTISED if FORMATS[name].block_size == 256
    }


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in INTEGERS])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_bytes(name: str, seed: int) -> None:
    blocks = random_blocks(name, seed)
    assert_same_bits(_core.dequantize(blocks, name), expected(blocks, name))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in INTEGERS])
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x55, 0x80])
def test_constant_bytes(name: str, byte: int) -> None:
    blocks = np.full((3, FORMATS[name].block_bytes), byte, dtype=np.uint8)
    assert_same_bits(_core.dequantize(blocks, name), expected(blocks, name))


@pytest.mark.parametrize("name", HALF_SCALES)
def test_special_scales(name: str) -> None:
    blocks = special_scale_blocks(name, 3)
    assert_same_bits(_core.dequantize(blocks, name), expected(blocks, name))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_byte_scale(name: str) -> None:
    blocks = random_blocks(name, 4)[:256]
    blocks[:, : {"MXFP4": 1, "NVFP4": 4}[name]] = np.arange(256, dtype=np.uint8)[:, None]
    assert_same_bits(_core.dequantize(blocks, name), expected(blocks, name))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_float(name: str) -> None:
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    assert_same_bits(_core.dequantize(data, name), expected(data, name))


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_every_row_of_the_codebook(name: str) -> None:
    num_rows = gguf.quants._type_traits[GGMLQuantizationType[name]].grid_shape[0]
    blocks = np.random.default_rng(5).integers(0, 256, (2048, FORMATS[name].block_bytes), dtype=np.uint8)
    codes = np.abs(_core.decode_blocks(blocks, name)["codes"].astype(np.int16))
    if name.startswith("IQ1"):  # signs belong to the row here, and the shift does not
        raw = _core.decode_blocks(blocks, name)["codes"].astype(np.int16)
        codes = np.round(raw / 8).astype(np.int16)
    width = gguf.quants._type_traits[GGMLQuantizationType[name]].grid_shape[1]
    assert len(np.unique(codes.reshape(-1, width), axis=0)) == num_rows
    assert_same_bits(_core.dequantize(blocks, name), expected(blocks, name))


def quantisable() -> list[str]:
    def works(name: str) -> bool:
        try:
            gguf.quantize(np.zeros((1, 256), dtype=np.float32), GGMLQuantizationType[name])
        except (KeyError, NotImplementedError):  # gguf reads more formats than it writes, and does not know all
            return False
        return True

    return [name for name in QUANTISED if works(name)]


def test_gguf_still_quantises_what_it_did() -> None:
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"} <= set(quantisable())


@pytest.mark.parametrize("name", [*quantisable(), "BF16", "F16", "F32"])
def test_quantised_data(name: str) -> None:
    print("seed 6")
    weights = np.random.default_rng(6).standard_normal((24, 1024)).astype(np.float32)
    data = gguf.quantize(weights, GGMLQuantizationType[name])
    got = _core.dequantize(data.view(np.uint8), name)
    assert_same_bits(got, gguf.dequantize(data, GGMLQuantizationType[name]).reshape(-1))
    # Not only the same, also right: the error is about that of one code, which is large for ternary ones.
    limit = 0.9 if name.startswith("TQ") else 0.15
    assert np.linalg.norm(got - weights.reshape(-1)) < limit * np.linalg.norm(weights)


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, random_blocks) for name in QUANTISED]
    + [(name, special_scale_blocks) for name in QUANTISED if name in HALF_SCALES],
)
def test_codes_and_scales_are_exact(name: str, make: Callable[[str, int], Bytes]) -> None:
    blocks = make(name, 7)
    decoded = _core.decode_blocks(blocks, name)
    assert_same_bits(value_of_codes(name, decoded), expected(blocks, name))


@pytest.mark.parametrize("name", QUANTISED)
def test_decoded_shapes(name: str) -> None:
    info = FORMATS[name]
    decoded = _core.decode_blocks(random_blocks(name, 8), name)
    num_groups = info.block_size // info.group_size
    is_super = info.scales == "super"
    assert decoded["codes"].shape == (NUM_BLOCKS, info.block_size)
    assert decoded["codes"].dtype == np.int8
    assert decoded["scale"].shape == decoded["min"].shape == (NUM_BLOCKS, 1 if is_super else num_groups)
    assert decoded["group_scale"].shape == decoded["group_min"].shape == (NUM_BLOCKS, num_groups if is_super else 0)
    if not info.has_min:
        assert not decoded["min"].any()
        assert not decoded["group_min"].any()
    if name in ("TQ1_0", "TQ2_0"):
        assert (decoded["group_scale"] == 1).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Q4_0", range(-8, 8)), ("Q4_1", range(16)), ("Q5_0", range(-16, 16)), ("Q5_1", range(32)),
        ("Q8_0", range(-128, 128)), ("Q2_K", range(4)), ("Q3_K", range(-4, 4)), ("Q4_K", range(16)),
        ("Q5_K", range(32)), ("Q6_K", range(-32, 32)), ("TQ1_0", range(-1, 2)), ("TQ2_0", range(-1, 3)),
        ("Q1_0", (-1, 1)), ("Q2_0", range(-1, 3)), ("Q2_0_G128", range(-1, 3)), ("IQ3_S", range(-15, 16, 2)), ("IQ1_S", (-9, -7, -1, 1, 7, 9)),
        ("IQ2_XXS", (-43, -25, -8, 8, 25, 43)), ("IQ3_XXS", (4, 12, 20, 28, 36, 44, 52, 62)),
        ("MXFP4", (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)),
    ],
)  # fmt: skip
def test_range_of_codes(name: str, values: range | tuple[int, ...]) -> None:
    codes = _core.decode_blocks(random_blocks(name, 9), name)["codes"].astype(int)
    found = set(np.unique(np.abs(codes) if name == "IQ3_XXS" else codes).tolist())
    assert found == set(values)


def test_layout_of_memory_does_not_matter() -> None:
    blocks = random_blocks("Q4_K", 10)
    want = _core.dequantize(blocks, "Q4_K")
    assert_same_bits(_core.dequantize(blocks.reshape(-1), "q4_k"), want)
    wide = np.zeros((NUM_BLOCKS, 2 * 144 + 1), dtype=np.uint8)
    wide[:, 1:289:2] = blocks
    assert_same_bits(_core.dequantize(wide[:, 1:289:2], "Q4_K"), want)
    assert _core.dequantize(np.zeros(0, dtype=np.uint8), "Q4_K").shape == (0,)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].block_bytes > 1 and name not in INTEGERS])
@pytest.mark.parametrize("change", [-1, 1])
def test_part_of_a_block_is_refused(name: str, change: int) -> None:
    data = np.zeros(2 * FORMATS[name].block_bytes + change, dtype=np.uint8)
    with pytest.raises(ArgumentError, match=f"{data.size} bytes are not whole blocks of {name}"):
        _core.dequantize(data, name)


def test_what_cannot_be_decoded_is_refused() -> None:
    data = np.zeros(0, dtype=np.uint8)
    for name in INTEGERS:
        with pytest.raises(ArgumentError, match=f"{name} is not a format of weights"):
            _core.dequantize(data, name)
    for name in [*INTEGERS, "F32", "F16", "BF16", "F64"]:
        with pytest.raises(ArgumentError, match=f"{name} is not quantised"):
            _core.decode_blocks(data, name)
    for name in ["", "Q4", "Q4_0 ", "Q4_2", *NOT_IN_FILES]:
        with pytest.raises(ArgumentError, match="there is no"):
            _core.dequantize(data, name)
        with pytest.raises(ArgumentError, match="there is no"):
            _core.decode_blocks(data, name)
    with pytest.raises(TypeError):
        _core.dequantize(np.zeros(18, dtype=np.float32), "Q4_0")  # type: ignore[arg-type]

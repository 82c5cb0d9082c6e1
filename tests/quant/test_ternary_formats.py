"""I2_S, Q2_0 and Q1_0 against decoders in numpy, tensors with one scale, and what a scan finds in them."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ternary_dialects as dialects
from kernel_cases import assert_same_bits
from reference import reference_dir
from sterna import _core
from sterna.errors import ArgumentError, ModelFormatError
from ternary_dialects import BLOCKS, SPANS, TERNARY, TYPES, Bytes, Codes, RawFile, RawTensor

SEED = 31
DIALECTS = [*TERNARY, "Q1_0"]
# A number that no half is, and one that is.
SCALES = [0.0503, 0.375, -1.5, 0.0]


def codes_for(dialect: str, n: int, k: int, seed: int = SEED) -> Codes:
    rng = np.random.default_rng(seed)
    if dialect == "Q1_0":
        return (2 * rng.integers(0, 2, (n, k)) - 1).astype(np.int8)
    return rng.integers(-1, 2, (n, k)).astype(np.int8)


def tensor(dialect: str, data: Bytes, n: int, k: int, name: str = "blk.0.attn_q.weight") -> RawTensor:
    return RawTensor(name, (k, n), TYPES[dialect], data.tobytes())


def file_of(path: Path, *tensors: RawTensor, architecture: str = "bitnet") -> Path:
    """A file of some tensors, and another behind them, so that each has the room that its writer gave it."""
    text = architecture.encode()
    pairs = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, len(text)) + text
    last = RawTensor("output_norm.weight", (8,), 0, bytes(32))
    return RawFile(1, pairs, (*tensors, last)).write(path)


def opened(path: Path, dialect: str) -> _core.Gguf:
    return _core.Gguf(path, i2s_order="arm" if dialect == "I2_S_ARM" else "x86")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("scale", SCALES)
def test_tensors_mean_what_was_written(dialect: str, scale: float) -> None:
    codes = codes_for(dialect, 3, 512)
    data = dialects.encode(dialect, codes, scale)
    stored = np.float32(scale) if dialect in SPANS else np.float32(np.float16(scale))
    want = (stored * codes.astype(np.float32)).reshape(-1)
    assert_same_bits(_core.dequantize(data, dialect), want)
    if not dialect.startswith("TQ"):
        assert_same_bits(dialects.decode(dialect, data), want)


@pytest.mark.parametrize("dialect", SPANS)
def test_i2_s_against_a_decoder_in_numpy(dialect: str) -> None:
    rng = np.random.default_rng(SEED)
    for scale in (0.1, -3e-39, np.inf, np.nan):
        data = rng.integers(0, 256, 100 * 32 + 32, dtype=np.uint8)
        data[-32:-28] = np.array([scale], "<f4").view(np.uint8)
        assert_same_bits(_core.dequantize(data, dialect), dialects.decode(dialect, data))


def test_orders_of_i2_s_differ_in_place_only() -> None:
    # The first of 128 weights is in the upper bits of the first byte; the 17th of the other order as well.
    codes = np.zeros((1, 128), np.int8)
    codes[0, 16] = 1
    x86, arm = dialects.encode("I2_S", codes, 1.0), dialects.encode("I2_S_ARM", codes, 1.0)
    assert (x86[16], x86[0]) == (0b10010101, 0b01010101)
    assert (arm[0], arm[16]) == (0b01100101, 0b01010101)


@pytest.mark.parametrize("size", [0, 31, 33, 63, 65, 127])
def test_part_of_an_i2_s_tensor_is_refused(size: int) -> None:
    with pytest.raises(ArgumentError, match="not whole blocks of I2_S .32 bytes each and 32 behind them"):
        _core.dequantize(np.zeros(size, np.uint8), "I2_S")


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "Q2_0_G128", "I2_S", "I2_S_ARM"])
def test_joined_blocks_are_the_same_weights(name: str) -> None:
    codes = codes_for(name, 2, 1024)
    data = dialects.encode(name, codes, 0.375)
    assert_same_bits(_core.dequantize(data, f"{name}_TERNARY"), _core.dequantize(data, name))
    decoded = _core.decode_blocks(data, f"{name}_TERNARY")
    assert (decoded["codes"].reshape(codes.shape) == codes).all()
    assert (decoded["scale"] == np.float32(0.375)).all()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_scale_is_found(dialect: str, tmp_path: Path) -> None:
    n, k = 5, 512
    data = dialects.encode(dialect, codes_for(dialect, n, k), 0.375)
    joined = dialect if dialect.startswith("TQ") else f"{dialect}_TERNARY"
    file = opened(file_of(tmp_path / "a.gguf", tensor(dialect, data, n, k)), dialect)
    assert file.weight_format("blk.0.attn_q.weight") == joined
    # Rows that are no multiple of 256 cannot be joined.
    if not dialect.startswith("TQ"):
        data = dialects.encode(dialect, codes_for(dialect, n, 384), 0.375)
        file = opened(file_of(tmp_path / "b.gguf", tensor(dialect, data, n, 384)), dialect)
        assert file.weight_format("blk.0.attn_q.weight") == dialect


@pytest.mark.parametrize("dialect", ["Q1_0", "Q2_0", "Q2_0_G128"])
@pytest.mark.parametrize("block", [0, 3, -1])
def test_another_scale_anywhere_keeps_the_format(dialect: str, block: int, tmp_path: Path) -> None:
    n, k = 40, 2048  # several reads
    scales = np.full(n * k // BLOCKS[dialect], 0.375, np.float32)
    scales[block] = np.nextafter(np.float16(0.375), np.float16(1))
    data = dialects.encode(dialect, codes_for(dialect, n, k), scales)
    file = opened(file_of(tmp_path / "a.gguf", tensor(dialect, data, n, k)), dialect)
    assert file.weight_format("blk.0.attn_q.weight") == dialect
    scan = file.scan_ternary("blk.0.attn_q.weight")
    assert scan is not None
    assert not scan.one_scale


@pytest.mark.parametrize("dialect", ["Q2_0", "Q2_0_G128"])
@pytest.mark.parametrize("place", [0, 77, -1])
def test_a_fourth_code_anywhere_keeps_the_format(dialect: str, place: int, tmp_path: Path) -> None:
    n, k = 40, 2048
    codes = codes_for(dialect, n, k)
    codes.reshape(-1)[place] = 2
    file = opened(file_of(tmp_path / "a.gguf", tensor(dialect, dialects.encode(dialect, codes, 0.375), n, k)), dialect)
    assert file.weight_format("blk.0.attn_q.weight") == dialect
    scan = file.scan_ternary("blk.0.attn_q.weight")
    assert scan is not None
    assert (scan.codes[3], scan.first_fourth) == (1, place % codes.size)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scan_counts_codes_and_scales(dialect: str, tmp_path: Path) -> None:
    n, k = 3, 768
    codes = codes_for(dialect, n, k)
    scales: float | dialects.Floats = 0.25
    if dialect in BLOCKS:
        scales = np.linspace(0.25, 4, n * k // BLOCKS[dialect]).astype(np.float16).astype(np.float32)
    data = dialects.encode(dialect, codes, scales)
    file = opened(file_of(tmp_path / "a.gguf", tensor(dialect, data, n, k)), dialect)
    scan = file.scan_ternary("blk.0.attn_q.weight")
    assert scan is not None
    assert scan.codes == [int((codes == c).sum()) for c in (-1, 0, 1)] + [0]
    assert (scan.first_fourth, scan.bad_scales, scan.first_bad_block, scan.unused_bytes) == (None, 0, None, 0)
    assert (scan.least_scale, scan.largest_scale) == (0.25, 0.25 if dialect in SPANS else 4.0)
    assert scan.one_scale == (dialect in SPANS)
    assert file.scan_ternary("output_norm.weight") is None


def test_scan_finds_faults(tmp_path: Path) -> None:
    n, k = 2, 512
    data = dialects.encode("TQ1_0", codes_for("TQ1_0", n, k), 0.25).copy()
    assert not np.isin(data[54:106], 1).any(), "the case is no case"
    data[54] = 1  # no five digits are stored as 1
    data[3 * 54 + 52 :][:2] = np.array([np.nan], "<f2").view(np.uint8)
    scan = opened(file_of(tmp_path / "a.gguf", tensor("TQ1_0", data, n, k)), "TQ1_0").scan_ternary(
        "blk.0.attn_q.weight"
    )
    assert scan is not None
    assert (scan.unused_bytes, scan.bad_scales, scan.first_bad_block) == (1, 1, 3)


@pytest.mark.parametrize("dialect", ["TQ1_0", "TQ2_0", "Q1_0", "Q2_0"])
def test_weights_that_ggml_wrote(dialect: str) -> None:
    with np.load(Path(__file__).parents[1] / "data" / "quantize" / "ggml_ternary.npz") as saved:
        codes, scale, data = saved[f"{dialect} codes"], saved["scale"], saved[dialect]
    assert data.tobytes() == dialects.encode(dialect, codes, float(scale[0])).tobytes()
    assert_same_bits(_core.dequantize(data, dialect), (scale * codes.astype(np.float32)).reshape(-1))


def test_q2_0_of_ggml(tmp_path: Path) -> None:
    """A file of ggml's own quantiser. Its weights are dequantised by ggml in the oracle."""
    path = reference_dir("oracle") / "llama-256.Q2_0" / "model.gguf"
    if not path.exists():
        pytest.skip("not in the subset of the oracles")
    file = _core.Gguf(path)
    names = [t.name for t in file.tensors if t.format == "Q2_0"]
    assert len(names) == 16
    for name in names:
        assert_same_bits(_core.dequantize(file.read(name), "Q2_0"), dialects.decode("Q2_0", file.read(name)))


def test_variants_are_not_in_files(tmp_path: Path) -> None:
    n, k = 4, 256
    good = tensor("Q2_0", dialects.encode("Q2_0", codes_for("Q2_0", n, k), 1.0), n, k)
    for info in _core.formats():
        if info.id >= 0x10000:
            with pytest.raises(ModelFormatError, match="which is unknown"):
                _core.Gguf(file_of(tmp_path / "a.gguf", replace(good, type=info.id)))

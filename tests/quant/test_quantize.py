"""Quantisers: the bytes of gguf.quants, errors below ggml's, and what cannot be quantised."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from float_control import FLUSH_TO_ZERO, ROUND_UP, SUBNORMALS_ARE_ZERO, available, float_control
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError, NumericError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

DATA = Path(__file__).parent.parent / "data" / "quantize"
INFO = {info.name: info for info in _core.formats()}
EXACT = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ1_0", "TQ2_0"]
SEARCHED = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
ALL = EXACT + SEARCHED
BLOCK = 256
ERRORS = json.loads((DATA / "ggml_errors.json").read_text("utf-8"))
ROWS = {name: rows.astype(np.float32) for name, rows in np.load(DATA / "rows.npz").items()}
IMPORTANCE = ROWS.pop("importance")


def by_gguf(weights: Floats, name: str) -> Bytes:
    with np.errstate(all="ignore"):
        return gguf.quantize(weights, GGMLQuantizationType[name]).view(np.uint8).reshape(-1)


def by_us(weights: Floats, name: str, importance: Floats | None = None) -> Floats:
    return _core.dequantize(_core.quantize(weights, name, importance), name).reshape(weights.shape)


def squared_error(weights: Floats, name: str, importance: Floats | None = None) -> float:
    difference = weights.astype(np.float64) - by_us(weights, name, importance)
    return float((difference**2 * (1 if importance is None else importance)).sum())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_are_those_of_gguf(name: str, seed: int) -> None:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for scale in (1.0, 1e-3, 300.0, 6e-8):
        weights = (scale * rng.standard_normal((8, 2 * BLOCK))).astype(np.float32)
        assert _core.quantize(weights, name).tobytes() == by_gguf(weights, name).tobytes()


finite = st.floats(-60000, 60000, width=32)
# Whole numbers make ties; subnormals make reciprocals that overflow.
ties = st.integers(-16, 16).map(lambda i: i / 2)
tiny = st.floats(-(2.0**-123), 2.0**-123, width=32)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(EXACT),
    elements=st.sampled_from([finite, ties, tiny, st.sampled_from([0.0, 1.0, -1.0])]).flatmap(
        lambda kind: st.lists(kind, min_size=1, max_size=BLOCK)
    ),
    outlier=st.none() | st.tuples(st.integers(0, BLOCK - 1), finite),
)
def test_bytes_are_those_of_gguf_whatever_the_weights(
    name: str, elements: list[float], outlier: tuple[int, float] | None
) -> None:
    weights = np.resize(np.array(elements, np.float32), (1, BLOCK))
    if outlier is not None:
        weights[0, outlier[0]] = outlier[1]
    if name in ("Q4_1", "Q5_1"):
        weights += 0.0  # which of 0 and -0 is the minimum depends on numpy's build
    assert _core.quantize(weights, name).tobytes() == by_gguf(weights, name).tobytes()


def test_exponents_of_mxfp4() -> None:
    # Near powers of two log2 rounds up to a whole number; below 2^-125 gguf's exponent wraps.
    powers = np.ldexp(np.float32(1), np.arange(-149, 127)).astype(np.float32)
    largest = np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])
    for _ in range(6):
        largest = np.concatenate([largest, np.nextafter(largest, np.float32(0))])
    largest = np.unique(largest[largest > 0])
    weights = largest[:, None] * np.linspace(-1, 1, 32, dtype=np.float32)
    assert _core.quantize(weights, "MXFP4").tobytes() == by_gguf(weights, "MXFP4").tobytes()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_rounding_of_16_bits(name: str) -> None:
    # Each 16-bit float, the middle to the next one and what is beside that.
    bits = np.arange(0x7BFF if name == "F16" else 0x7F7E, dtype=np.uint16)
    info = GGMLQuantizationType[name]
    exact = gguf.dequantize(bits.view(np.uint8).reshape(-1, 2), info).reshape(-1).astype(np.float32)
    next_ = gguf.dequantize((bits + np.uint16(1)).view(np.uint8).reshape(-1, 2), info).reshape(-1).astype(np.float32)
    middle = (exact.astype(np.float64) / 2 + next_.astype(np.float64) / 2).astype(np.float32)
    infinity = np.float32(np.inf)
    weights = np.concatenate([exact, middle, np.nextafter(middle, -infinity), np.nextafter(middle, infinity)])
    weights = np.concatenate([weights, -weights])[None]
    assert _core.quantize(weights, name).tobytes() == by_gguf(weights, name).tobytes()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SEARCHED)
def test_error_is_not_above_ggmls(name: str, rows: str) -> None:
    assert squared_error(ROWS[rows], name) <= 1.01 * ERRORS[name][rows]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", [*SEARCHED, "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weighted_error_is_not_above_ggmls(name: str, rows: str) -> None:
    assert squared_error(ROWS[rows], name, IMPORTANCE) <= 1.01 * ERRORS[f"{name} weighted"][rows]


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_moves_the_error(name: str) -> None:
    rows = ROWS["normal"]
    unweighted = ((rows.astype(np.float64) - by_us(rows, name)) ** 2 * IMPORTANCE).sum()
    assert squared_error(rows, name, IMPORTANCE) < 0.8 * unweighted
    # Its scale does not matter, and equal importance is none.
    data = _core.quantize(rows, name, IMPORTANCE)
    assert (_core.quantize(rows, name, IMPORTANCE * np.float32(2**20)) == data).all()
    equal = squared_error(rows, name, np.ones(BLOCK, np.float32))
    assert abs(equal / squared_error(rows, name) - 1) < 0.02


@pytest.mark.parametrize("name", SEARCHED)
def test_what_the_format_holds_is_kept(name: str) -> None:
    print("seed 3")
    rng = np.random.default_rng(3)
    info = INFO[name]
    # Scales as they are in files: all groups alike, codes over their whole range.
    blocks = rng.integers(0, 256, (16, BLOCK // info.block_size * info.block_bytes), dtype=np.uint8)
    for offset in {
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q6_K": (208,),
        "IQ4_XS": (0,),
    }.get(name, range(0, blocks.shape[1], 18)):
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    weights = _core.dequantize(blocks, name).reshape(16, BLOCK)
    error = squared_error(weights, name) / float((weights.astype(np.float64) ** 2).sum())
    assert error < {"Q2_K": 0.05, "Q3_K": 0.02, "Q4_K": 2e-3, "Q5_K": 5e-4, "Q6_K": 2e-4}.get(name, 2e-3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-44, -1.5, 700.0])
def test_constant_rows(name: str, value: float) -> None:
    weights = np.full((2, BLOCK), value, np.float32)
    got = by_us(weights, name)
    assert np.isfinite(got).all()
    tolerance = {"MXFP4": 0.26, "Q3_K": 0.02, "Q2_K": 0.01}.get(name, 0.01)
    # A half has no more than 2^-24.
    assert np.abs(got - weights).max() <= tolerance * abs(value) + 2.0**-24 * (value != 0)


@pytest.mark.parametrize("name", ALL)
def test_one_outlier(name: str) -> None:
    print("seed 4")
    weights = (1e-3 * np.random.default_rng(4).standard_normal((4, BLOCK))).astype(np.float32)
    weights[1, 77] = -30000.0
    got = by_us(weights, name)
    assert np.isfinite(got).all()
    # Each row is alone; the outlier is there.
    np.testing.assert_array_equal(got[[0, 2, 3]], by_us(np.ascontiguousarray(weights[[0, 2, 3]]), name))
    assert abs(got[1, 77] + 30000) < (0.3 if name == "MXFP4" else 0.02) * 30000


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(SEARCHED),
    elements=st.sampled_from([finite, ties, tiny]).flatmap(lambda kind: st.lists(kind, min_size=1, max_size=BLOCK)),
    importance=st.none() | st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=20),
)
def test_any_weights_give_finite_blocks(name: str, elements: list[float], importance: list[float] | None) -> None:
    weights = np.resize(np.array(elements, np.float32), (1, BLOCK))
    weigh = None if importance is None else np.resize(np.array(importance, np.float32), BLOCK)
    got = by_us(weights, name, weigh)
    assert np.isfinite(got).all()
    # Never worse than the largest weight by a code's width and more.
    assert np.abs(got).max() <= 1.5 * np.abs(weights).max() + 2.0**-14


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(name: str, bad: float) -> None:
    weights = np.zeros((3, BLOCK), np.float32)
    weights[1, 200] = bad
    place = rf"blk\.0\.ffn_up\.weight\[{1000 + BLOCK + 200}\] is -?(nan|inf): weights must be finite"
    with pytest.raises(NumericError, match=place):
        _core.quantize(weights, name, what="blk.0.ffn_up.weight", first=1000)


LARGEST = {
    "F16": 65504.0, "BF16": 255 * 2.0**120, "Q8_0": 127 * 65504.0, "Q4_0": 7 * 65504.0, "Q4_1": 65504.0, "Q5_0": 15 * 65504.0,
    "Q5_1": 65504.0, "MXFP4": 2.0**127, "TQ1_0": 65504.0, "TQ2_0": 65504.0, "Q2_K": 15 * 65504.0, "Q3_K": 93 * 65504.0,
    "Q4_K": 63 * 65504.0, "Q5_K": 63 * 65504.0, "Q6_K": 127 * 31 * 65504.0, "IQ4_NL": 113 * 65504.0,
    "IQ4_XS": 31 * 113 * 65504.0,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("sign", [-1, 1])
def test_weights_beyond_the_format(name: str, sign: int) -> None:
    weights = np.full((1, BLOCK), sign * LARGEST[name] * (1 - 2.0**-24 if name != "F16" else 1), np.float32)
    weights[0, 1::3] = 0
    assert np.isfinite(by_us(weights, name)).all()
    weights[0, 6] = np.nextafter(np.float32(sign * LARGEST[name]), np.float32(sign * np.inf))
    with pytest.raises(NumericError, match=rf"weights\[6\] is .*: the largest magnitude in {name} is"):
        _core.quantize(weights, name)


@pytest.mark.parametrize("name", [name for name in ALL if INFO[name].block_size <= 32])
def test_rows_of_any_number_of_blocks(name: str) -> None:
    print("seed 5")
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((3, 288)).astype(np.float32)
    for importance in (None, rng.random(288, np.float32)):
        whole = _core.quantize(weights, name, importance).reshape(3, -1)
        for row, data in zip(weights, whole, strict=True):
            assert (_core.quantize(row, name, importance) == data).all()
        assert np.linalg.norm(_core.dequantize(whole, name) - weights.reshape(-1)) < 0.2 * np.linalg.norm(weights)


def test_where_the_bytes_go() -> None:
    weights = ROWS["normal"]
    want = _core.quantize(weights, "Q4_K")
    out = np.zeros((len(weights), 144), np.uint8)
    assert _core.quantize(weights, "q4_k", out=out) is out
    assert out.tobytes() == want.tobytes()
    assert _core.quantize(weights.reshape(2, 16, 256), "Q4_K").tobytes() == want.tobytes()
    assert _core.quantize(np.zeros((0, 256), np.float32), "Q4_K").size == 0


def test_arguments_that_cannot_be() -> None:
    weights = np.zeros((2, BLOCK), np.float32)
    for arguments, problem in (
        ((weights, "Q9_K"), "there is no"),
        ((weights, "IQ1_S"), "there is no quantiser for IQ1_S"),
        ((weights[:, :32].copy(), "Q4_K"), "rows of 32 weights are not whole blocks of Q4_K"),
        ((weights[:, ::2], "Q8_0"), "C-contiguous array of float32"),
        ((weights.astype(np.float64), "Q8_0"), "C-contiguous array of float32"),
        ((np.array(1, np.float32), "F32"), "at least one dimension"),
        ((weights, "Q4_K", np.ones(32, np.float32)), "importance: 32 values for rows of 256"),
        ((weights, "Q4_K", np.full(BLOCK, np.nan, np.float32)), r"importance\[0\] is nan"),
        ((weights, "Q4_K", np.full(BLOCK, -1, np.float32)), r"importance\[0\] is -1"),
        ((weights, "Q4_K", None, np.zeros(287, np.uint8)), "out: 287 bytes, needed are 288"),
        ((weights, "Q4_K", None, np.zeros(288, np.int8)), "out: must be"),
        ((weights, "Q4_K", None, np.zeros(576, np.uint8)[::2]), "out: must be"),
    ):
        with pytest.raises((ArgumentError, TypeError), match=problem):
            _core.quantize(*arguments)  # type: ignore[arg-type]
    read_only = np.zeros(288, np.uint8)
    read_only.flags.writeable = False
    with pytest.raises(ArgumentError, match="out: must be"):
        _core.quantize(weights, "Q4_K", out=read_only)


def test_what_can_be_quantised() -> None:
    assert [name for name in INFO if _core.can_quantize(name)] == sorted(ALL, key=lambda name: INFO[name].id)
    takes = {name for name in ALL if _core.takes_importance(name)}
    assert takes == {*SEARCHED, "Q4_0", "Q4_1", "Q5_0", "Q5_1"}


@pytest.mark.skipif(not available, reason="needs MXCSR and glibc")
@pytest.mark.parametrize("name", ALL)
def test_the_callers_float_mode_does_not_matter(name: str) -> None:
    weights = (1e-39 * np.random.default_rng(6).standard_normal((2, BLOCK))).astype(np.float32)
    want = _core.quantize(weights, name).tobytes()
    with float_control(FLUSH_TO_ZERO | SUBNORMALS_ARE_ZERO | ROUND_UP):
        got = _core.quantize(weights, name).tobytes()
    assert got == want

"""Small programs over arrays, compiled for the CPU: what the tests of layouts and kernels are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sterna import _core

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FORMATS = {info.name: info for info in _core.formats()}
DENSE = ["F32", "F16", "BF16"]
QUANTISED = [name for name, info in FORMATS.items() if info.scales != "none"]
# Every format that a matrix may have.
WEIGHT_FORMATS = DENSE + QUANTISED
LEVELS = _core.supported_isas()


def assert_same_bits(got: Array, want: Array, what: str = "") -> None:
    """Equal as bits, except that any NaN equals any other."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape, what
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    if not same.all():
        at = tuple(int(i[0]) for i in np.nonzero(~same))
        raise AssertionError(
            f"{what}: {(~same).sum()} of {same.size} differ, first at {at}: {got[at]!r}, not {want[at]!r}"
        )


def as_bytes(array: Array) -> Bytes:
    """The bytes of an array as a file holds them, flat."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def random_weights(
    format: str, n: int, k: int, rng: np.random.Generator, smallest: float = 2.0**-10, largest: float = 4.0
) -> Bytes:
    """A tensor [n, k] of a format, flat: any codes, under scales of a magnitude between the two bounds."""
    info = FORMATS[format]
    if info.scales == "none":
        values = rng.standard_normal((n, k)).astype(np.float32)
        if format == "F32":
            return as_bytes(values)
        return as_bytes(
            values.astype(np.float16) if format == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)
        )
    count = n * k // info.block_size
    if info.is_ternary:
        return random_ternary(info, count, rng, smallest, largest)
    good: list[Bytes] = []
    found = 0
    while found < count:
        blocks = rng.integers(0, 256, (2048, info.block_bytes), dtype=np.uint8)
        if format == "NVFP4":  # four scales a block seldom fit all at once
            blocks[:, :4] = rng.integers(0x20, 0x50, (2048, 4))
        decoded = _core.decode_blocks(blocks, format)
        fits = ((np.abs(decoded["scale"]) >= smallest) & (np.abs(decoded["scale"]) <= largest)).all(axis=1)
        if info.has_min:
            fits &= (np.abs(decoded["min"]) <= largest).all(axis=1)
        good.append(blocks[fits])
        found += int(fits.sum())
    return np.ascontiguousarray(np.concatenate(good)[:count]).reshape(-1)


def random_ternary(
    info: _core.FormatInfo, count: int, rng: np.random.Generator, smallest: float = 2.0**-10, largest: float = 4.0
) -> Bytes:
    """Blocks of a ternary format, flat: any valid codes, under scales of blocks or one of the tensor, which no half holds."""
    blocks = rng.integers(0, 256, (count, info.block_bytes), dtype=np.uint8)
    if info.name != "Q1_0_TERNARY":
        blocks ^= blocks & (blocks >> 1) & 0x55  # 3 becomes 2
    scales = np.exp(rng.uniform(np.log(smallest), np.log(largest), count)).astype(np.float32)
    if info.tail_bytes:
        tail = np.zeros(info.tail_bytes, np.uint8)
        tail[:4] = scales[:1].view(np.uint8)
        return np.concatenate([blocks.reshape(-1), tail])
    for offset in range(0, info.block_bytes, {"Q1_0_TERNARY": 18, "Q2_0_TERNARY": 18, "Q2_0_G128_TERNARY": 34}[info.name]):
        blocks[:, offset : offset + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def dequantized(data: Bytes, format: str, n: int, k: int) -> Floats:
    """The floats that a tensor's bytes stand for, [n, k]."""
    return _core.dequantize(data, format).reshape(n, k)


class Net:
    """A program under construction, with the bytes of its weights. Rows come from an F32 table: token t is its row t."""

    def __init__(self) -> None:
        self.builder = _core.ProgramBuilder()
        self.tokens = self.builder.add_input("tokens", ("T",))
        self.positions = self.builder.add_input("positions", ("T",))
        self.builder.begin_function("logits")
        self.source: dict[str, Bytes] = {}
        self.num_rows = 0
        self._count = 0

    def weight(
        self, data: Array, format: str = "F32", shape: Sequence[int] | None = None, name: str | None = None
    ) -> int:
        """A tensor; `data` is an array of floats, or the bytes of a tensor of the shape."""
        name = name or f"w{len(self.source)}"
        self.source[name] = data if data.dtype == np.uint8 else as_bytes(data.astype(np.float32))
        return self.builder.add_weight(name, tuple(shape or data.shape), format)

    def rows(self, table: Array, name: str = "x") -> int:
        """Row t of the result is row tokens[t] of the table."""
        self.num_rows = max(self.num_rows, len(table))
        w = self.weight(table, name=f"{name}.table")
        return self.node("embed", name, [("tokens", self.tokens), ("w", w)])[0]

    def any_rows(self, table: Array, name: str = "x") -> int:
        """As `rows`, for numbers that no weight may have: infinities are products, and NaN is infinity times zero."""
        special = ~np.isfinite(table)
        huge = np.copysign(np.float32(3e38), table)
        finite = self.rows(np.where(special, huge, table), f"{name}.finite")
        factor = self.rows(np.where(special, np.float32(3e38), np.float32(1)), f"{name}.factor")
        zero = self.rows(np.where(np.isnan(table), np.float32(0), np.float32(1)), f"{name}.zero")
        product = self.node("mul", f"{name}.infinite", [("a", finite), ("b", factor)])[0]
        return self.node("mul", name, [("a", product), ("b", zero)])[0]

    def node(self, op: str, name: str, inputs: Sequence[tuple[str, int]], **attributes: Any) -> list[int]:
        """Results of a new node; "_" in the name of an attribute of a folded rope stands for its dot."""
        named = {
            key.replace("rope_", "rope.", 1) if key.startswith("rope_") else key: v for key, v in attributes.items()
        }
        return self.builder.emit(op, name, inputs, named, "")

    def finish(self, last: int) -> _core.Program:
        """The program; its logits are those of the value `last`, and are of no interest."""
        features = int(self.builder.shape(last)[1])
        vocab = (self.num_rows + 15) // 16 * 16
        w = self.weight(np.zeros((vocab, features)), name="logits.w")
        self.builder.set_outputs(self.node("unembed", "logits", [("x", last), ("w", w)]))
        return self.builder.finish()


def compiled(program: _core.Program, source: Mapping[str, Bytes], **options: Any) -> _core.CpuPlan:
    """A plan that keeps its values."""
    options = {"threads": 1, "max_tokens": 64, "max_outputs": 1, "keep_values": True, **options}
    return _core.compile_cpu(program, dict(source), **options)


def run_rows(plan: _core.CpuPlan, tokens: Sequence[int] | Array, first: int = 0) -> None:
    """One batch: the tokens at the positions from `first` on of one sequence, whose pages are 0, 1, ..."""
    tokens = np.asarray(tokens, np.int32)
    pages = (first + len(tokens) + 63) // 64
    plan.reserve_pages(pages)
    positions = np.arange(first, first + len(tokens), dtype=np.int32)
    plan.run(tokens, positions, np.zeros(len(tokens), np.int32), [list(range(pages))], np.zeros(0, np.int32))


def value(plan: _core.CpuPlan, name: str, rows: int) -> Floats:
    """A value of the last run, [rows, features]."""
    return plan.value(name).reshape(rows, -1)


def fma(a: Array, b: Array, c: Array) -> Floats:
    """a * b + c of float32 arrays, rounded once.

    The product is exact in float64. The sum is rounded to odd there, which a second rounding to float32 cannot tell from
    the exact sum (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
    """
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        c = c.astype(np.float64)
        total = product + c
        virtual = total - product
        error = (product - (total - virtual)) + (c - virtual)
        even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
        move = np.isfinite(total) & (error != 0) & even
        total = np.where(move, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return total.astype(np.float32)

"""One attention node over given rows of q, k and v, and what it should give in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gguf
import numpy as np
from kernel_cases import Array, Floats, Net, compiled, value
from sterna import _core

SEED = 41
KV_TYPES = ["f16", "f32", "q8_0"]


@dataclass(frozen=True)
class Shape:
    """One attention layer."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    window: int = 0
    softcap: float = 0.0
    chunk: int = 0
    has_sinks: bool = False
    max_alibi_bias: float = 0.0
    temperature: tuple[float, int, int] = (0.0, 0, 0)  # scale, length, offset


def cached(x: Array, heads: int, kv_dtype: str) -> Array:
    """Rows of K or V, [rows, heads * dim], as a cache gives them back: float64 [rows, heads, dim]."""
    x = x.reshape(len(x), heads, -1)
    if kv_dtype == "q8_0":
        # Zeros fill up the last group: they change neither its scale nor its codes.
        padded = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % 32)))
        blocks = gguf.quants.quantize(padded, gguf.GGMLQuantizationType.Q8_0)
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)[..., : x.shape[2]].astype(np.float64)
    return x.astype(np.float16 if kv_dtype == "f16" else np.float32).astype(np.float64)


def alibi(heads: int, max_bias: float) -> Array:
    """Slopes by head, as transformers' build_mpt_alibi_tensor has them."""
    power = 2 ** int(np.ceil(np.log2(heads)))
    slopes = 2.0 ** -(np.arange(1, power + 1) * max_bias / power)
    return slopes if power == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]


class Attention:
    """An attention node over given q, k and v: token t stands for row t of each. `bad` changes (table, row, element)."""

    def __init__(
        self, shape: Shape, length: int, seed: int = SEED, bad: tuple[tuple[str, int, int], float] | None = None
    ) -> None:
        print(f"seed {seed}")
        rng = np.random.default_rng(seed)
        self.shape, self.length = shape, length
        net = Net()
        self.q, self.k, self.v = (
            (rng.standard_normal((length, heads * dim)) * size).astype(np.float32)
            for heads, dim, size in (
                (shape.heads, shape.dim, 2),
                (shape.kv_heads, shape.dim, 1.5),
                (shape.kv_heads, shape.value_dim, 1),
            )
        )
        if bad is not None:
            (name, row, element), number = bad
            getattr(self, name)[row, element] = number
        add_rows = net.rows if bad is None else net.any_rows
        operands = []
        for name, table, heads, dim in (
            ("q", self.q, shape.heads, shape.dim),
            ("k", self.k, shape.kv_heads, shape.dim),
            ("v", self.v, shape.kv_heads, shape.value_dim),
        ):
            operands.append((name, net.node("reshape", f"{name}.heads", [("x", add_rows(table, name))], dims=f"{heads}, {dim}")[0]))
        self.scale = shape.dim**-0.5
        self.sinks = (rng.standard_normal(shape.heads) * 2).astype(np.float32)
        if shape.has_sinks:
            operands.append(("sinks", net.weight(self.sinks)))
        options = {"window": shape.window, "chunk": shape.chunk, "softcap": shape.softcap, "max_alibi_bias": shape.max_alibi_bias}
        options |= {f"temperature.{name}": number for name, number in zip(("scale", "length", "offset"), shape.temperature, strict=True)}
        last = net.node("attention", "y", operands, layer=0, scale=self.scale, **options)[0]
        self.program = net.finish(last)
        self.source = net.source

    def plan(self, **options: object) -> _core.CpuPlan:
        plan = compiled(self.program, self.source, **{"max_tokens": self.length, **options})
        plan.reserve_pages(2 * (self.length // 64 + 1))
        return plan

    def expected(self, rows: Sequence[int], kv_dtype: str) -> Array:
        """Rows of the result in float64, [len(rows), heads * value_dim]; K and V are rounded as the cache rounds them."""
        s = self.shape
        k, v = (cached(x, s.kv_heads, kv_dtype).repeat(s.heads // s.kv_heads, axis=1) for x in (self.k, self.v))
        result = []
        for row in rows:
            first = max(0, row - s.window + 1) if s.window else row - row % s.chunk if s.chunk else 0
            q = self.q[row].astype(np.float64).reshape(s.heads, s.dim)
            scores = np.einsum("hd,shd->hs", q, k[first : row + 1]) * self.scale
            if s.temperature[0]:
                factor, length, offset = s.temperature
                scores *= 1 + factor * np.log(1 + (row + offset) // length)
            if s.softcap:
                scores = s.softcap * np.tanh(scores / s.softcap)
            if s.max_alibi_bias:
                scores -= alibi(s.heads, s.max_alibi_bias)[:, None] * np.arange(row - first, -1, -1)
            if s.has_sinks:
                scores = np.concatenate([scores, self.sinks[:, None].astype(np.float64)], axis=1)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            weights = weights[:, : row + 1 - first]
            result.append(np.einsum("hs,shd->hd", weights, v[first : row + 1]).reshape(-1))
        return np.array(result)


def run(
    plan: _core.CpuPlan, length: int, chunk: int = 0, pages: Sequence[int] | None = None, tokens: Array | None = None
) -> Floats:
    """The rows of one sequence, computed in chunks; `pages` are those it uses, in order."""
    pages = list(range((length + 63) // 64)) if pages is None else list(pages)
    tokens = np.arange(length, dtype=np.int32) if tokens is None else tokens
    got = []
    for first in range(0, length, chunk or length):
        last = min(first + (chunk or length), length)
        positions = np.arange(first, last, dtype=np.int32)
        plan.run(tokens[first:last], positions, np.zeros(last - first, np.int32), [pages], np.zeros(0, np.int32))
        got.append(value(plan, "y", last - first))
    return np.concatenate(got)

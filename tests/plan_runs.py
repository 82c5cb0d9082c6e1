"""Model files compiled for the CPU and run over one sequence, without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from kernel_cases import Floats
from sterna import _core
from sterna._core import Gguf
from sterna.trace import trace

KV_TYPES = ["f16", "f32", "q8_0"]


def compiled(path: Path, *, fused: bool = True, **options: object) -> _core.CpuPlan:
    file = Gguf(path)
    program = trace(file).program
    options = {"threads": 2, "max_tokens": 512, "max_outputs": 512, **options}
    plan = _core.compile_cpu(program.fuse() if fused else program, file, **options)
    plan.reserve_pages(5)
    return plan


def run(
    plan: _core.CpuPlan,
    tokens: np.ndarray,
    chunk: int = 0,
    pages: tuple[int, ...] = (0, 1, 2, 3, 4),
    total: int = 0,
) -> Floats:
    """Logits at every position of one sequence, computed in chunks; it begins one of `total` tokens."""
    length = len(tokens)
    is_long = [int(0 < plan.longrope_context < max(length, total))]
    got = []
    for first in range(0, length, chunk or length):
        last = min(first + (chunk or length), length)
        rows = np.arange(last - first, dtype=np.int32)
        sequences = np.zeros_like(rows)
        got.append(plan.run(tokens[first:last], rows + first, sequences, [list(pages)], rows, long_sequences=is_long))
    return np.concatenate(got)

"""Model files compiled for the CPU, and plans run over one sequence or over several together, without an engine."""

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
    plan: _core.ProgramPlan,
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


def run_company(plan: _core.ProgramPlan, texts: dict[str, np.ndarray], batches: list[dict[str, int]]) -> dict[str, Floats]:
    """Logits at every position of sequences that run together, on pages in another order than theirs."""
    tables = dict(zip(texts, ([3, 1], [0], [2]), strict=True))
    done = dict.fromkeys(texts, 0)
    got: dict[str, list[Floats]] = {key: [] for key in texts}
    for batch in batches:
        positions = [np.arange(done[key], done[key] + count) for key, count in batch.items()]
        logits = plan.run(
            np.concatenate([texts[key][rows] for key, rows in zip(batch, positions, strict=True)]),
            np.concatenate(positions),
            np.repeat(np.arange(len(batch)), list(batch.values())),
            [tables[key] for key in batch],
            np.arange(sum(batch.values())),
            long_sequences=[int(0 < plan.longrope_context < len(texts[key])) for key in batch],
        )
        for key, rows in zip(batch, np.split(logits, np.cumsum(list(batch.values()))[:-1]), strict=True):
            got[key].append(rows)
            done[key] += len(rows)
    return {key: np.concatenate(rows) for key, rows in got.items()}

"""A model that is a hash: its logits depend on every visible token, read back through the page tables, so that a wrong
page, slot or position changes the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sterna import _core
from sterna.errors import MemoryBudgetError

PAGE = 64
_MASK = (1 << 64) - 1


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def slot_hashes(tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return _mix(_mix(tokens.astype(np.uint64)) ^ positions.astype(np.uint64))


def logits_of(hashes: npt.NDArray[np.uint64], vocab_size: int) -> npt.NDArray[np.float32]:
    """[n] hashes of a history -> [vocab_size]."""
    with np.errstate(over="ignore"):
        state = _mix(np.sum(hashes, dtype=np.uint64) + np.uint64(len(hashes)))
        bits = _mix(state ^ np.arange(vocab_size, dtype=np.uint64))
    return ((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)) * np.float32(8)


def reference_logits(tokens: Sequence[int], vocab_size: int) -> npt.NDArray[np.float32]:
    array = np.asarray(tokens, np.int64)
    return logits_of(slot_hashes(array, np.arange(len(array))), vocab_size)


class FakePlan(_core.PyPlan):
    """`max_pages` makes reserve_pages fail beyond it; `hook` runs before a batch; `change` may change its logits."""

    def __init__(
        self, vocab_size: int = 61, max_tokens: int = 32, max_outputs: int = 8, max_pages: int = 1 << 20
    ) -> None:
        super().__init__()
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._max_outputs = max_outputs
        self._max_pages = max_pages
        self._cache = np.zeros((0, PAGE), np.uint64)
        self.hook: Callable[[list[int]], None] | None = None
        self.change: Callable[[npt.NDArray[np.float32], list[list[int]]], None] | None = None
        self.wait_for: threading.Event | None = None
        self.in_run = threading.Event()
        self.seen_cancel = False
        self.batches: list[tuple[int, int, int]] = []  # rows, sequences, outputs

    def vocab_size(self) -> int:
        return self._vocab_size

    def max_tokens(self) -> int:
        return self._max_tokens

    def max_outputs(self) -> int:
        return self._max_outputs

    def num_pages(self, pool: int) -> int:
        return len(self._cache)

    def copy_page(self, pool: int, source: int, target: int) -> None:
        self._cache[target] = self._cache[source]

    def page_bytes(self) -> int:
        return 8 * PAGE

    def read_page(self, pool: int, page: int) -> bytes:
        return self._cache[page].tobytes()

    def write_page(self, pool: int, page: int, data: bytes) -> None:
        self._cache[page] = np.frombuffer(data, np.uint64)

    def first_non_finite(self, row: int) -> str:
        return f"value_of_row_{row}"

    def reserve_pages(self, pool: int, num_pages: int) -> None:
        if num_pages > self._max_pages:
            raise MemoryBudgetError("no more pages")
        garbage = np.full((num_pages - len(self._cache), PAGE), 0xDEADBEEF, np.uint64)
        self._cache = np.concatenate([self._cache, garbage])

    def run(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        sequences: npt.NDArray[np.int32],
        page_tables: list[npt.NDArray[np.int32]],
        output_rows: npt.NDArray[np.int32],
        cancelled: Callable[[], bool],
    ) -> npt.NDArray[np.float32] | None:
        assert 1 <= len(tokens) <= self._max_tokens
        assert len(output_rows) <= self._max_outputs
        assert all(table.max() < len(self._cache) for table in page_tables)
        assert np.all(np.diff(sequences) >= 0)
        assert np.all(np.diff(positions)[np.diff(sequences) == 0] == 1)
        assert np.all(np.diff(output_rows) > 0)
        self.batches.append((len(tokens), len(page_tables), len(output_rows)))
        self.in_run.set()
        if self.hook:
            self.hook([int(t) for t in tokens])
        if self.wait_for is not None:
            while not self.wait_for.wait(0.002):
                if cancelled():
                    self.seen_cancel = True
                    return None
        pages = np.array([page_tables[s][p // PAGE] for s, p in zip(sequences, positions, strict=True)])
        self._cache[pages, positions % PAGE] = slot_hashes(tokens.astype(np.int64), positions.astype(np.int64))
        logits = np.empty((len(output_rows), self._vocab_size), np.float32)
        for i, row in enumerate(output_rows):
            table = page_tables[sequences[row]]
            visible = self._cache[table].reshape(-1)[: positions[row] + 1]
            logits[i] = logits_of(visible, self._vocab_size)
        if self.change:
            self.change(logits, [list(t) for t in page_tables])
        return logits


def reference_generate(
    prompt: Sequence[int], count: int, params: _core.SamplingParams, vocab_size: int = 61, choice: int = 0
) -> list[int]:
    """What a sequence alone gives."""
    sampler = _core.Sampler(params, vocab_size)
    tokens = list(prompt)
    for _ in range(count):
        row = reference_logits(tokens, vocab_size)
        tokens.append(sampler.sample(row, history=tokens, num_prompt=len(prompt), choice=choice).token)
    return tokens[len(prompt) :]


def make_pieces(vocab_size: int = 61) -> _core.Pieces:
    """Token t is a letter, or a space and a letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return _core.Pieces.from_tokens(
        "llama",
        [("\u2581" if t >= 26 else "") + letters[t % 26] + (str(t) if t >= 52 else "") for t in range(vocab_size)],
    )

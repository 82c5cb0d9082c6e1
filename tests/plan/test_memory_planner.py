"""The memory planner: buffers that live at the same time never overlap."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core

Buffer = tuple[int, int, int]

ALIGNMENT = 64


def buffers(max_bytes: int) -> st.SearchStrategy[list[Buffer]]:
    """(bytes, first step, last step) of up to 16 buffers over 12 steps."""
    lifetime = st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted)
    one = st.tuples(st.integers(0, max_bytes), lifetime).map(lambda b: (b[0], b[1][0], b[1][1]))
    return st.lists(one, max_size=16)


def aligned(size: int) -> int:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def check(wanted: list[Buffer]) -> None:
    offsets, arena = _core.place_buffers(wanted)
    assert len(offsets) == len(wanted)
    for i, (size, first, last) in enumerate(wanted):
        assert offsets[i] >= 0 and offsets[i] % ALIGNMENT == 0
        assert offsets[i] + size <= arena
        for j in range(i):
            other_size, other_first, other_last = wanted[j]
            if first <= other_last and other_first <= last:
                apart = offsets[i] + size <= offsets[j] or offsets[j] + other_size <= offsets[i]
                assert apart or 0 in (size, other_size), (i, j)
    at_once = [sum(aligned(size) for size, first, last in wanted if first <= step <= last) for step in range(12)]
    assert max(at_once) <= arena <= sum(aligned(size) for size, _, _ in wanted)
    assert _core.place_buffers(wanted) == (offsets, arena), "the same buffers are placed the same way"


@settings(max_examples=100, deadline=None)
@given(buffers(10_000))
def test_nothing_overlaps(wanted: list[Buffer]) -> None:
    check(wanted)


@settings(max_examples=50, deadline=None)
@given(buffers(2**50))
def test_large_sizes(wanted: list[Buffer]) -> None:
    check(wanted)


def test_a_chain_takes_two_buffers() -> None:
    """Each step reads the last result and writes the next: space for two of them serves all."""
    chain = [(4096, step, step + 1) for step in range(11)]
    _, arena = _core.place_buffers(chain)
    assert arena == 2 * 4096


def test_nothing_to_place() -> None:
    assert _core.place_buffers([]) == ([], 0)

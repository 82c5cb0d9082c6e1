"""KvPages: numbers and reference counts, against a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError


def test_lowest_number_first() -> None:
    pages = _core.KvPages(4)
    assert [pages.allocate() for _ in range(5)] == [0, 1, 2, 3, None]
    pages.release(2)
    pages.release(0)
    assert pages.num_free == 2
    assert [pages.allocate(), pages.allocate(), pages.allocate()] == [0, 2, None]
    assert pages.high_water == 4


def test_lowered_limit_gives_no_high_numbers() -> None:
    pages = _core.KvPages(8)
    for _ in range(6):
        pages.allocate()
    pages.limit = 3
    assert pages.num_free == 0
    for page in (5, 4, 2):
        pages.release(page)
    assert pages.num_in_use == 3
    pages.release(1)
    assert pages.allocate() == 1
    pages.release(0)
    assert pages.allocate() == 0


@pytest.mark.parametrize("page", [-1, 0, 3, 1 << 30])
def test_unused_pages_cannot_be_shared_or_released(page: int) -> None:
    pages = _core.KvPages(4)
    with pytest.raises(ArgumentError, match="not in use"):
        pages.release(page)
    with pytest.raises(ArgumentError, match="not in use"):
        pages.share(page)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from(["allocate", "share", "release", "keep", "let_go"]), st.integers(0, 11))),
)
def test_against_a_dictionary(limit: int, operations: list[tuple[str, int]]) -> None:
    pages = _core.KvPages(limit)
    references: dict[int, int] = {}
    kept: set[int] = set()
    for operation, page in operations:
        if operation == "allocate":
            free = [p for p in range(limit) if not references.get(p) and p not in kept]
            assert pages.allocate() == (free[0] if free else None)
            if free:
                references[free[0]] = 1
        elif operation == "let_go" and page in kept:
            pages.let_go(page)
            kept.remove(page)
        elif operation == "share" and (references.get(page) or page in kept):
            pages.share(page)
            references[page] = references.get(page, 0) + 1
        elif operation == "keep" and (references.get(page) or page in kept):
            pages.keep(page)
            kept.add(page)
        elif operation == "release" and references.get(page):
            pages.release(page)
            references[page] -= 1
        in_use = {p for p, count in references.items() if count}
        assert pages.num_in_use == len(in_use)
        assert pages.num_idle == len(kept - in_use)
        assert pages.num_free == limit - len(in_use | kept)
        assert all(pages.references(p) == references.get(p, 0) for p in range(12))

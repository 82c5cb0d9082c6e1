"""The scheduler as pure logic: random schedules, with every promise of scheduler.h checked after each pick."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core

PAGE = 64


def pages_for(positions: int) -> int:
    return -(-positions // PAGE)


@dataclass
class Known:
    """What the test knows of a sequence."""

    tokens: int
    to_generate: int
    output_from: int
    score: bool = False
    parked: bool = False
    computed: int = 0


class Model:
    def __init__(self, max_tokens: int, max_outputs: int, max_sequences: int, page_limit: int) -> None:
        self.limits = (max_tokens, max_outputs, max_sequences, page_limit)
        self.scheduler = _core.Scheduler(
            max_tokens=max_tokens, max_outputs=max_outputs, max_sequences=max_sequences, page_limit=page_limit
        )
        self.known: dict[int, Known] = {}
        self.finished = 0

    def add(self, tokens: int, to_generate: int, score: bool, source: int | None) -> None:
        output_from = tokens // 2 if score else tokens - 1
        if source is not None:
            output_from = max(output_from, 0)
        number = self.scheduler.add([7] * tokens, output_from=output_from, source=source)
        computed = self.scheduler.num_computed(number)
        assert computed < tokens
        if source is not None and not score:
            before = min(self.known[source].tokens - 1, tokens - 1)
            assert computed <= before
        self.known[number] = Known(tokens, to_generate, max(output_from, computed), score, computed=computed)

    def check_pages(self) -> None:
        pages = self.scheduler.pages
        uses: Counter[int] = Counter()
        for number in self.known:
            table = self.scheduler.page_table(number)
            assert len(set(table)) == len(table)
            assert len(table) >= pages_for(self.scheduler.num_computed(number))
            uses.update(table)
        assert pages.num_in_use == len(uses) <= pages.limit
        assert all(pages.references(page) == count for page, count in uses.items())

    def step(self) -> list[_core.ScheduledRows]:
        max_tokens, max_outputs, max_sequences, _ = self.limits
        rows = self.scheduler.pick()
        self.check_pages()
        assert self.scheduler.num_running <= max_sequences
        assert sum(r.count for r in rows) <= max_tokens
        assert sum(r.num_outputs for r in rows) <= max_outputs
        assert len({r.id for r in rows}) == len(rows)
        for r in rows:
            known = self.known[r.id]
            assert not known.parked
            assert r.first == self.scheduler.num_computed(r.id)
            assert r.count >= 1
            assert r.first + r.count <= known.tokens
            assert r.num_outputs == max(0, r.first + r.count - max(r.first, known.output_from))
            assert len(r.pages) * PAGE >= r.first + r.count
            for page in r.pages[r.first // PAGE :]:  # written now: nobody else's
                assert self.scheduler.pages.references(page) == 1
        return rows

    def finish_step(self, rows: list[_core.ScheduledRows], park: bool) -> None:
        self.scheduler.advance()
        for r in rows:
            known = self.known[r.id]
            known.computed = r.first + r.count
            if known.computed < known.tokens:
                continue
            if known.to_generate > 0 and not known.score:
                known.to_generate -= 1
                self.scheduler.append(r.id, 7)
                known.tokens += 1
                known.output_from = known.tokens - 1
                continue
            self.finished += 1
            if park:
                self.scheduler.park(r.id)
                known.parked = True
            else:
                self.scheduler.remove(r.id)
                del self.known[r.id]

    def active(self) -> list[int]:
        return [n for n, k in self.known.items() if not k.parked]


limits = st.tuples(st.one_of(st.integers(1, 3), st.integers(1, 40)), st.integers(1, 6), st.integers(1, 5), st.integers(5, 14))
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 200), st.integers(0, 100), st.booleans()),
        st.tuples(st.just("fork"), st.integers(1, 200), st.integers(0, 100), st.integers(0, 9)),
        st.tuples(st.just("step"), st.booleans(), st.booleans(), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(limits, actions)
def test_random_schedules(limits: tuple[int, int, int, int], actions: list[tuple[str, int, int, int]]) -> None:
    """No page is leaked or shared wrongly, limits hold, and everybody finishes (each fits into the pool alone)."""
    model = Model(*limits)
    for action, a, b, c in actions:
        if action == "add":
            model.add(a, b, bool(c), None)
        elif action == "fork":
            parked = [n for n, k in model.known.items() if k.parked]
            model.add(a, b, False, parked[c % len(parked)] if parked else None)
        elif action == "step":
            rows = model.step()
            if a:
                model.finish_step(rows, park=bool(b))
            else:
                model.scheduler.abandon()
                model.check_pages()
        elif active := model.active():
            number = active[a % len(active)]
            model.scheduler.remove(number)
            del model.known[number]
            model.check_pages()
    for _ in range(20_000):
        if not model.active():
            break
        rows = model.step()
        assert rows, "nothing moves"
        assert not model.scheduler.stuck()
        model.finish_step(rows, park=False)
    assert not model.active()
    for number in list(model.known):
        model.scheduler.remove(number)
    assert model.scheduler.pages.num_in_use == 0


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 120), st.integers(0, 60), st.booleans()), min_size=1, max_size=6),
)
def test_everybody_is_served_within_a_bound(
    max_tokens: int, max_outputs: int, wanted: list[tuple[int, int, bool]]
) -> None:
    """With enough pages a running sequence waits at most four rounds of the line."""
    model = Model(max_tokens, max_outputs, 6, 100)
    for tokens, to_generate, score in wanted:
        model.add(tokens, to_generate, score, None)
    waited: Counter[int] = Counter()
    while model.active():
        rows = model.step()
        served = {r.id for r in rows}
        for number in model.active():
            waited[number] = 0 if number in served else waited[number] + 1
            assert waited[number] <= 4 * len(wanted)
        model.finish_step(rows, park=False)


def test_a_long_prompt_stalls_decode_by_one_chunk_only() -> None:
    model = Model(16, 4, 4, 100)
    model.add(1, 50, False, None)
    model.finish_step(model.step(), park=False)
    model.add(500, 0, False, None)
    for _ in range(20):
        rows = model.step()
        assert any(r.id == 0 and r.count == 1 and r.num_outputs == 1 for r in rows)
        assert any(r.id == 1 and r.count == 15 for r in rows)
        model.finish_step(rows, park=False)


def test_prefill_is_shared_evenly_and_the_rest_goes_to_the_longer() -> None:
    model = Model(30, 4, 4, 100)
    for tokens in (500, 4, 500):
        model.add(tokens, 0, False, None)
    assert [(r.id, r.count) for r in model.step()] == [(0, 13), (1, 4), (2, 13)]


def test_arrival_order_and_max_sequences() -> None:
    model = Model(8, 8, 2, 100)
    for _ in range(4):
        model.add(3, 0, False, None)
    assert [r.id for r in model.step()] == [0, 1]
    assert model.scheduler.num_waiting == 2


def test_too_few_pages_preempt_the_youngest() -> None:
    """Two sequences of 65 positions and three pages: one gives way and is computed again."""
    model = Model(256, 4, 4, 3)
    model.add(64, 4, False, None)
    model.add(64, 4, False, None)
    rows = model.step()
    assert [(r.id, r.count) for r in rows] == [(0, 64), (1, 64)]
    model.finish_step(rows, park=False)
    rows = model.step()
    assert [r.id for r in rows] == [0]
    model.finish_step(rows, park=False)
    order = []
    while model.active():
        rows = model.step()
        order.append([r.id for r in rows])
        model.finish_step(rows, park=False)
    assert order[-1] == [1]
    assert model.scheduler.pages.num_in_use == 0


def test_one_that_waits_for_a_page_does_not_hide_the_others() -> None:
    """One row per batch; the younger, first in line, can get no page: the older moves on."""
    model = Model(1, 4, 4, 3)
    model.add(100, 0, False, None)
    model.add(100, 0, False, None)
    while model.active():
        rows = model.step()
        assert rows
        model.finish_step(rows, park=False)


def test_idle_pages_go_first() -> None:
    model = Model(256, 4, 4, 2)
    model.add(70, 0, False, None)
    model.finish_step(model.step(), park=True)
    assert model.scheduler.pages.num_in_use == 2
    model.add(70, 0, False, None)
    assert [r.id for r in model.step()] == [1]
    assert model.scheduler.num_computed(0) == 0
    assert model.scheduler.page_table(0) == []


def test_stuck_when_the_limit_sinks() -> None:
    model = Model(256, 4, 4, 3)
    model.add(150, 0, False, None)
    model.scheduler.pages.limit = 2
    rows = model.step()
    assert [(r.id, r.count) for r in rows] == [(0, 128)]
    model.finish_step(rows, park=False)
    assert model.step() == []
    assert model.scheduler.stuck() == [0]
    model.scheduler.remove(0)
    assert model.scheduler.stuck() == []
    assert model.scheduler.pages.num_in_use == 0


@pytest.mark.parametrize(("length", "shared"), [(200, 192), (128, 64), (129, 128), (64, 0), (10, 0)])
def test_fork_shares_full_pages_only(length: int, shared: int) -> None:
    model = Model(512, 4, 4, 20)
    model.add(200, 0, False, None)
    model.finish_step(model.step(), park=True)
    model.add(length, 0, False, 0)
    assert model.scheduler.num_computed(1) == shared
    table = model.scheduler.page_table(0)
    assert model.scheduler.page_table(1) == table[: shared // PAGE]
    model.finish_step(model.step(), park=False)
    assert model.scheduler.page_table(0) == table
    assert all(model.scheduler.pages.references(p) == 1 for p in table)

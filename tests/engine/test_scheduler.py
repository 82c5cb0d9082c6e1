"""The scheduler as pure logic: random schedules, with every promise of scheduler.h checked after each pick."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core

PAGE = 64
STATE = -1  # in place of a window: the pool holds states


def pages_for(positions: int) -> int:
    return -(-positions // PAGE)


@dataclass
class Known:
    """What the test knows of a sequence."""

    tokens: list[int]
    to_generate: int
    output_from: int
    score: bool = False
    key: bytes = b""
    draft: list[int] = field(default_factory=list)


class Model:
    """The scheduler over a cache whose slots hold what they stand for: the tokens up to their position."""

    def __init__(
        self, max_tokens: int, max_outputs: int, max_sequences: int, page_limit: int, windows: tuple[int, ...] = (0,)
    ) -> None:
        self.limits = (max_tokens, max_outputs, max_sequences, page_limit)
        self.windows = windows
        self.scheduler = _core.Scheduler(
            max_tokens=max_tokens,
            max_outputs=max_outputs,
            max_sequences=max_sequences,
            page_limits=[page_limit] * len(windows),
            windows=windows,
        )
        self.slots: dict[tuple[int, int], list[object]] = {}  # (pool, page) -> what its slots hold
        self.states: dict[int, dict[int, object]] = {}  # page of states -> after how many tokens -> which ones
        self.known: dict[int, Known] = {}
        self.finished = 0

    def add(
        self,
        tokens: int | list[int],
        to_generate: int,
        score: bool = False,
        *,
        key: bytes = b"",
        background: bool = False,
    ) -> int:
        """A count stands for tokens that no other sequence has."""
        if isinstance(tokens, int):
            tokens = [1000 + len(self.known) + self.finished] * tokens
        output_from = len(tokens) // 2 if score else len(tokens) - 1
        number = self.scheduler.add(tokens, output_from=output_from, context_key=key, background=background)
        self.known[number] = Known(list(tokens), to_generate, output_from, score, key)
        return number

    def check_pages(self) -> None:
        for pool in range(len(self.windows)):
            pages = self.scheduler.pages(pool)
            uses: Counter[int] = Counter()
            for number in self.known:
                tables = self.scheduler.page_tables(number)
                table = [page for page in tables[pool] if page >= 0] if tables else []
                assert len(set(table)) == len(table)
                uses.update(table)
            assert pages.num_in_use == len(uses)
            assert pages.num_in_use + pages.num_idle <= max(pages.limit, self.limits[3])
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
            drafted = len(known.draft) if r.first + r.count > len(known.tokens) else 0
            assert r.first == self.scheduler.num_computed(r.id)
            assert r.count >= 1
            assert r.first + r.count <= len(known.tokens) + drafted
            assert r.num_outputs == max(0, r.first + r.count - max(r.first, known.output_from))
            for pool, table in enumerate(r.pages):
                assert len(table) * PAGE >= r.first + r.count
                for page in table[r.first // PAGE :]:  # written now: nobody else's
                    missing = page < 0 and self.windows[pool] == STATE
                    assert missing or self.scheduler.pages(pool).references(page) == 1
        return rows

    def run(self, rows: list[_core.ScheduledRows]) -> None:
        """Copies and writes as a plan would, and looks at every slot that a row sees."""
        for pool, source, target in self.scheduler.copies():
            if self.windows[pool] == STATE:
                self.states[target] = dict(self.states[source])
            else:
                self.slots[pool, target] = list(self.slots[pool, source])
        for r in rows:
            known = self.known[r.id]
            text = known.tokens + known.draft
            for pool, table in enumerate(r.pages):
                if self.windows[pool] == STATE:
                    self.run_state(table, r.first, (known.key, *text[: r.first + r.count]))
            for position in range(r.first, r.first + r.count):
                for pool, table in enumerate(r.pages):
                    if self.windows[pool] == STATE:
                        continue
                    page = self.slots.setdefault((pool, table[position // PAGE]), [None] * PAGE)
                    page[position % PAGE] = (known.key, *text[: position + 1])
            last = r.first + r.count - 1
            for pool, window in enumerate(self.windows):
                if window == STATE:
                    continue
                for position in range(max(0, r.first - window + 1) if window else 0, last + 1):
                    held = self.slots[pool, r.pages[pool][position // PAGE]][position % PAGE]
                    assert held == (known.key, *text[: position + 1])

    def run_state(self, table: list[int], first: int, text: tuple[object, ...]) -> None:
        """Finds the state of the tokens before `first`, and leaves one at each end of a page that has room for it."""
        read = table[(first - 1) // PAGE] if first else -1
        if first:
            assert self.states[read][first] == text[: first + 1]
        end = len(text) - 1
        assert table[(end - 1) // PAGE] >= 0
        for i in range(first // PAGE, (end - 1) // PAGE + 1):
            stop = min(end, (i + 1) * PAGE)
            if table[i] >= 0:
                kept = {first: self.states[read][first]} if table[i] == read else {}
                self.states[table[i]] = {**kept, stop: text[: stop + 1]}

    def finish_step(self, rows: list[_core.ScheduledRows], retire: bool = False, accepted: int = 0) -> None:
        self.run(rows)
        right = {}
        for r in rows:
            known = self.known[r.id]
            drafted = r.first + r.count - len(known.tokens)
            if drafted > 0:
                right[r.id] = min(accepted, drafted)
                known.tokens += known.draft[: right[r.id]]
            known.draft = []
        self.scheduler.advance(right)
        for r in rows:
            known = self.known[r.id]
            if self.scheduler.num_computed(r.id) < len(known.tokens):
                continue
            if known.to_generate > 0 and not known.score:
                known.to_generate -= 1
                self.scheduler.append(r.id, known.to_generate % 3)
                known.tokens.append(known.to_generate % 3)
                known.output_from = len(known.tokens) - 1
                continue
            self.finished += 1
            self.end(r.id, retire)

    def draft(self, number: int, tokens: list[int]) -> None:
        known = self.known[number]
        if len(known.tokens) - self.scheduler.num_computed(number) == 1:
            known.draft = tokens
            self.scheduler.draft(number, tokens)

    def end(self, number: int, retire: bool) -> None:
        if retire:
            self.scheduler.retire(number)
        else:
            self.scheduler.remove(number)
        del self.known[number]

    def finish(self, retire: bool = True) -> None:
        """All to their ends: each fits into the pool alone, so everybody gets there."""
        for _ in range(20_000):
            if not self.known:
                break
            rows = self.step()
            assert rows, "nothing moves"
            assert not self.scheduler.stuck()
            self.finish_step(rows, retire)
        assert not self.known
        assert all(self.scheduler.pages(pool).num_in_use == 0 for pool in range(len(self.windows)))


def text_of(seed: int, length: int) -> list[int]:
    """Texts that often begin alike: three beginnings, then one of three endings, each repeated."""
    begin = [[1, 2, 3], [1, 2, 3, 4], [5]][seed % 3]
    end = [[7], [8, 9], [1, 2]][seed // 3 % 3]
    split = [0, 40, 64, 100, 128][seed // 9 % 5]
    return ([*(begin * 80)[: min(split, length)], *(end * 200)])[:length]


limits = st.tuples(st.one_of(st.integers(1, 3), st.integers(1, 40)), st.integers(1, 6), st.integers(1, 5), st.integers(6, 14))
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 200), st.integers(0, 100), st.integers(0, 179)),
        st.tuples(st.just("score"), st.integers(2, 200), st.just(0), st.integers(0, 44)),
        st.tuples(st.just("step"), st.booleans(), st.booleans(), st.integers(0, 3)),
        st.tuples(st.just("draft"), st.integers(0, 9), st.integers(1, 70), st.integers(0, 2)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.booleans(), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(limits, st.sampled_from([(0,), (0, 100), (70,), (0, 1, 64), (0, STATE), (STATE,), (70, STATE)]), actions)
def test_random_schedules(
    limits: tuple[int, int, int, int], windows: tuple[int, ...], actions: list[tuple[str, int, int, int]]
) -> None:
    """No page is leaked, shared or reused wrongly, limits hold, and everybody finishes."""
    model = Model(*limits, windows)
    for action, a, b, c in actions:
        numbers = list(model.known)
        if action == "add":
            model.add(text_of(c % 45, a), b, key=[b"", b"", b"", b"other"][c // 45], background=c % 5 == 0)
        elif action == "score":
            model.add(text_of(c, a), 0, score=True)
        elif action == "step":
            rows = model.step()
            if a:
                model.finish_step(rows, retire=bool(b), accepted=c)
                continue
            if b:
                model.run(rows)
            model.scheduler.abandon(copied=bool(b))
            model.check_pages()
        elif not numbers:
            continue
        elif action == "draft":
            model.draft(numbers[a % len(numbers)], [c] * b)
        else:
            model.end(numbers[a % len(numbers)], bool(b))
            model.check_pages()
    model.finish()


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
        model.add(tokens, to_generate, score)
    waited: Counter[int] = Counter()
    while model.known:
        rows = model.step()
        served = {r.id for r in rows}
        for number in model.known:
            waited[number] = 0 if number in served else waited[number] + 1
            assert waited[number] <= 4 * len(wanted)
        model.finish_step(rows)


def test_a_long_prompt_stalls_decode_by_one_chunk_only() -> None:
    model = Model(16, 4, 4, 100)
    model.add(1, 50)
    model.finish_step(model.step())
    model.add(500, 0)
    for _ in range(20):
        rows = model.step()
        assert any(r.id == 0 and r.count == 1 and r.num_outputs == 1 for r in rows)
        assert any(r.id == 1 and r.count == 15 for r in rows)
        model.finish_step(rows)


def test_prefill_is_shared_evenly_and_the_rest_goes_to_the_longer() -> None:
    model = Model(30, 4, 4, 100)
    for tokens in (500, 4, 500):
        model.add(tokens, 0)
    assert [(r.id, r.count) for r in model.step()] == [(0, 13), (1, 4), (2, 13)]


def test_arrival_order_and_max_sequences() -> None:
    model = Model(8, 8, 2, 100)
    for _ in range(4):
        model.add(3, 0)
    assert [r.id for r in model.step()] == [0, 1]
    assert model.scheduler.num_waiting == 2


def test_too_few_pages_preempt_the_youngest() -> None:
    """Two sequences of 65 positions and three pages: one gives way, and finds what it had computed."""
    model = Model(256, 4, 4, 3)
    model.add(64, 4)
    model.add(64, 4)
    rows = model.step()
    assert [(r.id, r.count) for r in rows] == [(0, 64), (1, 64)]
    model.finish_step(rows)
    rows = model.step()
    assert [r.id for r in rows] == [0]
    model.finish_step(rows)
    order = []
    while model.known:
        rows = model.step()
        order.append([(r.id, r.first) for r in rows])
        model.finish_step(rows)
    assert order[-4] == [(1, 64)]
    assert model.scheduler.pages().num_in_use == 0


def test_one_that_waits_for_a_page_does_not_hide_the_others() -> None:
    """One row per batch; the younger, first in line, can get no page: the older moves on."""
    model = Model(1, 4, 4, 3)
    model.add(100, 0)
    model.add(100, 0)
    model.finish()


def test_stuck_when_the_limit_sinks() -> None:
    model = Model(256, 4, 4, 3)
    model.add(150, 0)
    model.scheduler.pages().limit = 2
    rows = model.step()
    assert [(r.id, r.count) for r in rows] == [(0, 128)]
    model.finish_step(rows)
    assert model.step() == []
    assert model.scheduler.stuck() == [0]
    model.scheduler.remove(0)
    assert model.scheduler.stuck() == []
    assert model.scheduler.pages().num_in_use == 0


def computed_once(model: Model, tokens: list[int], **options: object) -> tuple[int, list[tuple[int, int]]]:
    """Rows that are computed for a sequence alone, and what was copied."""
    number = model.add(tokens, 0, **options)  # type: ignore[arg-type]
    count = 0
    copies = []
    while number in model.known:
        rows = model.step()
        copies += [(source, target) for _, source, target in model.scheduler.copies()]
        count += sum(r.count for r in rows)
        model.finish_step(rows, retire=True)
    return count, copies


@pytest.mark.parametrize(
    ("length", "reused"),
    [(210, 209), (200, 192), (128, 127), (129, 128), (64, 63), (192, 191), (40, 39), (17, 16), (16, 0)],
)
def test_a_beginning_is_shared_by_pages_and_a_part_of_one_by_a_copy(length: int, reused: int) -> None:
    model = Model(512, 4, 4, 20)
    assert computed_once(model, list(range(210))) == (210, [])
    count, copies = computed_once(model, list(range(length)))
    assert count == length - reused
    assert len(copies) == (1 if reused % PAGE else 0)
    assert model.scheduler.num_indexed == 4  # nothing is held twice


def test_a_longer_page_takes_the_place_of_its_beginning() -> None:
    model = Model(512, 4, 4, 20)
    computed_once(model, list(range(90)))
    assert computed_once(model, list(range(128)))[0] == 128 - 90
    assert model.scheduler.num_indexed == 2
    assert model.scheduler.pages().num_idle == 2


def test_other_contexts_share_nothing() -> None:
    model = Model(512, 4, 4, 20)
    computed_once(model, list(range(210)))
    assert computed_once(model, list(range(210)), key=b"adapter") == (210, [])
    assert computed_once(model, list(range(210)), key=b"adapter")[0] == 1


def test_scores_compute_all_rows_that_they_ask_for() -> None:
    model = Model(512, 512, 4, 20)
    computed_once(model, list(range(200)))
    number = model.add(list(range(200)), 0, score=True)
    rows = model.step()
    assert [(r.first, r.count, r.num_outputs) for r in rows] == [(100, 100, 100)]
    model.finish_step(rows)
    assert number not in model.known


def test_equal_prompts_at_once_are_computed_once() -> None:
    model = Model(512, 8, 8, 100)
    for _ in range(4):
        model.add(list(range(300)), 0)
    count = 0
    while model.known:
        rows = model.step()
        count += sum(r.count for r in rows)
        model.finish_step(rows, retire=True)
    assert count == 300 + 3  # and of each the last token


def test_least_recently_used_goes_first_and_from_its_end() -> None:
    model = Model(512, 4, 4, 6)
    first, second = list(range(128)), list(range(500, 628))
    computed_once(model, first)
    computed_once(model, second)
    computed_once(model, first)  # used again
    computed_once(model, 192)
    assert model.scheduler.pages().num_idle <= 6
    assert computed_once(model, first)[0] == 1
    model = Model(512, 4, 4, 3)
    computed_once(model, first)
    computed_once(model, 100)
    assert computed_once(model, first)[0] == 64


def test_interactive_goes_before_background() -> None:
    model = Model(32, 8, 2, 100)
    model.add(100, 5, background=True)
    model.add(100, 5, background=True)
    model.finish_step(model.step())
    model.add(100, 5)
    rows = model.step()
    assert [(r.id, r.count) for r in rows] == [(2, 32)]  # it took the place of the second
    model.finish_step(rows)
    order = []
    while model.known:
        rows = model.step()
        model.finish_step(rows, retire=True)
        order += [number for number in (r.id for r in rows) if number not in model.known]
    assert order == [2, 0, 1]


def test_windows_let_pages_go() -> None:
    model = Model(64, 4, 4, 100, (0, 100))
    model.add(1000, 100)
    most = 0
    while model.known:
        rows = model.step()
        most = max(most, model.scheduler.pages(1).num_in_use)
        model.finish_step(rows, retire=True)
    assert most <= 4
    assert model.scheduler.pages(0).num_idle == 1099 // PAGE  # the last page has too few to be kept


def test_drafts_never_take_pages_in_use() -> None:
    model = Model(256, 64, 4, 2)
    model.add(60, 8)
    model.add(60, 1)
    model.finish_step(model.step())
    model.draft(0, [9] * 30)
    rows = {r.id: r for r in model.step()}
    assert rows[0].count == 4  # to the end of its page
    assert rows[1].count == 1
    model.finish_step(list(rows.values()), accepted=1)
    assert model.scheduler.num_computed(0) == 62


def test_states_are_kept_at_the_ends_of_chunks_and_of_full_pages() -> None:
    model = Model(512, 4, 4, 20, (0, STATE))
    number = model.add(list(range(600)), 3)
    rows = model.step()
    assert [page >= 0 for page in rows[0].pages[1]] == [False] * 7 + [True]
    model.finish_step(rows)
    assert [page >= 0 for page in model.scheduler.page_tables(number)[1]] == [False] * 7 + [True]
    rows = model.step()
    assert [page >= 0 for page in rows[0].pages[1]] == [False] * 7 + [True, True, True]
    model.finish_step(rows)
    # What it goes on from is its own; what others may go on from is in the index.
    assert [page >= 0 for page in model.scheduler.page_tables(number)[1]] == [False] * 9 + [True]
    assert (model.scheduler.pages(1).num_in_use, model.scheduler.pages(1).num_idle) == (1, 2)
    model.finish()


@pytest.mark.parametrize(("length", "reused"), [(400, 300), (301, 300), (300, 256), (257, 256), (256, 0), (200, 0)])
def test_a_state_is_reused_whole_or_not_at_all(length: int, reused: int) -> None:
    """It stands for 256 tokens, and for all 300; a leaf's tokens must all be there."""
    model = Model(512, 4, 4, 20, (STATE,))
    assert computed_once(model, list(range(300))) == (300, [])
    count, copies = computed_once(model, list(range(length)))
    assert (count, len(copies)) == (length - reused, 1 if reused % PAGE else 0)


def test_a_beginning_that_comes_again_gets_a_state() -> None:
    model = Model(512, 4, 4, 20, (0, STATE))
    begin = list(range(200))
    assert computed_once(model, [*begin, *[1] * 150])[0] == 350
    assert computed_once(model, [*begin, *[2] * 150])[0] == 350  # its keys and values are there, a state is not
    assert computed_once(model, [*begin, *[3] * 150])[0] == 350 - 192


def test_those_who_wait_for_the_same_beginning_find_a_state() -> None:
    model = Model(512, 8, 8, 100, (0, STATE))
    for i in range(4):
        model.add([*range(200), *[i] * 100], 0)
    count = 0
    while model.known:
        rows = model.step()
        count += sum(r.count for r in rows)
        model.finish_step(rows, retire=True)
    assert count == 300 + 3 * (300 - 192)


def test_sequences_with_states_get_no_drafts() -> None:
    model = Model(16, 4, 4, 20, (0, STATE))
    number = model.add(5, 10)
    model.finish_step(model.step())
    model.draft(number, [1, 2, 3])
    assert [(r.first, r.count) for r in model.step()] == [(5, 1)]

"""What the engine does not compute twice: shared beginnings, pages that leave and come back, drafts that come true."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine_fakes import PAGE, FakePlan, make_pieces, reference_generate
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError

V = 61
GREEDY = _core.SamplingParams(temperature=0)
TIMEOUT = 30.0


def engine_of(plan: FakePlan, **options: int) -> _core.Engine:
    return _core.Engine(plan, make_pieces(), **({"context": 1024} | options))  # type: ignore[arg-type]


def tokens_of(events: list[_core.Event]) -> list[int]:
    return [e.token for e in events if e.token is not None]


def prompt(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, V, length)]


def test_a_conversation_computes_only_what_is_new() -> None:
    plan = FakePlan(max_tokens=64)
    engine = engine_of(plan)
    first = prompt(7, 90)
    handle = engine.submit(first, max_tokens=5, sampling=GREEDY)
    answer = tokens_of(handle.events(TIMEOUT))
    second = first + answer + prompt(8, 20)
    plan.batches.clear()
    handle = engine.submit(second, max_tokens=5, sampling=GREEDY)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(second, 5, GREEDY)
    assert handle.timings.cached_tokens == 94  # the last token of the answer was chosen, and never computed
    assert plan.batches[0][0] == len(second) - 94

    # Another continuation of the same beginning, in the middle of a page.
    again = [*second[:90], 1, 2, 3]
    handle = engine.submit(again, max_tokens=5, sampling=GREEDY)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(again, 5, GREEDY)
    assert handle.timings.cached_tokens == 90
    stats = engine.stats()
    assert (stats.requests, stats.cached_tokens, stats.generated_tokens) == (3, 184, 15)
    assert stats.pages_in_use == 0
    assert stats.pages_cached == 3


def test_branches_share_their_trunk() -> None:
    engine = engine_of(FakePlan())
    base = prompt(9, 200)
    engine.submit(base, max_tokens=0).events(TIMEOUT)
    before = engine.stats().tokens
    handles = [engine.submit([*base, i], max_tokens=10, sampling=GREEDY) for i in range(4)]
    for i, handle in enumerate(handles):
        assert tokens_of(handle.events(TIMEOUT)) == reference_generate([*base, i], 10, GREEDY)
        assert handle.timings.cached_tokens == 192  # 8 tokens of the last page are too few to be kept
    assert engine.stats().tokens - before == 4 * (9 + 9)


def test_pages_give_way_and_are_computed_again() -> None:
    engine = engine_of(FakePlan(), kv_tokens=256)
    texts: list[list[int]] = [[] for _ in range(5)]
    for turn in range(3):
        for i, text in enumerate(texts):
            text += prompt(10 * turn + i, 30)
            handle = engine.submit(text, max_tokens=4, sampling=GREEDY)
            assert tokens_of(handle.events(TIMEOUT)) == reference_generate(text, 4, GREEDY)
    assert engine.stats().pages_in_use + engine.stats().pages_cached <= 4


def test_context_keys_keep_apart() -> None:
    engine = engine_of(FakePlan())
    for key, cached in ((b"", 0), (b"adapter", 0), (b"adapter", 99), (b"", 99)):
        handle = engine.submit(prompt(3, 100), max_tokens=2, sampling=GREEDY, context_key=key)
        handle.events(TIMEOUT)
        assert handle.timings.cached_tokens == cached


def test_pages_leave_and_enter_another_engine() -> None:
    tokens = prompt(4, 300)
    engine = engine_of(FakePlan())
    engine.submit(tokens, max_tokens=0).events(TIMEOUT)
    assert engine.cached_pages(tokens) == 4
    pages = engine.export_pages(tokens, 1, 10)
    assert [page.nbytes for page in pages] == [engine.page_bytes] * 3
    pages = engine.export_pages(tokens, 0, 10)

    other = engine_of(FakePlan())
    assert other.import_pages(tokens, 0, pages[:2]) == 2
    assert other.import_pages(tokens, 3, pages[3:]) == 2  # a gap: nothing that follows it
    assert other.import_pages(tokens, 0, [bytes(page) for page in pages]) == 4
    assert other.import_pages([*tokens[:64], *prompt(5, 200)], 0, pages) == 4  # whoever imports says what they are
    handle = other.submit(tokens, max_tokens=8, sampling=GREEDY)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(tokens, 8, GREEDY)
    assert handle.timings.cached_tokens == 256
    with pytest.raises(ArgumentError, match="a page of 100 bytes"):
        other.import_pages(tokens, 0, [bytes(100)])
    with pytest.raises(ArgumentError, match="negative"):
        other.import_pages(tokens, -1, pages)
    assert other.export_pages(prompt(6, 100), 0, 10) == []
    assert engine.kv_layout == other.kv_layout


def test_import_takes_no_page_that_is_in_use() -> None:
    plan = FakePlan()
    plan.hook = lambda tokens: time.sleep(0.003)  # it is still running when the pages come
    engine = engine_of(plan, kv_tokens=4 * PAGE)
    source = engine_of(FakePlan())
    tokens = prompt(4, 300)
    source.submit(tokens, max_tokens=0).events(TIMEOUT)
    pages = source.export_pages(tokens, 0, 4)
    running = engine.submit(prompt(5, 100), max_tokens=100, sampling=GREEDY)
    assert running.next(TIMEOUT) is not None
    assert engine.import_pages(tokens, 0, pages) <= 2
    assert len(tokens_of(running.events(TIMEOUT))) == 99


class RepeatingPlan(FakePlan):
    """Says again what followed the same token before, most of the time: a text for which drafts come true."""

    def run(self, tokens, positions, sequences, page_tables, output_rows, cancelled):  # type: ignore[no-untyped-def]
        logits = super().run(tokens, positions, sequences, page_tables, output_rows, cancelled)
        if logits is not None:
            for i, row in enumerate(output_rows):
                if positions[row] % 17:
                    logits[i, (int(tokens[row]) * 7 + 3) % V] += 20
        return logits


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(3, 12),
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 80), st.booleans(), st.integers(0, 30)), min_size=1, max_size=5),
)
def test_drafts_change_no_token(
    max_tokens: int, max_outputs: int, pages: int, wanted: list[tuple[int, int, bool, int]]
) -> None:
    engine = engine_of(RepeatingPlan(V, max_tokens, max_outputs), kv_tokens=pages * PAGE)
    alone = engine_of(RepeatingPlan())
    jobs = []
    for i, (length, count, greedy, draft) in enumerate(wanted):
        params = GREEDY if greedy else _core.SamplingParams(seed=i, top_k=5, repetition_penalty=1.1, temperature=0.5)
        stops = {"stop_ids": [11], "stop_strings": ["z"]} if i % 2 else {}
        options = {"max_tokens": count, "sampling": params, "top_logprobs": 2, **stops}
        expected = alone.submit(prompt(i, length), draft_tokens=0, **options).events(TIMEOUT)  # type: ignore[arg-type]
        handle = engine.submit(prompt(i, length), draft_tokens=draft, **options)  # type: ignore[arg-type]
        jobs.append((handle, expected))
    for handle, expected in jobs:
        events = handle.events(TIMEOUT)
        assert [(e.token, e.logprob, e.top_logprobs) for e in events] == [
            (e.token, e.logprob, e.top_logprobs) for e in expected
        ]
        assert "".join(e.text for e in events) == "".join(e.text for e in expected)
        assert (events[-1].finish_reason, events[-1].stop) == (expected[-1].finish_reason, expected[-1].stop)
        assert 0 <= handle.timings.accepted_tokens <= handle.timings.draft_tokens
    engine.close()
    alone.close()


def test_right_drafts_save_runs() -> None:
    engine = engine_of(RepeatingPlan(max_tokens=512, max_outputs=64))
    handle = engine.submit(prompt(1, 10), max_tokens=400, sampling=GREEDY, draft_tokens=16)
    assert len(tokens_of(handle.events(TIMEOUT))) == 400
    assert handle.timings.accepted_tokens > 200
    assert engine.stats().runs < 200


def test_a_full_context_can_forget_its_middle() -> None:
    engine = engine_of(FakePlan(), context=100)
    ended = engine.submit(prompt(1, 60), sampling=GREEDY).events(TIMEOUT)
    assert (len(tokens_of(ended)), ended[-1].finish_reason) == (40, "length")
    shifted = engine.submit(prompt(1, 60), max_tokens=200, sampling=GREEDY, shift_context=True).events(TIMEOUT)
    tokens = tokens_of(shifted)
    assert (len(tokens), shifted[-1].finish_reason) == (200, "length")
    assert tokens[:40] == tokens_of(ended)
    # The first quarter of the context and its last half are what the model sees then.
    history = prompt(1, 60) + tokens[:40]
    assert tokens[40:65] == reference_generate(history[:25] + history[50:], 25, GREEDY)

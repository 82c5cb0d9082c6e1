"""A second model that guesses ahead: it changes no token, and neither its errors nor its lack of memory reach a request."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
from engine_fakes import PAGE, FakePlan, make_pieces, reference_generate
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError, SternaError

V = 61
GREEDY = _core.SamplingParams(temperature=0)
TIMEOUT = 30.0


def engine_of(plan: FakePlan, draft: FakePlan | None = None, **options: int) -> _core.Engine:
    return _core.Engine(plan, make_pieces(), draft=draft, **({"context": 1024} | options))  # type: ignore[arg-type]


def tokens_of(events: list[_core.Event]) -> list[int]:
    return [e.token for e in events if e.token is not None]


def prompt(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, V, length)]


def sampling(seed: int) -> _core.SamplingParams:
    if seed % 2:
        return GREEDY
    return _core.SamplingParams(seed=seed, top_k=5, repetition_penalty=1.1, frequency_penalty=0.3, temperature=0.7)


def wrong_plan(**sizes: int) -> FakePlan:
    """Every guess of it is another token."""
    plan = FakePlan(**sizes)

    def turn(logits: npt.NDArray[np.float32], tables: list[list[int]]) -> None:
        logits[:] = -logits

    plan.change = turn
    return plan


def sometimes_right_plan(**sizes: int) -> FakePlan:
    plan = FakePlan(**sizes)

    def turn(logits: npt.NDArray[np.float32], tables: list[list[int]]) -> None:
        for row in logits:
            if row[0] > 0:
                row[:] = np.roll(row, 1)

    plan.change = turn
    return plan


class FailingPlan(FakePlan):
    """Raises, or makes NaN, in every `every`-th run."""

    def __init__(self, every: int, nan: bool) -> None:
        super().__init__()
        self.every, self.nan = every, nan

    def run(self, tokens, positions, sequences, page_tables, output_rows, cancelled):  # type: ignore[no-untyped-def]
        logits = super().run(tokens, positions, sequences, page_tables, output_rows, cancelled)
        if len(self.batches) % self.every == 0:
            if not self.nan:
                raise RuntimeError("the draft model is broken")
            logits[:] = np.nan
        return logits


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_model_is_always_right(seed: int) -> None:
    plan, draft = FakePlan(max_tokens=64, max_outputs=16), FakePlan(max_tokens=40)
    engine = engine_of(plan, draft)
    tokens = prompt(1, 150)  # several chunks of the draft model
    handle = engine.submit(tokens, max_tokens=200, sampling=sampling(seed), draft_tokens=7)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(tokens, 200, sampling(seed))
    timings = handle.timings
    assert timings.accepted_tokens == timings.draft_tokens > 150
    assert engine.stats().runs < 45
    # Of a row that the target computes, the draft model computes each once, and no more.
    assert sum(rows for rows, _, _ in draft.batches) <= 150 + 200


def test_the_next_turn_of_a_conversation_is_known_to_the_draft_model() -> None:
    draft = FakePlan(max_tokens=400)
    engine = engine_of(FakePlan(max_outputs=16), draft)
    text = prompt(1, 300)
    text += tokens_of(engine.submit(text, max_tokens=30, sampling=GREEDY, draft_tokens=4).events(TIMEOUT))
    draft.batches.clear()
    again = [*text, *prompt(2, 20)]
    handle = engine.submit(again, max_tokens=10, sampling=GREEDY, draft_tokens=4)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(again, 10, GREEDY)
    assert handle.timings.accepted_tokens == handle.timings.draft_tokens > 0
    assert draft.batches[0][0] < PAGE  # of 351


def make_draft(kind: str, **sizes: int) -> FakePlan:
    match kind:
        case "same":
            return FakePlan(**sizes)
        case "sometimes":
            return sometimes_right_plan(**sizes)
        case "wrong":
            return wrong_plan(**sizes)
        case _:
            return FailingPlan(5, nan=kind == "nan")


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["same", "same", "sometimes", "wrong", "raises", "nan"]),
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(3, 12)),
    st.tuples(st.integers(1, 33), st.integers(1, 5), st.integers(0, 12)),
    st.lists(
        st.tuples(st.integers(1, 110), st.integers(1, 80), st.sampled_from([None, 0, 1, 5, 30]), st.booleans()),
        min_size=1,
        max_size=5,
    ),
)
def test_drafts_change_no_token(
    kind: str,
    sizes: tuple[int, int, int],
    draft_sizes: tuple[int, int, int],
    wanted: list[tuple[int, int, int | None, bool]],
) -> None:
    max_tokens, max_outputs, pages = draft_sizes
    draft = make_draft(kind, max_tokens=max_tokens, max_outputs=max_outputs, max_pages=pages)
    engine = engine_of(FakePlan(V, sizes[0], sizes[1]), draft, kv_tokens=sizes[2] * PAGE)
    alone = engine_of(FakePlan())
    jobs = []
    for i, (length, count, number, cancel) in enumerate(wanted):
        tokens = ((prompt(99, 70) if i % 3 else []) + prompt(i, 110))[:length]
        stops = {"stop_ids": [11], "stop_strings": ["z"]} if i % 2 else {}
        options = {"max_tokens": count, "sampling": sampling(i), "top_logprobs": 2, **stops}
        expected = alone.submit(tokens, draft_tokens=0, **options).events(TIMEOUT)  # type: ignore[arg-type]
        handle = engine.submit(tokens, draft_tokens=number, **options)  # type: ignore[arg-type]
        jobs.append((handle, expected, cancel and i % 2 == 0))
    for handle, expected, cancel in jobs:
        if cancel:
            first = handle.next(0.002)
            handle.cancel()
            got = tokens_of([*([first] if first else []), *handle.events(TIMEOUT)])
            assert got == tokens_of(expected)[: len(got)]
            continue
        events = handle.events(TIMEOUT)
        assert [(e.token, e.logprob, e.top_logprobs) for e in events] == [
            (e.token, e.logprob, e.top_logprobs) for e in expected
        ]
        assert "".join(e.text for e in events) == "".join(e.text for e in expected)
        assert (events[-1].finish_reason, events[-1].stop) == (expected[-1].finish_reason, expected[-1].stop)
        assert 0 <= handle.timings.accepted_tokens <= handle.timings.draft_tokens
        if kind == "wrong" and handle.timings.prompt_tokens < 4:
            assert handle.timings.accepted_tokens < len(tokens_of(events))
    assert engine.stats().pages_in_use == 0
    engine.close()
    alone.close()


class StepClock:
    """Goes on while plans run, by what they are said to take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def time(self, plan: FakePlan, each_run: float, each_row: float) -> FakePlan:
        def go_on(tokens: list[int]) -> None:
            self.seconds += each_run + each_row * len(tokens)

        plan.hook = go_on
        return plan


def guesses(draft: FakePlan, draft_seconds: float) -> list[tuple[int, int]]:
    """Of two requests one after the other, how many tokens are guessed and how many of them are right."""
    clock = StepClock()
    plan = clock.time(FakePlan(max_outputs=64), 1.0, 0.02)
    engine = engine_of(plan, clock.time(draft, draft_seconds, 0.0), step_clock=clock)
    found = []
    for seed, count in ((1, 300), (2, 100)):
        handle = engine.submit(prompt(seed, 20), max_tokens=count, sampling=GREEDY)
        assert tokens_of(handle.events(TIMEOUT)) == reference_generate(prompt(seed, 20), count, GREEDY)
        found.append((handle.timings.draft_tokens, handle.timings.accepted_tokens))
    engine.close()
    return found


def test_the_right_number_of_guesses_is_found() -> None:
    """Nothing but the clock and what came true decides: the numbers are the same in each run."""
    right, dear, wrong = guesses(FakePlan(), 0.05), guesses(FakePlan(), 1.5), guesses(wrong_plan(), 0.05)
    print(right, dear, wrong)
    assert right == guesses(FakePlan(), 0.05)
    assert all(accepted == drafted for drafted, accepted in right)
    assert right[0][1] > 250 and right[1][1] > 80
    # A step that takes longer than the model's own pays for nothing; now and then it is tried whether that still holds.
    assert sum(drafted for drafted, _ in dear) <= 10
    # What was learnt from wrong guesses holds for the next request, too.
    assert wrong[0][0] < 60 and wrong[1][0] < 30
    assert [accepted for _, accepted in wrong] == [0, 0]


def test_a_request_can_do_without() -> None:
    draft = FakePlan()
    engine = engine_of(FakePlan(), draft)
    engine.submit(prompt(1, 20), max_tokens=20, sampling=GREEDY, draft_tokens=0).events(TIMEOUT)
    assert draft.batches == []


def test_a_draft_ends_before_a_stop_token() -> None:
    tokens = prompt(1, 20)
    text = reference_generate(tokens, 30, GREEDY)
    engine = engine_of(FakePlan(max_outputs=64), FakePlan())
    handle = engine.submit(tokens, sampling=GREEDY, stop_ids=[text[20]], draft_tokens=64)
    expected = text[: text.index(text[20])]
    assert tokens_of(handle.events(TIMEOUT)) == expected
    assert handle.timings.draft_tokens == handle.timings.accepted_tokens <= len(expected)


def test_a_mask_may_forbid_what_was_guessed() -> None:
    def only_even(generated: list[int], allowed: npt.NDArray[np.uint64]) -> None:
        allowed &= np.uint64(0x5555555555555555)

    tokens = prompt(1, 20)
    texts = []
    for draft in (None, FakePlan()):
        engine = engine_of(FakePlan(max_outputs=16), draft)
        handle = engine.submit(tokens, max_tokens=60, sampling=GREEDY, mask=only_even, draft_tokens=5)
        texts.append(tokens_of(handle.events(TIMEOUT)))
    assert texts[0] == texts[1]
    assert all(token % 2 == 0 for token in texts[0])


def test_a_context_that_forgets_its_middle_is_followed() -> None:
    results = []
    for draft in (None, FakePlan()):
        engine = engine_of(FakePlan(max_outputs=16), draft, context=200)
        handle = engine.submit(prompt(1, 60), max_tokens=500, sampling=GREEDY, shift_context=True, draft_tokens=6)
        results.append(tokens_of(handle.events(TIMEOUT)))
        if draft:
            assert handle.timings.accepted_tokens == handle.timings.draft_tokens > 300
    assert results[0] == results[1]


def test_pages_of_the_draft_model_come_back() -> None:
    engine = engine_of(FakePlan(max_outputs=16), FakePlan(max_pages=4))
    for i in range(12):
        handle = engine.submit(prompt(i, 100), max_tokens=60, sampling=GREEDY, draft_tokens=5)
        if i % 3 == 2:
            handle.next(TIMEOUT)
            handle.cancel()
            handle.events(TIMEOUT)
            continue
        handle.events(TIMEOUT)
        assert handle.timings.accepted_tokens == handle.timings.draft_tokens > 40


def test_who_waits_gives_pages_of_the_draft_model_back() -> None:
    """One sequence at a time, and pages of the draft model for one: the second has what the first, preempted, held."""
    draft = FakePlan(max_pages=3)
    engine = engine_of(FakePlan(max_outputs=16), draft, max_sequences=1)
    first = engine.submit(prompt(1, 130), max_tokens=300, sampling=GREEDY, draft_tokens=2, background=True)
    for _ in range(20):
        assert first.next(TIMEOUT)
    second = engine.submit(prompt(2, 130), max_tokens=50, sampling=GREEDY, draft_tokens=2)
    assert tokens_of(second.events(TIMEOUT)) == reference_generate(prompt(2, 130), 50, GREEDY)
    assert second.timings.accepted_tokens == second.timings.draft_tokens > 20
    first.cancel()
    first.events(TIMEOUT)
    assert engine.stats().preemptions == 1


class MisleadingPlan(FakePlan):
    """Says the same ten tokens over and over, and after them each time another one."""

    def run(self, tokens, positions, sequences, page_tables, output_rows, cancelled):  # type: ignore[no-untyped-def]
        logits = super().run(tokens, positions, sequences, page_tables, output_rows, cancelled)
        for row, position in zip(logits, positions[output_rows] + 1, strict=True):
            row[position // 11 % 50 if position % 11 == 10 else 50 + position % 11] = 100.0
        return logits


def test_matches_that_mislead_give_way_to_the_draft_model() -> None:
    wrong = []
    for draft in (None, MisleadingPlan()):
        engine = engine_of(MisleadingPlan(max_outputs=16), draft)
        handle = engine.submit(prompt(1, 5), max_tokens=400, sampling=GREEDY, draft_tokens=10)
        handle.events(TIMEOUT)
        wrong.append(handle.timings.draft_tokens - handle.timings.accepted_tokens)
    assert wrong[0] > 100
    assert wrong[1] < 60


def test_a_request_that_is_too_long_for_the_draft_model_runs_without() -> None:
    engine = engine_of(FakePlan(max_outputs=16), FakePlan(max_pages=2))
    handle = engine.submit(prompt(1, 100), max_tokens=60, sampling=GREEDY, draft_tokens=5)
    assert tokens_of(handle.events(TIMEOUT)) == reference_generate(prompt(1, 100), 60, GREEDY)
    assert 0 < handle.timings.draft_tokens < 40
    handle = engine.submit(prompt(1, 10), max_tokens=60, sampling=GREEDY, draft_tokens=5)
    handle.events(TIMEOUT)
    assert handle.timings.draft_tokens > 40


@pytest.mark.parametrize("end", ["cancel", "close", "timeout"])
def test_a_draft_model_that_takes_long_is_interrupted(end: str) -> None:
    draft = FakePlan()
    draft.wait_for = threading.Event()  # it computes until it is told to stop
    engine = engine_of(FakePlan(), draft)
    timeout = 0.2 if end == "timeout" else None
    handle = engine.submit(prompt(1, 10), max_tokens=50, sampling=GREEDY, draft_tokens=4, timeout=timeout)
    assert draft.in_run.wait(TIMEOUT)
    if end == "cancel":
        handle.cancel()
        assert handle.events(TIMEOUT)[-1].finish_reason == "cancelled"
    else:
        if end == "close":
            engine.close()
        with pytest.raises(SternaError, match="closed" if end == "close" else "timeout"):
            handle.events(TIMEOUT)
    assert draft.seen_cancel


def test_a_plan_is_no_draft_of_its_own() -> None:
    plan = FakePlan()
    with pytest.raises(ArgumentError, match="a plan of its own"):
        engine_of(plan, plan)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ArgumentError, match="vocabulary of 60, the model one of 61"):
        engine_of(FakePlan(), FakePlan(60))

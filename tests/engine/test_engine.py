"""The engine over a fake model: the same tokens whatever the company, sessions, limits, errors, threads."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from engine_fakes import FakePlan, make_pieces, reference_generate, reference_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError, ContextOverflowError, MemoryBudgetError, NumericError, SternaError

V = 61
GREEDY = _core.SamplingParams(temperature=0)
TIMEOUT = 30.0


def engine_of(plan: FakePlan, **options: int) -> _core.Engine:
    return _core.Engine(plan, make_pieces(), **({"context": 512} | options))  # type: ignore[arg-type]


def tokens_of(events: list[_core.Event]) -> list[int]:
    return [e.token for e in events if e.token is not None]


def prompt(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, V, length)]


def settled(engine: _core.Engine) -> _core.EngineStats:
    """The counts once nothing runs any more."""
    deadline = time.monotonic() + TIMEOUT
    while (stats := engine.stats()).running + stats.waiting and time.monotonic() < deadline:
        time.sleep(0.002)
    return stats


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(5, 20),
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 30), st.booleans()), min_size=1, max_size=6),
)
def test_same_tokens_in_any_company(
    max_tokens: int, max_outputs: int, max_sequences: int, pages: int, wanted: list[tuple[int, int, bool]]
) -> None:
    """Chunk sizes, batches and page pressure (with preemption) never change a token."""
    engine = engine_of(FakePlan(V, max_tokens, max_outputs), max_sequences=max_sequences, kv_tokens=pages * 64)
    jobs = []
    for i, (length, count, greedy) in enumerate(wanted):
        params = GREEDY if greedy else _core.SamplingParams(seed=i, top_k=30, repetition_penalty=1.2)
        handle = engine.submit(prompt(i, length), max_tokens=count, sampling=params, choice=i)
        jobs.append((handle, reference_generate(prompt(i, length), count, params, choice=i)))
    for handle, expected in jobs:
        events = handle.events(TIMEOUT)
        assert tokens_of(events) == expected
        assert events[-1].finish_reason == "length"
    assert settled(engine).pages_in_use == 0
    engine.close()


def test_events_text_and_timings() -> None:
    engine = engine_of(FakePlan())
    handle = engine.submit(prompt(1, 40), max_tokens=12, sampling=GREEDY, top_logprobs=3)
    events = []
    while (event := handle.next(TIMEOUT)) is not None:
        events.append(event)
    assert handle.next(0.0) is None
    tokens = tokens_of(events)
    assert len(events) == 13
    assert events[-1].token is None
    assert "".join(e.text for e in events) == make_pieces().decode(tokens)
    known = prompt(1, 40)
    for event in events[:-1]:
        row = _core.log_softmax(reference_logits(known, V))
        assert event.token is not None
        assert event.logprob == pytest.approx(float(row[event.token]), abs=1e-6)
        assert [t for t, _ in event.top_logprobs] == np.argsort(-row, kind="stable")[:3].tolist()
        known.append(event.token)
    timings = handle.timings
    assert (timings.prompt_tokens, timings.cached_tokens, timings.generated_tokens) == (40, 0, 12)
    assert min(timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds) >= 0
    assert handle.finished
    plain = engine.submit(prompt(1, 40), max_tokens=2, sampling=GREEDY).events(TIMEOUT)
    assert plain[0].logprob is None
    assert plain[0].top_logprobs == []


def test_stop_token_and_stop_string() -> None:
    engine = engine_of(FakePlan())
    free = tokens_of(engine.submit([5], max_tokens=20, sampling=GREEDY).events(TIMEOUT))
    at = next(i for i in range(3, 20) if free[i] not in free[:i])
    events = engine.submit([5], max_tokens=20, sampling=GREEDY, stop_ids=[free[at], 60]).events(TIMEOUT)
    assert tokens_of(events) == free[:at]
    assert (events[-1].finish_reason, events[-1].stop) == ("stop", free[at])

    text = make_pieces().decode(free)
    stop = text[4:10]  # several tokens long
    events = engine.submit([5], max_tokens=20, sampling=GREEDY, stop_strings=[stop, "never"]).events(TIMEOUT)
    assert "".join(e.text for e in events) == text[: text.find(stop)]
    assert (events[-1].finish_reason, events[-1].stop) == ("stop", stop)
    assert all(stop[:1] not in e.text or not e.text.endswith(stop[:1]) for e in events[:-1])


def test_context() -> None:
    engine = engine_of(FakePlan(), context=70)
    events = engine.submit(prompt(2, 60), sampling=GREEDY).events(TIMEOUT)
    assert len(tokens_of(events)) == 10
    assert events[-1].finish_reason == "length"
    assert len(tokens_of(engine.submit(prompt(2, 69), max_tokens=9, sampling=GREEDY).events(TIMEOUT))) == 1
    with pytest.raises(ContextOverflowError, match="70 tokens; the context holds 70"):
        engine.submit(prompt(2, 70))
    with pytest.raises(ContextOverflowError, match="71 tokens; the context holds 70"):
        engine.submit_score(prompt(2, 71))
    assert engine.submit(prompt(2, 70), max_tokens=0).events(TIMEOUT)[-1].finish_reason == "length"


def test_pool_smaller_than_the_context() -> None:
    engine = engine_of(FakePlan(), context=512, kv_tokens=128)
    with pytest.raises(MemoryBudgetError, match="129 tokens; the KV cache holds 128"):
        engine.submit(prompt(3, 129))
    assert len(tokens_of(engine.submit(prompt(3, 100)).events(TIMEOUT))) == 28


def test_plan_without_room_for_pages() -> None:
    plan = FakePlan(max_pages=2)
    engine = engine_of(plan)
    fits = engine.submit(prompt(4, 100), max_tokens=20, sampling=GREEDY)
    assert tokens_of(fits.events(TIMEOUT)) == reference_generate(prompt(4, 100), 20, GREEDY)
    with pytest.raises(MemoryBudgetError, match="2 pages"):
        engine.submit(prompt(4, 100), max_tokens=50).events(TIMEOUT)
    assert settled(engine).page_limit == 2
    with pytest.raises(MemoryBudgetError, match="holds 128"):
        engine.submit(prompt(4, 200))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "no tokens"),
        ({"tokens": [1, V]}, f"token {V} at position 1"),
        ({"tokens": [-1]}, "token -1 at position 0"),
        ({"tokens": [2**31]}, "2147483648 is no token"),
        ({"tokens": [1.5]}, "must be integers"),
        ({"tokens": "abc"}, "list of integers"),
        ({"tokens": [[1], [2]]}, "list of integers"),
        ({"tokens": [1], "max_tokens": -1}, "max_tokens is -1"),
        ({"tokens": [1], "top_logprobs": -1}, "top_logprobs"),
        ({"tokens": [1], "top_logprobs": V + 1}, "top_logprobs"),
        ({"tokens": [1], "stop_strings": [""]}, "empty"),
        ({"tokens": [1], "sampling": _core.SamplingParams(top_p=2.0)}, "top_p"),
    ],
)
def test_refused_requests(arguments: dict[str, object], message: str) -> None:
    engine = engine_of(FakePlan())
    with pytest.raises(ArgumentError, match=message):
        engine.submit(**arguments)  # type: ignore[arg-type]
    assert engine.stats().waiting == 0


@pytest.mark.parametrize("options", [{"context": 1}, {"max_sequences": 0}, {"kv_tokens": 0}, {"kv_tokens": 2**31}])
def test_refused_options(options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        engine_of(FakePlan(), **options)


@pytest.mark.parametrize("max_outputs", [1, 3, 50])
@pytest.mark.parametrize("positions_from", [0, 10, 38])
def test_scores(max_outputs: int, positions_from: int) -> None:
    engine = engine_of(FakePlan(max_outputs=max_outputs))
    tokens = prompt(6, 40)
    rows = np.stack([reference_logits(tokens[: i + 1], V) for i in range(40)])
    scores = engine.submit_score(tokens, positions_from=positions_from).scores(TIMEOUT)
    want = [_core.log_softmax(rows[i])[tokens[i + 1]] for i in range(positions_from, 39)]
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array(want, np.float32))
    logits = engine.submit_score(tokens, positions_from=positions_from, logits=True).scores(TIMEOUT)
    np.testing.assert_array_equal(logits, rows[positions_from:])
    assert settled(engine).pages_in_use == 0


def test_refused_scores() -> None:
    engine = engine_of(FakePlan())
    for tokens, start in (([1], 0), ([1, 2], 1), ([1, 2], -1)):
        with pytest.raises(ArgumentError, match="positions_from"):
            engine.submit_score(tokens, positions_from=start)
    with pytest.raises(ArgumentError, match="no scores"):
        engine.submit([1], max_tokens=1).scores(TIMEOUT)


def test_cancel_in_prefill_reaches_the_plan() -> None:
    plan = FakePlan()
    plan.wait_for = threading.Event()
    engine = engine_of(plan)
    handle = engine.submit(prompt(11, 100))
    assert plan.in_run.wait(TIMEOUT)
    handle.cancel()
    events = handle.events(TIMEOUT)
    assert [e.finish_reason for e in events] == ["cancelled"]
    assert plan.seen_cancel
    plan.wait_for = None
    assert settled(engine).pages_in_use == 0
    assert tokens_of(engine.submit([4], max_tokens=3, sampling=GREEDY).events(TIMEOUT)) == reference_generate(
        [4], 3, GREEDY
    )


def test_cancel_in_prefill_does_not_touch_the_others() -> None:
    plan = FakePlan()
    engine = engine_of(plan)
    other = engine.submit(prompt(12, 5), max_tokens=200, sampling=GREEDY)
    assert other.next(TIMEOUT) is not None
    for i in range(10):
        engine.submit(prompt(i, 400)).cancel()
    assert len(tokens_of(other.events(TIMEOUT))) == 199
    again = engine.submit(prompt(12, 5), max_tokens=200, sampling=GREEDY).events(TIMEOUT)
    assert tokens_of(again) == reference_generate(prompt(12, 5), 200, GREEDY)


def test_dropping_the_handle_cancels() -> None:
    engine = engine_of(FakePlan())
    handle = engine.submit([1], sampling=GREEDY)
    assert handle.next(TIMEOUT) is not None
    del handle
    gc.collect()
    assert settled(engine).pages_in_use == 0
    assert engine.stats().tokens < 512


def test_timeouts() -> None:
    plan = FakePlan()
    plan.wait_for = threading.Event()
    engine = engine_of(plan)
    handle = engine.submit([1, 2], max_tokens=1)
    start = time.monotonic()
    assert handle.next(0.05) is None
    with pytest.raises(TimeoutError):
        handle.events(0.05)
    assert time.monotonic() - start < 5
    plan.wait_for.set()
    assert len(handle.events(TIMEOUT)) == 2


def test_plan_errors_end_their_requests_only() -> None:
    plan = FakePlan()

    def fail(tokens: list[int]) -> None:
        if 33 in tokens:
            raise RuntimeError("the device fell off")

    plan.hook = fail
    engine = engine_of(plan)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the device fell off"):
            engine.submit([1, 33] * 40).events(TIMEOUT)
        assert engine.stats().pages_cached == 0
        assert engine.submit([1, 2], max_tokens=0).events(TIMEOUT)[-1].finish_reason == "length"
    assert settled(engine).pages_in_use == 0


def test_nan_ends_one_sequence() -> None:
    plan = FakePlan(max_outputs=8)
    engine = engine_of(plan)
    good = engine.submit(prompt(13, 10), max_tokens=300, sampling=GREEDY)
    assert good.next(TIMEOUT) is not None

    def change(logits: npt.NDArray[np.float32], tables: list[list[int]]) -> None:
        if len(tables) == 2 and len(logits) == 2:
            logits[int(tables[0][0] == 0), 17] = np.nan  # page 0 is the first one's

    plan.change = change
    plan.wait_for = threading.Event()  # the first one must not be done before the second has come
    bad = engine.submit([3], max_tokens=5, sampling=GREEDY)
    plan.wait_for.set()
    with pytest.raises(NumericError, match=r"token 17 is NaN; the first such value is value_of_row_\d"):
        bad.events(TIMEOUT)
    plan.change = None
    assert len(tokens_of(good.events(TIMEOUT))) == 299


def test_masks_in_company() -> None:
    engine = engine_of(FakePlan())

    def only(token: int) -> npt.NDArray[np.uint64]:
        return np.array([1 << token], np.uint64)

    def alternate(generated: list[int], allowed: npt.NDArray[np.uint64]) -> None:
        allowed[0] = 1 << (len(generated) % 2)

    def broken(generated: list[int], allowed: npt.NDArray[np.uint64]) -> None:
        raise KeyError("grammar")

    handles = [engine.submit([1], max_tokens=6, mask=m) for m in (only(7), alternate, broken, None)]
    assert tokens_of(handles[0].events(TIMEOUT)) == [7] * 6
    assert tokens_of(handles[1].events(TIMEOUT)) == [0, 1, 0, 1, 0, 1]
    with pytest.raises(KeyError, match="grammar"):
        handles[2].events(TIMEOUT)
    assert len(tokens_of(handles[3].events(TIMEOUT))) == 6


def test_sixteen_threads() -> None:
    engine = engine_of(FakePlan(max_tokens=64, max_outputs=16), max_sequences=8, kv_tokens=2048)
    wrong: list[object] = []

    def work(n: int) -> None:
        try:
            for i in range(4):
                seed = 100 * n + i
                params = _core.SamplingParams(seed=seed)
                handle = engine.submit(prompt(seed, 1 + seed % 90), max_tokens=8, sampling=params)
                if i == 2:
                    handle.cancel()
                    handle.events(TIMEOUT)
                elif tokens_of(handle.events(TIMEOUT)) != reference_generate(prompt(seed, 1 + seed % 90), 8, params):
                    wrong.append(seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert settled(engine).pages_in_use == 0


def test_close_ends_what_runs() -> None:
    plan = FakePlan()
    plan.wait_for = threading.Event()
    engine = engine_of(plan)
    handle = engine.submit(prompt(14, 100))
    assert plan.in_run.wait(TIMEOUT)
    start = time.monotonic()
    engine.close()
    assert time.monotonic() - start < 5
    engine.close()
    assert engine.closed
    with pytest.raises(SternaError, match="closed"):
        handle.events(TIMEOUT)
    with pytest.raises(SternaError, match="closed"):
        engine.submit([1])
    with pytest.raises(SternaError, match="closed"):
        engine.export_pages([1] * 64, 0, 1)


def test_close_frees_the_plan() -> None:
    plan = FakePlan()
    references = sys.getrefcount(plan)
    engine = engine_of(plan)
    engine.submit([1], max_tokens=1).events(TIMEOUT)
    assert sys.getrefcount(plan) > references
    engine.close()
    assert sys.getrefcount(plan) == references


def test_ctrl_c_is_seen_while_waiting() -> None:
    plan = FakePlan()
    plan.wait_for = threading.Event()
    engine = engine_of(plan)
    handle = engine.submit([1, 2])
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        handle.events(TIMEOUT)
    assert time.monotonic() - start < 5
    plan.wait_for.set()


def _use_in_child(engine: _core.Engine, handle: _core.RequestHandle, out: object) -> None:
    messages = []
    pages = engine.page_bytes, engine.kv_layout  # constants: no error
    assert all(pages)
    for call in (
        lambda: engine.submit([1]),
        handle.next,
        lambda: engine.cached_pages([1]),
        lambda: engine.export_pages([1], 0, 1),
        engine.stats,
    ):
        try:
            call()
        except SternaError as error:
            messages.append(str(error))
    out.send(messages)  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_gets_a_clean_error() -> None:
    engine = engine_of(FakePlan())
    handle = engine.submit(prompt(15, 50), sampling=GREEDY)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(False)
    child = context.Process(target=_use_in_child, args=(engine, handle, send))
    child.start()
    assert receive.poll(TIMEOUT)
    messages = receive.recv()
    child.join(TIMEOUT)
    assert child.exitcode == 0
    assert len(messages) == 5
    assert all("fork" in m for m in messages)
    assert len(tokens_of(handle.events(TIMEOUT))) == 462


def test_interpreter_exit_with_live_streams() -> None:
    """Open engines, running requests and waiting daemon threads at the end of the program."""
    program = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from engine_fakes import FakePlan, make_pieces
from sterna import _core
engine = _core.Engine(FakePlan(), make_pieces(), context=100_000)
handles = [engine.submit([i + 1]) for i in range(4)]
def wait(handle):
    try:
        handle.events()
    except Exception:
        pass
for handle in handles[:3]:
    threading.Thread(target=wait, args=(handle,), daemon=True).start()
handles[3].next()
print("ready", flush=True)
"""
    folder = str(Path(__file__).parent)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")

"""How requests stand to each other: priorities, deadlines, a bounded queue, a full context, and what the engine counts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
import sterna

GREEDY = {"temperature": 0.0, "ignore_eos": True}


def tokens_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, length).tolist()


def test_a_deadline_ends_a_request_and_only_that(llm: sterna.LLM) -> None:
    other = llm.stream(tokens_of(30, 1), max_tokens=200, **GREEDY)
    with pytest.raises(sterna.DeadlineError, match=r"timeout of 0.000001 s; 0 tokens") as caught:
        llm.generate(tokens_of(400, 2), timeout=1e-6, **GREEDY)
    assert isinstance(caught.value, TimeoutError)
    assert len("".join(other)) > 0
    assert other.completion.finish_reason == "length"
    assert len(llm.generate(tokens_of(10, 3), max_tokens=5, timeout=60, **GREEDY).tokens) == 5


def test_a_deadline_while_waiting_and_in_a_stream(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=100_000, max_sequences=1, threads=1) as llm:
        first = llm.stream([5], timeout=0.5, **GREEDY)
        next(first)
        begin = time.monotonic()
        with pytest.raises(sterna.DeadlineError):
            llm.generate([6], timeout=0.05, **GREEDY)
        assert time.monotonic() - begin < 5
        with pytest.raises(sterna.DeadlineError, match="tokens were generated"):
            list(first)
        assert len(first.completion.tokens) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout is 0, must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": "1"}, "timeout is '1'"),
        ({"priority": "high"}, "priority is 'high', must be one of interactive, background"),
        ({"context_overflow": "drop"}, "context_overflow is 'drop', must be one of stop, shift"),
        ({"draft_tokens": -1}, "draft_tokens is -1"),
        ({"draft_tokens": 1.5}, "draft_tokens is 1.5"),
    ],
)
def test_wrong_terms(llm: sterna.LLM, options: dict[str, object], message: str) -> None:
    for call in (llm.generate, llm.stream, llm.chat):
        with pytest.raises(sterna.ArgumentError, match=message):
            call("ba", **options)  # type: ignore[operator]


def test_unknown_terms_are_told(llm: sterna.LLM) -> None:
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        llm.generate("ba", priorty="background")  # type: ignore[call-overload]


def test_a_full_queue_refuses_and_a_list_waits(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=512, max_sequences=1, max_waiting=2, threads=1) as llm:
        prompts = [tokens_of(10, seed) for seed in range(12)]
        results = llm.generate(prompts, max_tokens=4, **GREEDY)
        assert [r.tokens for r in results] == [llm.generate(p, max_tokens=4, **GREEDY).tokens for p in prompts]
        assert len(asyncio.run(llm.agenerate(prompts, max_tokens=4, **GREEDY))) == 12

        streams = []
        with pytest.raises(sterna.QueueFullError, match="waiting already"):  # noqa: PT012 - which one depends on time
            for seed in range(6):
                streams.append(llm.stream(tokens_of(400, seed), **GREEDY))
        with pytest.raises(sterna.QueueFullError):
            llm.generate([[5], [6]], **GREEDY)
        for stream in streams:
            stream.close()
    for wrong in (0, -1, 1.5):
        with pytest.raises(sterna.ArgumentError, match="max_waiting"):
            sterna.load(tiny_path, max_waiting=wrong)  # type: ignore[arg-type]


def test_background_comes_after_interactive(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=2048, max_sequences=1, threads=1) as llm:
        slow = llm.stream(tokens_of(20, 1), max_tokens=1500, priority="background", draft_tokens=0, **GREEDY)
        next(slow)
        quick = llm.generate(tokens_of(20, 2), max_tokens=5, priority="interactive", **GREEDY)
        assert len(quick.tokens) == 5
        assert llm.stats().preemptions >= 1
        assert len(slow.completion.tokens) < 1500
        text = "".join(slow)
        alone = llm.generate(tokens_of(20, 1), max_tokens=1500, **GREEDY)
        assert alone.text.endswith(text)
        assert alone.tokens == slow.completion.tokens


def test_a_full_context_stops_or_shifts(llm: sterna.LLM) -> None:
    prompt = tokens_of(480, 4)
    stopped = llm.generate(prompt, max_tokens=100, **GREEDY)
    assert (len(stopped.tokens), stopped.finish_reason) == (32, "length")
    shifted = llm.generate(prompt, max_tokens=100, context_overflow="shift", **GREEDY)
    assert (len(shifted.tokens), shifted.finish_reason) == (100, "length")
    assert shifted.tokens[:32] == stopped.tokens
    with pytest.raises(sterna.ContextOverflowError):
        llm.generate(tokens_of(600, 5), context_overflow="shift", **GREEDY)


def test_drafts_change_nothing_and_are_counted(llm: sterna.LLM) -> None:
    prompt = tokens_of(12, 6) * 6
    plain = llm.generate(prompt, max_tokens=80, draft_tokens=0, logprobs=2, **GREEDY)
    drafted = llm.generate(prompt, max_tokens=80, draft_tokens=5, logprobs=2, **GREEDY)
    assert (drafted.tokens, drafted.logprobs, drafted.text) == (plain.tokens, plain.logprobs, plain.text)
    assert plain.timings.draft_tokens == 0
    assert drafted.timings.draft_tokens >= drafted.timings.accepted_tokens > 0
    seeded = {"temperature": 1.5, "seed": 3, "ignore_eos": True, "max_tokens": 60}
    assert llm.generate(prompt, draft_tokens=4, **seeded).tokens == llm.generate(prompt, draft_tokens=0, **seeded).tokens


def test_stats_count(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=512, threads=1) as llm:
        before = llm.stats()
        assert (before.requests, before.rows, before.running) == (0, 0, 0)
        for _ in range(2):
            llm.generate(tokens_of(100, 7), max_tokens=10, draft_tokens=0, **GREEDY)
        stats = llm.stats()
        assert (stats.requests, stats.prompt_tokens, stats.cached_tokens) == (2, 200, 99)
        assert (stats.generated_tokens, stats.rows, stats.batches) == (20, 100 + 9 + 1 + 9, 20)
        assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)
        assert 0 < stats.pages_cached <= stats.page_limit
    with pytest.raises(sterna.SternaError, match="closed"):
        llm.stats()

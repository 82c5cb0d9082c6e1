"""Tokens sampled from the largest logits, where a plan finds them, are those of the whole row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from engine_fakes import FakePlan, make_pieces, reference_generate
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core

Row = npt.NDArray[np.float32]
V = 61
MOST = 32


def largest(logits: Row, count: int) -> list[tuple[int, float]]:
    order = np.lexsort((np.arange(len(logits)), -logits))[:count]
    return [(int(token), float(logits[token])) for token in order]


def biases() -> st.SearchStrategy[dict[int, float]]:
    return st.dictionaries(st.integers(0, 199), st.sampled_from([-float("inf"), -3.5, -0.25, 0.0]), max_size=6)


@settings(max_examples=600, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([200, 1000]),
    step=st.sampled_from([0.0, 0.5, 2.0]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
    repetition=st.sampled_from([1.0, 1.1, 3.0]),
    window=st.sampled_from([-1, 0, 3, 64]),
    presence=st.sampled_from([0.0, 0.5]),
    frequency=st.sampled_from([0.0, 0.25]),
    bias=biases(),
    history=st.lists(st.integers(0, 199), max_size=30),
    num_prompt=st.integers(0, 30),
    later=st.integers(0, 4),
)
def test_the_same_token(
    seed: int,
    n: int,
    step: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition: float,
    window: int,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    history: list[int],
    num_prompt: int,
    later: int,
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, n).astype(np.float32)
    if step:
        logits = (np.round(logits / step) * step).astype(np.float32)  # many are equal
    logits[: len(history)] += 4  # what is lowered is often among the largest
    params = _core.SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition,
        penalty_window=window,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        seed=seed,
    )
    sampler = _core.Sampler(params, n)
    num_prompt = min(num_prompt, len(history))
    known = history[: max(num_prompt, len(history) - later)]  # the rest comes later
    enough = sampler.enough_logits(
        history=known, num_prompt=num_prompt, later=len(history) - len(known), most=min(128, n)
    )
    if temperature > 0 and top_k == 0 and not (min_p > 0 and top_p == 1):
        assert enough == 0
    if enough == 0:
        return
    found = sampler.sample_largest(largest(logits, enough), history=history, num_prompt=num_prompt, choice=seed % 7)
    whole = sampler.sample(logits, history=history, num_prompt=num_prompt, choice=seed % 7)
    if found is None:
        assert top_k == 0 and min_p > 0
    else:
        assert found.token == whole.token


@pytest.mark.parametrize(
    ("params", "arguments", "enough"),
    [
        ({"temperature": 0.0}, {}, 1),
        ({"temperature": 0.0}, {"top_logprobs": 0}, 0),
        ({"temperature": 0.0}, {"mask": lambda generated, allowed: False}, 0),
        ({"top_k": 40}, {}, 40),
        ({"top_k": 100}, {}, 100),
        ({"top_k": 101}, {}, 0),
        ({"top_k": 40, "top_p": 0.5, "min_p": 0.1}, {}, 40),
        ({"top_p": 0.5}, {}, 0),
        ({"min_p": 0.1}, {}, 100),
        ({"min_p": 0.1, "top_p": 0.9}, {}, 0),
        ({}, {}, 0),
        ({"top_k": 40, "logit_bias": {3: -1.0, 4: -2.0}}, {}, 42),
        ({"top_k": 40, "logit_bias": {3: 1.0}}, {}, 0),
        ({"top_k": 40, "repetition_penalty": 1.1}, {"history": [1] * 20}, 60),
        ({"top_k": 40, "repetition_penalty": 1.1}, {"history": [1] * 20, "later": 3}, 63),
        ({"top_k": 40, "repetition_penalty": 1.1, "penalty_window": 5}, {"history": [1] * 20, "later": 3}, 45),
        ({"top_k": 40, "repetition_penalty": 1.1, "penalty_window": -1}, {"history": [1] * 80}, 0),
        ({"top_k": 40, "repetition_penalty": 0.9}, {}, 0),
        ({"top_k": 40, "presence_penalty": 1.0}, {"history": [1] * 20, "num_prompt": 12, "later": 1}, 49),
        ({"top_k": 40, "frequency_penalty": -1.0}, {}, 0),
    ],
    ids=str,
)
def test_how_many_are_enough(params: dict[str, object], arguments: dict[str, object], enough: int) -> None:
    sampler = _core.Sampler(_core.SamplingParams(**params), 1000)  # type: ignore[arg-type]
    assert sampler.enough_logits(most=100, **arguments) == enough  # type: ignore[arg-type]


class LargestPlan(FakePlan):
    """Finds the largest logits itself, of the logits that `seen` makes of them."""

    def __init__(self, seen: Callable[[Row], Row] = lambda row: row) -> None:
        super().__init__(V)
        self.seen = seen
        self.asked: list[int] = []
        self.last: Row | None = None
        self.questions = self.runs = 0

    def most_largest(self) -> int:
        self.questions += 1
        return MOST

    def run(self, *arguments: object) -> Row | None:  # type: ignore[override]
        self.runs += 1
        self.last = super().run(*arguments)  # type: ignore[arg-type]
        return self.last

    def largest_logits(self, wanted: npt.NDArray[np.int32]) -> list[list[tuple[int, float]]]:
        if self.last is None:
            return []
        assert len(wanted) == len(self.last)
        self.asked += [int(count) for count in wanted]
        return [largest(self.seen(row), int(count)) for row, count in zip(self.last, wanted, strict=True)]


def tokens_of(handle: _core.RequestHandle) -> list[int]:
    return [event.token for event in handle.events(30.0) if event.token is not None]


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ({"temperature": 0.0}, {1}),
        ({"top_k": 20, "top_p": 0.9, "seed": 5}, {20}),
        ({"top_k": 20, "repetition_penalty": 1.3, "penalty_window": 6, "seed": 2}, {26}),
        ({"min_p": 0.3, "seed": 3}, {MOST}),
        ({"min_p": 0.0001, "seed": 3}, {MOST}),  # which are not enough
        ({"seed": 3}, {0}),
        ({"temperature": 0.0, "presence_penalty": 0.5}, {1, 2, 3, 4, 5, 6, 7, 8}),
    ],
    ids=str,
)
def test_the_engine_asks_for_what_it_needs(params: dict[str, object], asked: set[int]) -> None:
    plan = LargestPlan()
    sampling = _core.SamplingParams(**params)  # type: ignore[arg-type]
    engine = _core.Engine(plan, make_pieces(), context=512)
    handle = engine.submit(PROMPT, max_tokens=8, sampling=sampling, draft_tokens=0)
    assert tokens_of(handle) == reference_generate(PROMPT, 8, sampling)
    assert set(plan.asked) == asked


def test_requests_of_both_kinds_in_one_batch() -> None:
    plan = LargestPlan()
    engine = _core.Engine(plan, make_pieces(), context=512)
    greedy, free = _core.SamplingParams(temperature=0), _core.SamplingParams(seed=4)
    handles = [
        (engine.submit([i, *PROMPT], max_tokens=12, sampling=params, choice=i), [i, *PROMPT], params, i)
        for i, params in enumerate([greedy, free, greedy, free])
    ]
    for handle, prompt, params, choice in handles:
        assert tokens_of(handle) == reference_generate(prompt, 12, params, choice=choice)
    assert {0, 1} <= set(plan.asked)


def test_the_engine_asks_only_once_how_many_a_plan_can_find() -> None:
    """It builds batches under its lock: a plan in Python waits there for Python, whose thread may be waiting for the lock."""
    plan = LargestPlan()
    engine = _core.Engine(plan, make_pieces(), context=512)
    begun = plan.questions
    tokens_of(engine.submit(PROMPT, max_tokens=20, sampling=_core.SamplingParams(temperature=0.0), draft_tokens=0))
    engine.close()
    assert plan.runs >= 20
    assert plan.questions == begun + plan.runs  # those of PyPlan::run, without the lock


def test_the_largest_are_what_is_sampled_from() -> None:
    """Told another row's largest logits, the engine follows them."""
    plan = LargestPlan(seen=lambda row: -row)
    engine = _core.Engine(plan, make_pieces(), context=512)
    (token,) = tokens_of(engine.submit(PROMPT, max_tokens=1, sampling=_core.SamplingParams(temperature=0)))
    assert plan.last is not None
    assert token == int(np.argmin(plan.last[-1]))


def test_guesses_ask_too() -> None:
    """Rows of a draft are asked for with the longer history that they have."""
    plan = LargestPlan()
    sampling = _core.SamplingParams(temperature=0, repetition_penalty=1.01, penalty_window=-1)
    engine = _core.Engine(plan, make_pieces(), context=512)
    prompt = [7, 8, 9] * 4
    handle = engine.submit(prompt, max_tokens=10, sampling=sampling, draft_tokens=3)
    assert tokens_of(handle) == reference_generate(prompt, 10, sampling)
    assert set(plan.asked) <= set(range(len(prompt) + 1, len(prompt) + 14))

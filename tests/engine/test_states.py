"""Models with states in the engine: what is found again, forked, preempted, saved, and never guessed ahead."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from company_check import Model
from recurrent_models import RECURRENT, write_model
from schedules import Ask, EngineShape, Prompt
from sterna import _core

GREEDY = _core.SamplingParams(temperature=0)
TIMEOUT = 60.0
MODELS = ["mamba", "lfm2", "qwen3next", "granitehybrid"]  # a state alone; two kinds of layers, with all three ops


@cache
def model_of(name: str) -> Model:
    with TemporaryDirectory() as folder:
        return Model(write_model(RECURRENT[name](), Path(folder) / "model.gguf"))


def engine_of(name: str, pages: int = 16, max_sequences: int = 4, max_tokens: int = 512) -> _core.Engine:
    return model_of(name).engine(EngineShape(1, max_tokens, 8, max_sequences, 1024, pages, "f16"))


def prompt(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, 50, length)]


def alone(name: str, tokens: list[int], count: int) -> list[int]:
    ask = Ask("generate", Prompt(0, 0), count, {"temperature": 0.0})
    return model_of(name).alone("f16").generate(tokens, count, ask).tokens


def generate(engine: _core.Engine, tokens: list[int], count: int, **options: int) -> tuple[list[int], int]:
    """What follows, and how many tokens were found computed."""
    handle = engine.submit(tokens, max_tokens=count, sampling=GREEDY, **options)  # type: ignore[arg-type]
    events = handle.events(TIMEOUT)
    return [event.token for event in events if event.token is not None], handle.timings.cached_tokens


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_goes_on_from_its_last_state(name: str) -> None:
    engine = engine_of(name)
    first = prompt(1, 90)
    answer, cached = generate(engine, first, 5)
    assert (answer, cached) == (alone(name, first, 5), 0)
    second = first + answer + prompt(2, 20)
    assert generate(engine, second, 5) == (alone(name, second, 5), 94)
    # A turn that is taken back: the state at its end says nothing about its middle, that of the last full page does.
    again = [*second[:80], 4, 5, 6]
    assert generate(engine, again, 5) == (alone(name, again, 5), 64)


@pytest.mark.parametrize("name", MODELS)
def test_forks_share_the_state_of_their_trunk(name: str) -> None:
    engine = engine_of(name)
    base = prompt(3, 200)
    generate(engine, base, 0)
    branches = [[*base, i + 3] for i in range(4)]
    handles = [engine.submit(branch, max_tokens=70, sampling=GREEDY) for branch in branches]
    for branch, handle in zip(branches, handles, strict=True):
        events = handle.events(TIMEOUT)
        assert [event.token for event in events if event.token is not None] == alone(name, branch, 70)
        assert handle.timings.cached_tokens == 192
    assert engine.stats().pages_in_use == 0


@pytest.mark.parametrize("name", MODELS)
def test_who_gives_way_is_computed_again(name: str) -> None:
    engine = engine_of(name, pages=5, max_sequences=4, max_tokens=33)
    prompts = [prompt(seed, 60 + 20 * seed) for seed in range(4)]
    handles = [engine.submit(tokens, max_tokens=100, sampling=GREEDY) for tokens in prompts]
    for tokens, handle in zip(prompts, handles, strict=True):
        events = handle.events(TIMEOUT)
        assert [event.token for event in events if event.token is not None] == alone(name, tokens, 100)


@pytest.mark.parametrize("name", MODELS)
def test_pages_with_states_leave_and_enter_another_engine(name: str) -> None:
    tokens = prompt(4, 300)
    engine = engine_of(name)
    generate(engine, tokens, 0)
    assert engine.cached_pages(tokens) == 4
    pages = engine.export_pages(tokens, 0, 10)
    other = engine_of(name)
    assert other.kv_layout == engine.kv_layout
    assert other.import_pages(tokens, 0, pages) == 4
    assert generate(other, tokens, 8) == (alone(name, tokens, 8), 256)


def test_no_drafts() -> None:
    engine = engine_of("lfm2")
    handle = engine.submit([5, 6, 7] * 30, max_tokens=40, sampling=GREEDY, draft_tokens=8)
    events = handle.events(TIMEOUT)
    assert [event.token for event in events if event.token is not None] == alone("lfm2", [5, 6, 7] * 30, 40)
    assert handle.timings.draft_tokens == 0


def test_states_take_what_their_limit_says() -> None:
    """Two for each sequence, and as many as are worth keeping: no more than a token pool of the context has pages."""
    page_bytes = 1 << 20
    assert _core.pool_page_limit(-1, 1024, 4, 512, page_bytes) == 8 + 16
    assert _core.pool_page_limit(-1, 1 << 20, 4, 512, page_bytes) == 8 + 256
    assert _core.pool_page_limit(-1, 1 << 20, 4, 512, 1 << 30) == 8

"""The same tokens, whatever the company: random schedules over real models, bit for bit what each sequence gives alone.

tools/campaign.py runs many more of them.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from company_check import Check, DifferenceError, DividedModel, Model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import model_path
from recurrent_models import RECURRENT, write_model
from schedules import Schedule, random_schedule


@cache
def model_of(name: str) -> Model:
    if name not in RECURRENT:
        return Model(model_path(name))
    with TemporaryDirectory() as folder:
        return Model(write_model(RECURRENT[name](), Path(folder) / "model.gguf"))


# Integer codes with an activation rule; a sliding window; states alone, and beside keys and values.
MODELS = ["llama-256.Q4_0", "gemma3", "mamba2", "qwen35"]


@pytest.mark.parametrize("name", MODELS)
def test_same_bits_in_any_company(name: str) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=100, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(rng: random.Random) -> None:
        counts.update(Check(model_of(name), random_schedule(rng, threads=1)).run())

    check()
    print(dict(counts))
    assert counts["sequences"] >= 100
    assert counts["rows"] >= 500
    assert counts["draft models"] >= 10


@pytest.mark.parametrize("name", [name for name in MODELS if name not in RECURRENT])
def test_guesses_of_draft_models_are_among_what_is_compared(name: str) -> None:
    """Nothing is guessed ahead of a state. Fixed seeds: hypothesis may find schedules in which hardly any guess is right."""
    counts: Counter[str] = Counter()
    for seed in range(60):
        counts.update(Check(model_of(name), random_schedule(random.Random(seed), threads=1)).run())
    assert counts["draft models"] >= 20
    assert counts["accepted with a draft model"] >= 50


@cache
def divided_model(name: str, cut: int) -> DividedModel:
    if name not in RECURRENT:
        return DividedModel(model_path(name), cut)
    with TemporaryDirectory() as folder:
        return DividedModel(write_model(RECURRENT[name](), Path(folder) / "model.gguf"), cut)


@pytest.mark.parametrize(("name", "cut"), [("llama-256.Q4_0", 1), ("gemma3", 3), ("mamba2", 1), ("qwen35", 1)])
def test_same_bits_where_layers_are_divided(name: str, cut: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(25):
        counts.update(Check(divided_model(name, cut), random_schedule(random.Random(seed), 1 + seed % 2)).run())
    assert counts["rows"] >= 200
    assert counts["cancelled"] >= 5


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_same_bits_with_several_threads(name: str, threads: int) -> None:
    for seed in range(2):
        counts = Check(model_of(name), random_schedule(random.Random(seed), threads)).run()
        assert counts["rows"] > 0


def first_with(kind: str) -> Schedule:
    """A schedule in f16 that certainly compares something of that kind."""
    for seed in range(1000):
        schedule = random_schedule(random.Random(seed), threads=1)
        given_up = {action.ask for action in schedule.actions if action.what in ("cancel", "drop")}
        finished = [ask for number, ask in enumerate(schedule.asks) if number not in given_up and ask.kind == kind]
        long = [ask for ask in finished if ask.prompt.fresh > 30]
        if schedule.shape.kv_dtype == "f16" and any(
            kind != "generate" or (ask.logprobs and ask.max_tokens > 1) for ask in long
        ):
            return schedule
    raise AssertionError("no such schedule")


@pytest.mark.parametrize("kind", ["generate", "score", "logits"])
def test_the_check_finds_a_difference(kind: str) -> None:
    """An engine whose cache rounds to f16 is not what a sequence with an f32 cache gives alone."""
    model, schedule = model_of("llama-256.Q4_0"), first_with(kind)
    assert Check(model, schedule).run()["rows"] > 0
    check = Check(model, schedule)
    check._alone = model.alone("f32")
    with pytest.raises(DifferenceError, match="schedule: ") as found:
        check.run()
    printed = str(found.value).split("schedule: ")[1]
    assert Schedule.from_json(printed) == schedule

"""Random schedules of requests for an Engine. A schedule is data: it prints as JSON and runs again from it.

Whatever must change no bit belongs into one: company_check.py runs it and compares.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

PAGE = 64
KV_DTYPES = ("f16", "f32", "q8_0")


@dataclass(frozen=True)
class EngineShape:
    """What plan and engine are made with; `options` are more keyword arguments of Engine."""

    threads: int
    max_tokens: int  # rows per batch: the size of prefill chunks
    max_outputs: int
    max_sequences: int
    context: int
    kv_pages: int
    kv_dtype: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Tokens that one sequence can have at all."""
        return min(self.context, self.kv_pages * PAGE)


@dataclass(frozen=True)
class DraftShape:
    """A draft model: the model itself, which errs where its cache rounds otherwise, or a fake that is always wrong."""

    kind: str  # "same" or "wrong"
    kv_dtype: str
    max_tokens: int
    max_outputs: int


@dataclass(frozen=True)
class Prompt:
    """Tokens of an earlier request, its prompt and what it generates when alone, up to `keep`; then fresh ones."""

    seed: int
    fresh: int
    period: int = 0  # of the fresh ones: 0 is none, n repeats n random tokens over and over
    parent: int | None = None
    keep: int = 0


@dataclass(frozen=True)
class Ask:
    """One request. "generate", "score", "logits"; or "too long", which must be refused."""

    kind: str
    prompt: Prompt
    max_tokens: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)  # of SamplingParams
    choice: int = 0
    logprobs: bool = False  # those of the whole vocabulary
    stop_at: int | None = None  # stops at the token that comes there when nothing stops it
    skipped: int = 0  # rows of scores not asked for
    options: dict[str, Any] = field(default_factory=dict)  # more keyword arguments of submit, or of submit_score


@dataclass(frozen=True)
class Action:
    """ "submit" request number `ask`, "read" `count` events of it, "cancel" it, "drop" its handle, "wait" for count ms."""

    what: str
    ask: int = 0
    count: int = 0


@dataclass(frozen=True)
class Schedule:
    """The requests, and what happens in which order; at its end all that is left is read."""

    shape: EngineShape
    asks: list[Ask]
    actions: list[Action]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        data = json.loads(text)
        asks = [Ask(**{**ask, "prompt": Prompt(**ask["prompt"])}) for ask in data["asks"]]
        return cls(EngineShape(**data["shape"]), asks, [Action(**action) for action in data["actions"]])


# Options of engines and requests that must change no bit belong into the next two functions.


def random_engine_options(rng: random.Random) -> dict[str, Any]:
    """Keyword arguments of Engine, beside those that EngineShape has fields for; `draft` is a DraftShape's."""
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["draft"] = asdict(
            DraftShape(
                kind=rng.choice(("same", "same", "same", "wrong")),
                kv_dtype=rng.choice(KV_DTYPES),
                max_tokens=rng.choice((1, 9, 40, 200)),
                max_outputs=rng.choice((1, 2, 5)),
            )
        )
    return options


def random_request_options(rng: random.Random, kind: str) -> dict[str, Any]:
    """Keyword arguments of Engine.submit (kind "generate") or submit_score, beside those that Ask has fields for.

    A context_key is text here, since JSON has no bytes. A deadline may come before the end.
    """
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["background"] = True
    if rng.random() < 0.2:
        options["context_key"] = rng.choice("ab")
    if kind == "generate":
        options["draft_tokens"] = rng.choice((None, None, 0, 1, 4, 12))
        if rng.random() < 0.1:
            options["timeout"] = rng.choice((0.0005, 0.003, 0.02))
    return options


def random_schedule(rng: random.Random, threads: int | None = None) -> Schedule:
    """Two to eight requests in a narrow or a wide engine, some of which continue others or give up."""
    shape = random_shape(rng, threads or rng.choice((1, 1, 1, 1, 1, 1, 2, 3)))
    asks = [random_ask(rng, shape, number) for number in range(rng.randint(2, 8 if shape.threads == 1 else 4))]
    return Schedule(shape, asks, random_actions(rng, asks))


def random_shape(rng: random.Random, threads: int) -> EngineShape:
    return EngineShape(
        threads=threads,
        # Several threads meet after each step of the plan, slowly where there are too few cores: few batches for them.
        max_tokens=rng.choice((2, 7, 16, 33, 64, 65, 200) if threads == 1 else (33, 64, 65, 200)),
        max_outputs=rng.choice((1, 2, 5, 64)),
        max_sequences=rng.choice((1, 2, 4, 8, 8)),
        context=rng.choice((100, 192, 200, 300)),
        kv_pages=rng.choice((2, 3, 3, 4, 4, 5, 7, 20)),
        kv_dtype=rng.choice(KV_DTYPES),
        options=random_engine_options(rng),
    )


def random_ask(rng: random.Random, shape: EngineShape, number: int) -> Ask:
    kind = rng.choice(("generate",) * 9 + ("score", "logits", "logits", "too long"))
    prompt = random_prompt(rng, shape, number)
    if kind == "too long":
        return Ask(kind, Prompt(prompt.seed, shape.room + rng.choice((1, 50))))
    options = random_request_options(rng, kind)
    if kind != "generate":
        return Ask(kind, prompt, skipped=rng.choice((0, 0, 1, 60, 64)), options=options)
    return Ask(
        kind,
        prompt,
        max_tokens=rng.choice((0, 1, 2, 8, 20, 40, 70, 100) if shape.threads == 1 else (1, 2, 8)),
        sampling=random_sampling(rng),
        choice=rng.choice((0, 0, 3)),
        logprobs=rng.random() < 0.8,
        stop_at=rng.choice((None, None, None, 2, 9)),
        options=options,
    )


def random_prompt(rng: random.Random, shape: EngineShape, number: int) -> Prompt:
    """Its length is cut to what fits when it is used: that of a parent is not known before."""
    seed = rng.randint(0, 2**31)
    fresh = rng.choice((1, 2, 9, 30, 50, 60, 63, 64, 65, 100, 150, 250))
    period = rng.choice((0, 0, 0, 1, 3, 7))
    if number == 0 or rng.random() < 0.5:
        return Prompt(seed, fresh, period)
    # Around the ends of pages, and anywhere.
    keep = rng.choice((PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, rng.randint(1, shape.room), shape.room))
    return Prompt(seed, rng.choice((0, 1, 1, 5, 40)), period, rng.randrange(number), keep)


def random_sampling(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"temperature": 0.0}
    return {
        "temperature": rng.choice((0.0, 0.7, 1.0, 1.5)),
        "top_k": rng.choice((0, 1, 40)),
        "top_p": rng.choice((1.0, 0.9)),
        "min_p": rng.choice((0.0, 0.05)),
        "repetition_penalty": rng.choice((1.0, 1.3)),
        "penalty_window": rng.choice((64, 5, -1)),
        "presence_penalty": rng.choice((0.0, 0.5)),
        "frequency_penalty": rng.choice((0.0, 0.2)),
        "seed": rng.choice((0, 1, 12345)),
    }


def random_actions(rng: random.Random, asks: list[Ask]) -> list[Action]:
    """Submits all in order; in between some are read, cancelled, dropped, or given time."""
    actions: list[Action] = []
    readable: list[int] = []
    for number, ask in enumerate(asks):
        actions.append(Action("submit", number))
        if ask.kind == "generate":
            readable.append(number)
        for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
            what = rng.choice(("read", "read", "read", "wait", "wait", "cancel", "drop"))
            if what == "wait":
                actions.append(Action(what, count=rng.choice((0, 1, 3))))
            elif readable:
                chosen = rng.choice(readable)
                actions.append(Action(what, chosen, rng.choice((1, 2, 10)) if what == "read" else 0))
                if what == "drop":
                    readable.remove(chosen)
    return actions

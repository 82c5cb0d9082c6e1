"""Runs a schedule, and checks that company changes no bit: each request against its sequence computed alone.

Alone is the plan itself: one sequence at a time, its prompt at once, one thread, no engine. Used by test_company.py and
tools/campaign.py.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from engine_fakes import FakePlan
from schedules import PAGE, Action, Ask, DraftShape, EngineShape, Schedule
from sterna import _core
from sterna.errors import ContextOverflowError, DeadlineError, MemoryBudgetError, SternaError
from sterna.trace import trace

F32 = npt.NDArray[np.float32]

# A request without a next event for so long hangs.
TIMEOUT_SECONDS = 120.0
# Of a large vocabulary only the log-probabilities of so many tokens are compared, the likeliest.
MOST_LOGPROBS = 2048


@dataclass(frozen=True)
class Text:
    """What follows a prompt; rows[i] are the logits that tokens[i] was chosen from."""

    tokens: list[int]
    rows: list[F32]
    stopped: bool


class Model:
    """A model file, ready to be compiled in any shape."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = _core.Gguf(self.path)
        self._program = trace(self._file).program.fuse()
        self.pieces = _core.Pieces.from_gguf(self._file)
        nodes = self._program.nodes("logits")
        self.sees_all = any(node.op == "attention" and node.attributes["window"] == 0 for node in nodes)

    def compile(
        self,
        *,
        threads: int,
        max_tokens: int,
        max_outputs: int,
        kv_dtype: str,
        share_threads: _core.CpuPlan | None = None,
    ) -> _core.CpuPlan:
        return _core.compile_cpu(
            self._program,
            self._file,
            threads=threads,
            max_tokens=max_tokens,
            max_outputs=max_outputs,
            kv_dtype=kv_dtype,
            share_threads=share_threads,
        )

    def draft(self, shape: DraftShape, target: _core.CpuPlan) -> _core.Plan:
        """A draft model for that plan."""
        if shape.kind == "wrong":
            return FakePlan(target.vocab_size, shape.max_tokens, shape.max_outputs)
        return self.compile(
            threads=target.threads,
            max_tokens=shape.max_tokens,
            max_outputs=shape.max_outputs,
            kv_dtype=shape.kv_dtype,
            share_threads=target,
        )

    def engine(self, shape: EngineShape) -> _core.Engine:
        plan = self.compile(
            threads=shape.threads,
            max_tokens=shape.max_tokens,
            max_outputs=shape.max_outputs,
            kv_dtype=shape.kv_dtype,
        )
        options = dict(shape.options)
        if "draft" in options:
            options["draft"] = self.draft(DraftShape(**options["draft"]), plan)
        return _core.Engine(
            plan,
            self.pieces,
            # Without a layer that sees all positions, pages do not limit a sequence.
            context=shape.context if self.sees_all else shape.room,
            max_sequences=shape.max_sequences,
            kv_tokens=shape.kv_pages * PAGE,
            **options,
        )

    @cache  # noqa: B019 (models live as long as the process)
    def alone(self, kv_dtype: str) -> Alone:
        return Alone(self, kv_dtype)


class DividedModel(Model):
    """A model whose layers are divided between two plans, before layer `cut`; alone it is whole."""

    def __init__(self, path: Path | str, cut: int) -> None:
        super().__init__(path)
        self._parts = [part.fuse() for part in trace(self._file).program.split_layers(cut)]
        self._whole = Model(path)

    def compile(self, *, share_threads: _core.ProgramPlan | None = None, **options: Any) -> _core.ProgramPlan:  # type: ignore[override]
        """Both parts on the same threads."""
        plans: list[_core.CpuPlan] = []
        if isinstance(share_threads, _core.ChainPlan):
            (share_threads, *_) = share_threads.parts
        for part in self._parts:
            threads = plans[0] if plans else share_threads
            plans.append(_core.compile_cpu(part, self._file, share_threads=threads, **options))  # type: ignore[arg-type]
        return _core.compile_chain(self._program, plans)

    def draft(self, shape: DraftShape, target: _core.ProgramPlan) -> _core.Plan:  # type: ignore[override]
        assert isinstance(target, _core.ChainPlan)
        if shape.kind == "wrong":
            return FakePlan(target.vocab_size, shape.max_tokens, shape.max_outputs)
        threads = target.parts[0].threads  # type: ignore[attr-defined]
        options = {"max_tokens": shape.max_tokens, "max_outputs": shape.max_outputs, "kv_dtype": shape.kv_dtype}
        return self.compile(threads=threads, share_threads=target, **options)

    def alone(self, kv_dtype: str) -> Alone:
        return self._whole.alone(kv_dtype)


class Alone:
    """Sequences computed by the plan itself, one at a time, prompts at once, on one thread."""

    def __init__(self, model: Model, kv_dtype: str, context: int = 512) -> None:
        self._plan = model.compile(threads=1, max_tokens=context, max_outputs=context, kv_dtype=kv_dtype)
        self._pages = list(range(-(-context // PAGE)))
        self._plan.reserve_pages(len(self._pages))
        self.vocab_size = self._plan.vocab_size

    def rows(self, tokens: list[int], first: int = 0, wanted: int | None = None) -> F32:
        """Logits after the last `wanted` of the tokens, or all, at positions from `first` on: [wanted, vocab_size].

        What stands before `first` is what was computed last.
        """
        rows = np.arange(len(tokens))
        outputs = rows if wanted is None else rows[-wanted:]
        return self._plan.run(tokens, rows + first, np.zeros_like(rows), [self._pages], outputs)

    def generate(self, prompt: list[int], count: int, ask: Ask) -> Text:
        """Up to `count` tokens after a prompt."""
        params = _core.SamplingParams(**ask.sampling)
        sampler = _core.Sampler(params, self.vocab_size)
        known, rows = list(prompt), []
        row = self.rows(prompt, wanted=1)[0]
        for i in range(count):
            rows.append(row)
            sampled = sampler.sample(row, history=known, num_prompt=len(prompt), choice=ask.choice)
            known.append(sampled.token)
            if i + 1 < count:
                row = self.rows([sampled.token], len(known) - 1)[0]
        tokens = known[len(prompt) :]
        if ask.stop_at is not None and ask.stop_at < count:
            end = tokens.index(tokens[ask.stop_at])
            return Text(tokens[:end], rows[:end], True)
        return Text(tokens, rows, False)

    def stop_ids(self, prompt: list[int], count: int, ask: Ask) -> list[int]:
        """The token at `stop_at`, if it gets that far."""
        if ask.stop_at is None or ask.stop_at >= count:
            return []
        free = self.generate(prompt, ask.stop_at + 1, Ask(ask.kind, ask.prompt, 0, ask.sampling, ask.choice))
        return [free.tokens[ask.stop_at]]


class DifferenceError(AssertionError):
    """A request that gave something else than alone, hangs, or was not refused as it should have been."""


@dataclass(frozen=True)
class _Job:
    ask: Ask
    prompt: list[int]
    count: int  # tokens it may generate
    stop_ids: list[int]

    def expected_text(self, alone: Alone) -> Text:
        return alone.generate(self.prompt, self.count, self.ask)


class Check:
    """One run of a schedule. `counts` tells what was compared, and what the engine went through."""

    def __init__(self, model: Model, schedule: Schedule) -> None:
        self._schedule = schedule
        self._shape = schedule.shape
        self._alone = model.alone(schedule.shape.kv_dtype)
        self._engine = model.engine(schedule.shape)
        self._handles: dict[int, _core.RequestHandle] = {}
        self._events: dict[int, list[_core.Event]] = {}
        self._cancelled: set[int] = set()
        self._late: set[int] = set()  # their deadline came first
        self.counts: Counter[str] = Counter()
        self._texts: dict[int, Text] = {}
        self._jobs: list[_Job] = []
        for number in range(len(schedule.asks)):
            self._jobs.append(self._job(number))

    def run(self) -> Counter[str]:
        """DifferenceError names the request, the place and the schedule."""
        try:
            for action in self._schedule.actions:
                self._do(action)
            for number in list(self._handles):
                self._finish(number)
            self._check_idle()
        except (DifferenceError, SternaError) as error:
            raise DifferenceError(f"{error}\nschedule: {self._schedule.to_json()}") from error
        finally:
            self._handles.clear()
            self._engine.close()
        return self.counts

    def _job(self, number: int) -> _Job:
        ask = self._schedule.asks[number]
        tokens = self._tokens(ask)
        # One more must fit.
        tokens = tokens if ask.kind == "too long" else tokens[: self._shape.room - 1]
        count = min(ask.max_tokens, self._shape.room - len(tokens))
        stop_ids = self._alone.stop_ids(tokens, count, ask) if ask.kind == "generate" else []
        return _Job(ask, tokens, count, stop_ids)

    def _tokens(self, ask: Ask) -> list[int]:
        prompt = ask.prompt
        rng = np.random.default_rng(prompt.seed)
        fresh = rng.integers(0, self._alone.vocab_size, min(prompt.fresh, prompt.period or prompt.fresh)).tolist()
        fresh = (fresh * (-(-prompt.fresh // len(fresh))))[: prompt.fresh] if fresh else []
        if prompt.parent is None:
            return fresh
        parent = self._jobs[prompt.parent]
        known = list(parent.prompt)
        if parent.ask.kind == "generate" and prompt.keep > len(known):
            known += self._text(prompt.parent).tokens
        return known[: prompt.keep] + fresh

    def _text(self, number: int) -> Text:
        if number not in self._texts:
            self._texts[number] = self._jobs[number].expected_text(self._alone)
        return self._texts[number]

    def _do(self, action: Action) -> None:
        number = action.ask
        if action.what == "wait":
            time.sleep(action.count / 1000)
        elif action.what == "submit":
            self._submit(number)
        elif action.what == "read":
            self._read(number, action.count)
        elif action.what == "cancel":
            self._handles[number].cancel()
            self._cancelled.add(number)
            self.counts["cancelled"] += 1
        elif action.what == "drop":
            self._cancelled.add(number)
            self._compare_text(number, self._events.pop(number))
            del self._handles[number]
            self.counts["dropped"] += 1
        else:
            raise ValueError(f"no action is called {action.what!r}")

    def _submit(self, number: int) -> None:
        job = self._jobs[number]
        ask = job.ask
        self.counts["forks"] += ask.prompt.parent is not None
        if ask.kind == "too long":
            self._expect_refusal(number, job)
        elif ask.kind == "generate":
            most = min(self._alone.vocab_size, MOST_LOGPROBS)
            self._events[number] = []
            self._handles[number] = self._engine.submit(
                job.prompt,
                max_tokens=ask.max_tokens,
                sampling=_core.SamplingParams(**ask.sampling),
                choice=ask.choice,
                stop_ids=job.stop_ids,
                top_logprobs=most if ask.logprobs else None,
                **keyword_arguments(ask),
            )
        else:
            logits = ask.kind == "logits"
            rows = len(job.prompt) - (0 if logits else 1)
            if rows:
                self._handles[number] = self._engine.submit_score(
                    job.prompt, positions_from=min(ask.skipped, rows - 1), logits=logits, **keyword_arguments(ask)
                )

    def _expect_refusal(self, number: int, job: _Job) -> None:
        try:
            self._engine.submit(job.prompt, max_tokens=1)
        except (ContextOverflowError, MemoryBudgetError):
            self.counts["refused"] += 1
            return
        raise DifferenceError(f"request {number}: {len(job.prompt)} tokens were not refused")

    def _read(self, number: int, count: int | None) -> None:
        """Takes so many events, or all."""
        taken = self._events[number]
        before = len(taken)
        while not self._has_ended(number) and (count is None or len(taken) - before < count):
            try:
                event = self._handles[number].next(TIMEOUT_SECONDS)
            except DeadlineError:
                if "timeout" not in self._schedule.asks[number].options:
                    raise
                self._late.add(number)
                self.counts["late"] += 1
                return
            if event is None:
                raise DifferenceError(f"request {number} hangs after {len(taken)} events")
            taken.append(event)

    def _has_ended(self, number: int) -> bool:
        taken = self._events[number]
        return number in self._late or bool(taken and taken[-1].finish_reason)

    def _finish(self, number: int) -> None:
        if self._schedule.asks[number].kind == "generate":
            self._read(number, None)
            self._compare_text(number, self._events[number])
        else:
            self._compare_scores(number)

    def _compare_text(self, number: int, events: list[_core.Event]) -> None:
        want = self._text(number)
        got = [event.token for event in events if event.token is not None]
        reason = events[-1].finish_reason if events else None
        whole = reason not in (None, "cancelled")
        if got != (want.tokens if whole else want.tokens[: len(got)]):
            raise DifferenceError(f"request {number}: tokens {got}, alone {want.tokens}")
        if reason == "cancelled" and number not in self._cancelled:
            raise DifferenceError(f"request {number} says that it was cancelled, which nobody did")
        if whole and reason != ("stop" if want.stopped else "length"):
            raise DifferenceError(f'request {number} ends with "{reason}", alone it is stopped: {want.stopped}')
        self.counts["sequences"] += 1
        if not self._schedule.asks[number].logprobs:
            return
        for place, (event, row) in enumerate(zip(events, want.rows, strict=False)):
            if event.token is not None:
                self._compare_logprobs(f"request {number}, token {place}", event, row)

    def _compare_logprobs(self, what: str, event: _core.Event, row: F32) -> None:
        want = _core.log_softmax(row)
        tokens, values = zip(*event.top_logprobs, strict=True)
        ids = np.array(tokens)
        if len(set(tokens)) != min(len(want), MOST_LOGPROBS):
            raise DifferenceError(f"{what}: {len(set(tokens))} log-probabilities")
        assert_same_bits(what, np.array(values, np.float32), want[ids])
        self.counts["rows"] += 1

    def _compare_scores(self, number: int) -> None:
        job = self._jobs[number]
        try:
            got = self._handles[number].scores(TIMEOUT_SECONDS)
        except TimeoutError:
            raise DifferenceError(f"request {number} hangs") from None
        want = self._alone.rows(job.prompt)
        if job.ask.kind == "score":
            following = zip(want, job.prompt[1:], strict=False)
            want = np.array([_core.log_softmax(row)[token] for row, token in following], np.float32)
        want = want[min(job.ask.skipped, len(want) - 1) :]
        if got.shape != want.shape:
            raise DifferenceError(f"request {number}: scores {got.shape}, alone {want.shape}")
        assert_same_bits(f"request {number}, {job.ask.kind}", got, want)
        self.counts["sequences"] += 1
        self.counts["rows"] += len(got)

    def _check_idle(self) -> None:
        """All has ended: nothing runs, and no page belongs to a request."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (stats := self._engine.stats()).running + stats.waiting:
            if time.monotonic() > deadline:
                raise DifferenceError(f"{stats.running} run and {stats.waiting} wait though all have ended")
            time.sleep(0.0005)
        if stats.pages_in_use:
            raise DifferenceError(f"{stats.pages_in_use} pages are in use though all requests have ended")
        self.counts["preemptions"] += stats.preemptions
        self.counts["batches"] += stats.runs
        self.counts["cached tokens"] += stats.cached_tokens
        self.counts["draft tokens"] += stats.draft_tokens
        self.counts["accepted tokens"] += stats.accepted_tokens
        if "draft" in self._shape.options:
            self.counts["draft models"] += 1
            self.counts["accepted with a draft model"] += stats.accepted_tokens


def keyword_arguments(ask: Ask) -> dict[str, Any]:
    """The options of a request as submit takes them."""
    options = dict(ask.options)
    if "context_key" in options:
        options["context_key"] = options["context_key"].encode()
    return options


def assert_same_bits(what: str, got: F32, want: F32) -> None:
    """DifferenceError where float32 arrays of one shape differ in a bit."""
    different = got.view(np.uint32) != np.ascontiguousarray(want).view(np.uint32)
    if different.any():
        at = tuple(int(index[0]) for index in np.nonzero(different))
        raise DifferenceError(
            f"{what}: {different.sum()} of {different.size} values differ, first at {at}: {got[at]!r}, alone {want[at]!r}"
        )

"""Measures an engine's speed, as llama-bench does: prompt processing ("pp512") and token generation ("tg128")."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna import _core
from sterna.errors import ArgumentError


@dataclass(frozen=True)
class BenchTest:
    """One row of a benchmark: `prompt` tokens at once, or `generate` tokens one by one, after `depth` tokens."""

    prompt: int = 0
    generate: int = 0
    depth: int = 0
    batch: int = 1  # sequences at the same time

    def __post_init__(self) -> None:
        if (self.prompt > 0) == (self.generate > 0) or self.prompt < 0 or self.generate < 0:
            raise ArgumentError(f"a test processes or generates tokens: {self.prompt} and {self.generate} given")
        if self.depth < 0 or self.batch < 1:
            raise ArgumentError(f"depth is {self.depth} and batch {self.batch}; they must be at least 0 and 1")

    @property
    def name(self) -> str:
        """ "pp512", "tg128", "tg128@d4096", "tg128 b8"."""
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        depth = f"@d{self.depth}" if self.depth else ""
        return kind + depth + (f" b{self.batch}" if self.batch > 1 else "")

    @classmethod
    def parse(cls, name: str) -> BenchTest:
        """The test of that name."""
        match = re.fullmatch(r"(pp|tg)(\d+)(?:@d(\d+))?(?: b(\d+))?", name)
        if match is None:
            raise ArgumentError(f'no test is called "{name}"; examples: pp512, tg128, tg128@d4096, "tg128 b8"')
        kind, count, depth, batch = match.groups()
        return cls(
            **{"prompt" if kind == "pp" else "generate": int(count)}, depth=int(depth or 0), batch=int(batch or 1)
        )

    @property
    def context(self) -> int:
        """Tokens that one sequence needs."""
        return self.depth + self.prompt + self.generate + 2


@dataclass(frozen=True)
class BenchResult:
    """Tokens per second of each run, all sequences of the batch together."""

    test: BenchTest
    runs: list[float]

    @property
    def tokens_per_second(self) -> float:
        """The median run."""
        return statistics.median(self.runs)


def measure(engine: _core.Engine, test: BenchTest, repetitions: int = 5) -> BenchResult:
    """Runs the test once to warm up, then `repetitions` times; the sampler is greedy and nothing stops a text early."""
    if test.context > engine.context:
        raise ArgumentError(f"{test.name} needs a context of {test.context} tokens, the engine has {engine.context}")
    if repetitions < 1:
        raise ArgumentError(f"repetitions is {repetitions}, must be at least 1")
    runs = [_run(engine, test) for _ in range(repetitions + 1)]
    return BenchResult(test, runs[1:])


def weight_bytes_per_token(program: _core.Program) -> int:
    """Packed bytes of the matrices that a decoded token reads."""
    values = program.values
    used = {id for node in program.nodes() if node.op != "embed" for role, id in node.inputs if role == "w"}
    matrices = (values[id] for id in used)
    return sum(
        _core.packed_bytes(matrix.format or "F32", *(int(extent) for extent in matrix.shape))
        for matrix in matrices
        if len(matrix.shape) == 2
    )


def _tokens(engine: _core.Engine, count: int, seed: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, engine.vocab_size, count, dtype=np.int32)


def _filled(engine: _core.Engine, tokens: Sequence[int] | npt.NDArray[np.int32]) -> _core.KvSequence | None:
    """A sequence with these tokens in the cache."""
    if len(tokens) == 0:
        return None
    sequence = engine.sequence()
    engine.submit(tokens, max_tokens=0, sequence=sequence).events()
    return sequence


def _run(engine: _core.Engine, test: BenchTest) -> float:
    """Tokens per second of one run."""
    greedy = _core.SamplingParams(temperature=0.0)
    before = [_tokens(engine, test.depth, seed) for seed in range(test.batch)]
    sequences = [_filled(engine, tokens) for tokens in before]
    fresh = [_tokens(engine, test.prompt or 1, 1000 + seed) for seed in range(test.batch)]
    prompts = [np.concatenate(pair) for pair in zip(before, fresh, strict=True)]
    # The first generated token belongs to the prompt: generating n more takes n steps.
    max_tokens = test.generate + 1
    begin = time.perf_counter()
    requests = [
        engine.submit(prompt, max_tokens=max_tokens, sampling=greedy, sequence=sequence)
        for prompt, sequence in zip(prompts, sequences, strict=True)
    ]
    for request in requests:
        request.events()
    wall = time.perf_counter() - begin
    if test.batch > 1:
        return test.batch * (test.prompt or test.generate) / wall
    timings = requests[0].timings
    return test.prompt / timings.prefill_seconds if test.prompt else test.generate / timings.decode_seconds

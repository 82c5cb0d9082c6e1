"""Measures an engine's speed, as llama-bench does: prompt processing ("pp512") and token generation ("tg128")."""

from __future__ import annotations

import math
import re
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sterna import _core
from sterna.errors import ArgumentError
from sterna.memory import PAGE_TOKENS


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
        """The test of that name. ArgumentError."""
        match = re.fullmatch(r"(pp|tg)(\d+)(?:@d(\d+))?(?: ?b(\d+))?", name)
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

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache that lets all sequences run together: none shares a page with another."""
        return self.batch * -(-self.context // PAGE_TOKENS) * PAGE_TOKENS


@dataclass(frozen=True)
class BenchResult:
    """Tokens per second of each run, all sequences of the batch together."""

    test: BenchTest
    runs: list[float]

    @property
    def tokens_per_second(self) -> float:
        """The median run."""
        return statistics.median(self.runs)


class Measurement:
    """A test made ready to run again and again: the tokens before it stay in the cache."""

    def __init__(self, engine: _core.Engine, test: BenchTest, draft_tokens: int | None = 0) -> None:
        """`draft_tokens` are guessed ahead; None: as many as pay. ArgumentError when the context is too short."""
        if test.context > engine.context:
            raise ArgumentError(
                f"{test.name} needs a context of {test.context} tokens, the engine has {engine.context}"
            )
        self.test = test
        self._engine = engine
        self._draft_tokens = draft_tokens
        self._before = [self._random(test.depth, seed) for seed in range(test.batch)]
        self._runs = 0

    def run(self) -> float:
        """Tokens per second of one run, all sequences together; greedy, and nothing stops a text early."""
        test, engine = self.test, self._engine
        for tokens in self._before if test.depth else ():
            engine.submit(tokens, max_tokens=0).events()  # kept in the cache
        self._runs += 1
        fresh = [self._random(test.prompt or 1, 1000 + seed) for seed in range(test.batch)]
        for tokens in fresh:  # nothing of an earlier run's is found in the cache
            tokens[0] = (tokens[0] + self._runs) % engine.vocab_size
        prompts = [np.concatenate(pair) for pair in zip(self._before, fresh, strict=True)]
        greedy = _core.SamplingParams(temperature=0.0)
        # The first generated token belongs to the prompt: generating n more takes n steps.
        max_tokens = test.generate + 1
        begin = time.perf_counter()
        requests = [
            engine.submit(prompt, max_tokens=max_tokens, sampling=greedy, draft_tokens=self._draft_tokens)
            for prompt in prompts
        ]
        for request in requests:
            request.events()
        wall = time.perf_counter() - begin
        timings = [request.timings for request in requests]
        if test.batch == 1:
            return (
                test.prompt / timings[0].prefill_seconds if test.prompt else test.generate / timings[0].decode_seconds
            )
        if test.generate:  # from the first token of all on
            wall -= min(timing.queue_seconds + timing.prefill_seconds for timing in timings)
        return test.batch * (test.prompt or test.generate) / wall

    def _random(self, count: int, seed: int) -> npt.NDArray[np.int32]:
        return np.random.default_rng(seed).integers(0, self._engine.vocab_size, count, dtype=np.int32)


def measure(
    engine: _core.Engine, test: BenchTest, repetitions: int = 5, *, draft_tokens: int | None = 0
) -> BenchResult:
    """Runs the test once to warm up, then `repetitions` times; `draft_tokens` as in Measurement. ArgumentError."""
    if repetitions < 1:
        raise ArgumentError(f"repetitions is {repetitions}, must be at least 1")
    measurement = Measurement(engine, test, draft_tokens)
    measurement.run()
    return BenchResult(test, [measurement.run() for _ in range(repetitions)])


@dataclass(frozen=True)
class Work:
    """What each token of a test costs at least, all sequences of its batch together.

    Bytes are packed weights, read once per run of the plan, cached keys and values, and the states of recurrent layers,
    which a token reads and writes; multiply-accumulates are those of the matrices. The arithmetic of attention and of
    recurrent layers is in floats and not counted.
    """

    bytes_per_token: float
    macs_per_token: float

    def shares(self, tokens_per_second: float, bytes_per_second: float, macs_per_second: float) -> tuple[float, float]:
        """The parts of the memory bandwidth and of the integer peak that such a speed uses."""
        return (
            tokens_per_second * self.bytes_per_token / bytes_per_second,
            tokens_per_second * self.macs_per_token / macs_per_second,
        )


def work_of(program: _core.Program, test: BenchTest, *, run_tokens: int = 512, kv_element_bytes: int = 2) -> Work:
    """The work of a test, with plans that run up to `run_tokens` rows at once."""
    layers, output = _matrices(program)
    if test.generate:
        # The first of them sees the tokens before, the prompt's one, and itself.
        mean_length = test.depth + 1 + (test.generate + 1) / 2
        bytes_per_token = (layers.bytes_for(test.batch) + output.bytes_for(test.batch)) / test.batch
        bytes_per_token += _kv_elements(program, mean_length) * kv_element_bytes + 2 * _state_bytes(program)
        return Work(bytes_per_token, layers.macs + output.macs)
    tokens = test.prompt * test.batch
    runs = -(-tokens // run_tokens)
    read = layers.bytes_for(min(tokens, run_tokens)) * runs + output.bytes_for(test.batch)
    return Work(read / tokens, layers.macs + output.macs * test.batch / tokens)


def weight_bytes_per_token(program: _core.Program) -> int:
    """Packed bytes of the matrices that a decoded token reads."""
    layers, output = _matrices(program)
    return round(layers.bytes_for(1) + output.bytes_for(1))


@dataclass
class _Matrices:
    bytes: int = 0
    macs: int = 0  # per row
    # Bytes of one expert, how many there are, how many a row uses.
    experts: list[tuple[int, int, int]] = field(default_factory=list)

    def bytes_for(self, rows: int) -> float:
        """What a run of so many rows reads; experts as if rows chose them at random."""
        chosen = (each * total * (1.0 - (1.0 - used / total) ** rows) for each, total, used in self.experts)
        return self.bytes + sum(chosen)


def _matrices(program: _core.Program) -> tuple[_Matrices, _Matrices]:
    """Those that every token passes through, and those that only rows with logits do."""
    values = program.values
    layers, output = _Matrices(), _Matrices()
    seen: set[int] = set()
    for node in program.nodes():
        if node.op == "embed":
            continue
        of = output if node.op == "unembed" else layers
        used = next((int(values[id].shape[1]) for role, id in node.inputs if role == "experts"), 0)
        for _, id in node.inputs:
            value = values[id]
            if value.kind != "weight" or len(value.shape) < 2 or id in seen:
                continue
            seen.add(id)
            *stack, rows, columns = (int(extent) for extent in value.shape)
            packed = _core.packed_bytes(value.format or "F32", rows, columns)
            if stack and used:
                of.experts.append((packed, stack[0], used))
                of.macs += used * rows * columns
            else:  # a stack that no row chooses from has a matrix for each head
                of.bytes += math.prod(stack) * packed
                of.macs += math.prod(stack) * rows * columns
    return layers, output


def _state_bytes(program: _core.Program) -> int:
    """What the recurrent layers keep of one sequence, in float32."""
    return sum(4 * slot.rows * slot.columns for slot in program.state_slots)


def _kv_elements(program: _core.Program, length: float) -> float:
    """Elements of the cache that attention reads for one token after `length` tokens, itself included."""
    slots = {slot.layer: slot for slot in program.kv_slots}
    elements = 0.0
    for node in program.nodes():
        if node.op == "attention":
            slot = slots[int(node.attributes["layer"])]
            window, chunk = int(node.attributes["window"]), int(node.attributes["chunk"])
            seen = (length - 1) % chunk + 1 if chunk else min(length, window) if window else length
            elements += seen * slot.num_kv_heads * (slot.head_dim + (0 if slot.latent else slot.value_head_dim))
    return elements

"""Many short requests of all kinds at one loaded model: memory must stay flat, and threads, files and pages come back.

    python tools/soak.py MODEL [--requests 20000] [--threads 2] [--seed 0] [--json FILE]

MODEL is anything that `sterna.load` takes; a model of random weights will do (tests/data/oracle/*/model.gguf). Requests
come one by one, in lists, as streams read to the end or left, awaited, cancelled, late, scored, refused, and from eight
threads at once. Every 500 the process is sampled, with nothing running: resident memory, threads, open files, and the
engine's counts. Memory is judged by the slope of a line through the samples after the first quarter of the requests.
Prints JSON and a verdict; exit code 1 when the slope is above 1 MiB per 10,000 requests, or when threads, files or the
pages that requests hold have not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sterna
from sterna.errors import DeadlineError

SAMPLE_EVERY = 500
WARM_UP_SHARE = 0.25
MAX_SLOPE = 1.0  # MiB per 10,000 requests
CONTEXT = 256
KV_TOKENS = 320  # fewer than eight threads ask for: sequences give way to each other
CALLERS = 8
IDLE_SECONDS = 60.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """The process after so many requests, with nothing running."""

    requests: int
    seconds: float
    rss_bytes: int
    threads: int
    files: int
    engine: dict[str, int]  # every count of engine.stats()


class Requests:
    """Random requests. Each method makes some and returns how many; what should fail must fail with its own error."""

    def __init__(self, llm: sterna.LLM, rng: random.Random) -> None:
        self._llm = llm
        self._rng = rng

    def kinds(self) -> list[tuple[int, Callable[[], int]]]:
        """Each kind with its weight: what a request can be, once. New kinds are added here."""
        return [
            (30, self.generate),
            (5, self.generate_list),
            (15, self.stream),
            (10, self.leave_stream),
            (8, self.cancel),
            (8, self.drop),
            (6, self.score),
            (3, self.logits),
            (8, self.refused),
            (2, self.stop_text),
            (4, self.late),
            (4, self.task),
            (4, self.cancelled_task),
        ]

    def some(self) -> int:
        """One kind, by its weight."""
        weights, calls = zip(*self.kinds(), strict=True)
        return self._rng.choices(calls, weights)[0]()

    def prompt(self) -> list[int]:
        length = self._rng.choice((1, 3, 8, 20, 60, 100))
        return [self._rng.randrange(self._llm.info.vocab_size) for _ in range(length)]

    def options(self) -> dict[str, Any]:
        sampled = {"temperature": 1.0, "top_k": 40, "repetition_penalty": 1.1, "seed": self._rng.randrange(1000)}
        return {
            "max_tokens": self._rng.choice((0, 1, 4, 12, 30)),
            **self._rng.choice(({"temperature": 0.0}, sampled, {**sampled, "logprobs": 3})),
        }

    def generate(self) -> int:
        self._llm.generate(self.prompt(), **self.options())
        return 1

    def generate_list(self) -> int:
        prompts = [self.prompt() for _ in range(self._rng.randint(2, 6))]
        self._llm.generate(prompts, **self.options())
        return len(prompts)

    def stream(self) -> int:
        for _ in self._llm.stream("some words to go on with", **self.options()):
            pass
        return 1

    def leave_stream(self) -> int:
        """Closed, or let go of, after a few pieces."""
        stream = self._llm.stream(self.prompt(), max_tokens=100, seed=1, ignore_eos=True)
        for _ in range(self._rng.randrange(3)):
            next(stream, None)
        if self._rng.random() < 0.5:
            stream.close()
        return 1

    def cancel(self) -> int:
        handle = self._llm.engine.submit(self.prompt(), max_tokens=100)
        time.sleep(self._rng.choice((0.0, 0.001)))
        handle.cancel()
        handle.events()
        return 1

    def drop(self) -> int:
        """Nobody waits for it."""
        self._llm.engine.submit(self.prompt(), max_tokens=100)
        return 1

    def score(self) -> int:
        self._llm.score(self.prompt())
        return 1

    def logits(self) -> int:
        self._llm.logits(self.prompt()[:8])
        return 1

    def stop_text(self) -> int:
        self._llm.generate(self.prompt(), max_tokens=20, stop=["a", "e", " t"], seed=self._rng.randrange(1000))
        return 1

    def late(self) -> int:
        """Its deadline comes first, or not."""
        handle = self._llm.engine.submit(self.prompt(), max_tokens=100, timeout=0.002, background=True)
        with contextlib.suppress(DeadlineError):
            handle.events()
        return 1

    def task(self) -> int:
        """On an event loop of its own."""
        asyncio.run(self._llm.agenerate(self.prompt(), **self.options()))
        return 1

    def cancelled_task(self) -> int:
        async def leave() -> None:
            task = asyncio.create_task(self._llm.agenerate(self.prompt(), max_tokens=100, seed=1, ignore_eos=True))
            await asyncio.sleep(self._rng.choice((0.0, 0.001)))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        return 1

    def refused(self) -> int:
        """Requests that are wrong, each in another way."""
        vocab_size = self._llm.info.vocab_size
        wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
            (sterna.ContextOverflowError, lambda: self._llm.generate([5] * CONTEXT, max_tokens=2)),
            (sterna.ContextOverflowError, lambda: self._llm.generate("many words " * 2000)),
            (sterna.ArgumentError, lambda: self._llm.generate([1, vocab_size])),
            (sterna.ArgumentError, lambda: self._llm.logits([])),
            (sterna.ArgumentError, lambda: self._llm.generate([1], top_p=2.0)),
            (sterna.ArgumentError, lambda: self._llm.generate([[1], [2, -1]])),
            (TypeError, lambda: self._llm.generate([1], max_token=2)),
        ]
        expected, call = self._rng.choice(wrong)
        try:
            call()
        except expected:
            return 1
        raise AssertionError(f"a request that should raise {expected.__name__} did not")


def crowd(llm: sterna.LLM, rng: random.Random) -> int:
    """Threads of their own, a few requests each, at the same time; the number of requests."""
    counts: list[int] = []
    errors: list[BaseException] = []

    def call(seed: int) -> None:
        requests = Requests(llm, random.Random(seed))
        try:
            counts.append(sum(requests.some() for _ in range(4)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(rng.getrandbits(64),)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)


def sample(llm: sterna.LLM, requests: int, begin: float) -> Sample:
    """Waits until nothing runs, then looks. TimeoutError where something still runs after a minute."""
    gc.collect()
    deadline = time.monotonic() + IDLE_SECONDS
    while (stats := llm.engine.stats()).running or stats.waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{stats.running} requests run and {stats.waiting} wait though nobody asks")
        time.sleep(0.001)
    counts = {name: getattr(stats, name) for name in dir(stats) if not name.startswith("_")}
    return Sample(
        requests=requests,
        seconds=time.monotonic() - begin,
        rss_bytes=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES,
        threads=len(os.listdir("/proc/self/task")),
        files=len(os.listdir("/proc/self/fd")),
        engine={name: value for name, value in counts.items() if isinstance(value, int)},
    )


def soak(model: str, requests: int, threads: int, seed: int) -> tuple[list[Sample], Counter[str]]:
    """The samples, the first of them once all kinds of requests have been there, and how many requests of each kind."""
    rng = random.Random(seed)
    made: Counter[str] = Counter()
    with sterna.load(model, context=CONTEXT, kv_tokens=KV_TOKENS, threads=threads, max_sequences=CALLERS) as llm:
        single = Requests(llm, rng)
        weights, calls = zip(*single.kinds(), strict=True)
        for call in calls:  # what is imported or allocated once
            call()
        crowd(llm, rng)
        begin, done = time.monotonic(), 0
        samples = [sample(llm, 0, begin)]
        while done < requests:
            if rng.random() < 0.01:
                count, name = crowd(llm, rng), "eight threads"
            else:
                call = rng.choices(calls, weights)[0]
                count, name = call(), call.__name__
            done += count
            made[name] += count
            if done >= samples[-1].requests + SAMPLE_EVERY:
                samples.append(sample(llm, done, begin))
                print_progress(samples[-1])
        samples.append(sample(llm, done, begin))
    return samples, made


def print_progress(at: Sample) -> None:
    """A line on stderr."""
    rss = f"{at.rss_bytes / MIB:.2f} MiB"
    print(f"{at.requests:6} {at.seconds:6.1f} s {rss} {at.threads} threads {at.files} files", file=sys.stderr)


def slope(samples: list[Sample]) -> float:
    """MiB per 10,000 requests of the line of least squares through the samples' resident memory."""
    requests = np.array([at.requests for at in samples], np.float64)
    rss = np.array([at.rss_bytes for at in samples], np.float64)
    if len(np.unique(requests)) < 2:
        raise ValueError("a slope needs samples at two times")
    return float(np.polyfit(requests, rss, 1)[0]) * 10_000 / MIB


def faults(samples: list[Sample]) -> list[str]:
    """What did not stay as it was."""
    first, last = samples[0], samples[-1]
    after = [at for at in samples if at.requests >= WARM_UP_SHARE * last.requests]
    found = []
    if (rise := slope(after)) > MAX_SLOPE:
        found.append(f"memory grows by {rise:.2f} MiB per 10,000 requests")
    if last.threads != first.threads:
        found.append(f"{last.threads} threads, {first.threads} at the start")
    if last.files != first.files:
        found.append(f"{last.files} open files, {first.files} at the start")
    pages = [at.engine["pages_in_use"] for at in samples]
    if pages[-1] != pages[0]:
        found.append(f"{pages[-1]} pages in use, {pages[0]} at the start")
    return found


def main() -> int:
    """Runs, prints, judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also writes all samples there")
    args = parser.parse_args()
    if args.requests < 4 * SAMPLE_EVERY:
        parser.error(f"--requests must be at least {4 * SAMPLE_EVERY}")
    samples, made = soak(args.model, args.requests, args.threads, args.seed)
    found = faults(samples)
    after = [at for at in samples if at.requests >= WARM_UP_SHARE * samples[-1].requests]
    result = {
        "model": Path(args.model).name,
        "sterna": sterna.__version__,
        "requests": samples[-1].requests,
        "kinds": dict(made),
        "seconds": round(samples[-1].seconds, 1),
        "slope_mib_per_10000": round(slope(after), 4),
        "first": asdict(samples[0]),
        "after_warm_up": asdict(after[0]),
        "last": asdict(samples[-1]),
        "faults": found,
    }
    print(json.dumps(result, indent=2))
    if args.json:
        whole = {**result, "samples": [asdict(at) for at in samples]}
        args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    slope_text = f"slope {result['slope_mib_per_10000']} MiB per 10,000 requests"
    print(f"FAILED: {'; '.join(found)}" if found else f"ok: {slope_text}; threads, files and pages as at the start")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

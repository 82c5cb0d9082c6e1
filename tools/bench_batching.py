"""Throughput of many sequences at once: sterna, llama-batched-bench, and llama-cpp-python behind a lock, in turn.

    python tools/bench_batching.py MODEL... --batched-bench PATH [--sequences 1,4,16,32] [--prompt 128] [--generate 64]
                                   [--pairs 5] [--locked-pairs 2] [--threads 2] [--out benchmarks/batching.md]

PATH is llama.cpp's own program, built from the source package of llama-cpp-python:

    pip download --no-binary :all: --no-deps llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build build --target llama-batched-bench -j    # PATH is build/bin/llama-batched-bench

All three do the same work: N sequences, each a prompt of its own of random tokens, shared with no other and never seen
before, then `generate` steps of one token each after the first one.

sterna: all requests at once to the engine of one loaded model, greedy, without speculation.
llama-batched-bench: prompts all at once, then steps of all sequences in lockstep, without a sampler, at its best of
flash attention, unified cache and repacking (each tried, for each N); a short run before the measured one warms it up.
Locked: N threads share one `Llama` and take turns at it, as its users must, greedy; with flash attention where that is
faster. It takes N times as long as one sequence, so that it may be left out of the later pairs (--locked-pairs).

"total" is all tokens, prompts included, by all the time. "decode" is the tokens of the steps by the time that they add
to that of the prompts; sterna mixes the two, and so the time of the same prompts with one token each is measured by
itself and taken off. A ratio is the median over the pairs, with its range. The same name with .json beside FILE keeps
the rows of earlier runs that this one does not measure again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sterna
from bench_peers import PAUSE_SECONDS, processor, speed
from peer import Peer
from sterna.memory import PAGE_TOKENS

WARM_UP_STEPS = 4
# How sterna is asked: nothing is drawn, nothing ends early, nothing is guessed ahead.
ASKED: dict[str, Any] = {"sampling": sterna._core.SamplingParams(temperature=0.0), "draft_tokens": 0}


@dataclass(frozen=True)
class Shape:
    """So many sequences, each of so many tokens."""

    sequences: int
    prompt: int
    generate: int

    @property
    def context(self) -> int:
        """Tokens of one sequence; the first generated one comes with the prompt and is not counted."""
        return self.prompt + self.generate + 1

    @property
    def kv_tokens(self) -> int:
        return self.sequences * -(-self.context // PAGE_TOKENS) * PAGE_TOKENS


@dataclass(frozen=True)
class Run:
    """Seconds for the prompts alone, and for everything."""

    prompt_seconds: float
    seconds: float

    def decode(self, shape: Shape) -> float:
        """Tokens per second."""
        return shape.sequences * shape.generate / (self.seconds - self.prompt_seconds)

    def total(self, shape: Shape) -> float:
        """Tokens per second, those of the prompts too."""
        return shape.sequences * (shape.prompt + shape.generate) / self.seconds


@dataclass(frozen=True)
class Row:
    """One number of sequences of one model: every run, in the order of the pairs."""

    model: str
    shape: Shape
    threads: int
    date: str
    settings: str  # of llama-batched-bench
    locked_settings: str
    sterna: list[Run]
    batched: list[Run]
    locked: list[Run]  # of the first pairs only


class Sterna:
    """Requests to one loaded model."""

    def __init__(self, llm: sterna.LLM, shape: Shape, rng: np.random.Generator) -> None:
        self._llm, self._shape, self._rng = llm, shape, rng

    def run(self) -> Run:
        return Run(self._seconds(1), self._seconds(self._shape.generate + 1))

    def _seconds(self, max_tokens: int) -> float:
        prompts = random_prompts(self._rng, self._llm.info.vocab_size, self._shape)
        begin = time.perf_counter()
        requests = [self._llm.engine.submit(prompt, max_tokens=max_tokens, **ASKED) for prompt in prompts]
        for request in requests:
            request.events()
        seconds = time.perf_counter() - begin
        timings = [request.timings for request in requests]
        if any(each.generated_tokens != max_tokens for each in timings):
            raise RuntimeError("a text ended early")
        # A first token or two may be those of another prompt by chance.
        if sum(each.cached_tokens for each in timings) > 0.02 * self._shape.sequences * self._shape.prompt:
            raise RuntimeError("parts of the prompts were found in the cache")
        return seconds


@dataclass(frozen=True)
class BatchedSettings:
    """What of llama.cpp's own choices is worth trying."""

    flash_attention: bool = True
    unified_cache: bool = False
    repack: bool = True

    def __str__(self) -> str:
        return " ".join(self.arguments())

    def arguments(self) -> list[str]:
        """Of the command line."""
        return [
            *("-fa", "on" if self.flash_attention else "off"),
            "--kv-unified" if self.unified_cache else "--no-kv-unified",
            "--repack" if self.repack else "--no-repack",
        ]


class Batched:
    """llama-batched-bench, a process for each run."""

    def __init__(self, program: Path, model: str, shape: Shape, threads: int) -> None:
        self._program, self._model, self._shape, self._threads = program, model, shape, threads
        self.settings = BatchedSettings()

    def choose_settings(self) -> None:
        """Tries each by itself, from the best so far, on a quarter of the steps; the fastest in total stays."""
        short = replace(self._shape, generate=max(1, self._shape.generate // 4))

        def seconds_of(settings: BatchedSettings) -> float:
            return min(run.seconds for run in self._measure(short, [short.generate] * 2, settings))

        best = seconds_of(self.settings)
        for name in ("flash_attention", "unified_cache", "repack"):
            if name == "unified_cache" and short.sequences == 1:
                continue
            other = replace(self.settings, **{name: not getattr(self.settings, name)})
            seconds = seconds_of(other)
            if seconds < best:
                self.settings, best = other, seconds

    def run(self) -> Run:
        return self._measure(self._shape, [WARM_UP_STEPS, self._shape.generate], self.settings)[-1]

    def _measure(self, shape: Shape, steps: list[int], settings: BatchedSettings) -> list[Run]:
        """Runs in one process, one for each number of steps."""
        tokens = shape.sequences * (shape.prompt + max(steps))
        command = [
            *(str(self._program), "-m", self._model, "-c", str(tokens), "-t", str(self._threads)),
            *("-npp", str(shape.prompt), "-ntg", ",".join(map(str, steps)), "-npl", str(shape.sequences)),
            *("--output-format", "jsonl", *settings.arguments()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"llama-batched-bench ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return parse_batched(done.stdout, shape, steps)

    def version(self) -> str:
        """What the program says about itself."""
        done = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True)
        return "; ".join((done.stdout + done.stderr).strip().splitlines())


def parse_batched(output: str, shape: Shape, steps: list[int]) -> list[Run]:
    """The runs that llama-batched-bench printed. RuntimeError when they are not what was asked for."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    asked = [(shape.prompt, generate, shape.sequences, 0) for generate in steps]
    measured = [(row["pp"], row["tg"], row["pl"], row["is_pp_shared"]) for row in rows]
    if measured != asked:
        raise RuntimeError(f"llama-batched-bench measured {measured}, not {asked}")
    return [Run(row["t_pp"], row["t"]) for row in rows]


class Locked:
    """One `Llama`, and a lock around it."""

    def __init__(self, model: str, shape: Shape, threads: int, rng: np.random.Generator) -> None:
        import llama_cpp

        self._shape, self._rng = shape, rng
        options = {"n_ctx": shape.context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        found: list[tuple[float, bool, Any]] = []
        for flash in (False, True):
            self._llama: Any = llama_cpp.Llama(model, flash_attn=flash, **options)
            self._complete(self._prompts()[0])
            found.append((self._complete(self._prompts()[0]).seconds, flash, self._llama))
        _, flash, self._llama = min(found, key=lambda each: each[0])
        self.settings = f"flash_attn={flash}"
        next(llama for _, other, llama in found if other != flash).close()

    def run(self) -> Run:
        """Threads wait for the lock; the prompts' time is the sum of what they took inside of it."""
        lock = threading.Lock()
        runs: list[Run] = []

        def call(prompt: list[int]) -> None:
            with lock:
                runs.append(self._complete(prompt))

        threads = [threading.Thread(target=call, args=(prompt,)) for prompt in self._prompts()]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(runs) != len(threads):
            raise RuntimeError("llama-cpp-python failed")
        return Run(sum(run.prompt_seconds for run in runs), time.perf_counter() - begin)

    def _complete(self, prompt: list[int]) -> Run:
        """Below `create_completion`, so that no end token ends a text early; it is a little faster than that."""
        begin = time.perf_counter()
        tokens = self._llama.generate(prompt, temp=0.0)
        next(tokens)
        first = time.perf_counter()
        for _ in range(self._shape.generate):
            next(tokens)
        tokens.close()
        return Run(first - begin, time.perf_counter() - begin)

    def _prompts(self) -> list[list[int]]:
        return random_prompts(self._rng, self._llama.n_vocab(), self._shape)

    def close(self) -> None:
        self._llama.close()


def random_prompts(rng: np.random.Generator, vocab_size: int, shape: Shape) -> list[list[int]]:
    """One for each sequence."""
    prompts: list[list[int]] = rng.integers(0, vocab_size, (shape.sequences, shape.prompt)).tolist()
    return prompts


def take_turns(runners: list[Callable[[], Run]], limits: list[int], pairs: int) -> list[list[Run]]:
    """The runs of each, which begin in another order each time; one with a limit takes part in so many pairs."""
    runs: list[list[Run]] = [[] for _ in runners]
    for pair in range(pairs):
        order = [(pair + i) % len(runners) for i in range(len(runners))]
        for which in order:
            if pair < limits[which]:
                time.sleep(PAUSE_SECONDS)  # until the idle threads of the last one no longer spin
                runs[which].append(runners[which]())
    return runs


def bench(llm: sterna.LLM, model: str, shape: Shape, args: argparse.Namespace) -> Row:
    """All runs of one number of sequences."""
    rng = np.random.default_rng(shape.sequences)
    path = llm.info.path
    batched = Batched(args.batched_bench, path, shape, args.threads)
    batched.choose_settings()
    ours = Sterna(llm, shape, rng)
    ours.run()
    locked = Locked(path, shape, args.threads, rng) if args.locked_pairs else None
    runners = [ours.run, batched.run] + ([locked.run] if locked else [])
    runs = take_turns(runners, [args.pairs, args.pairs, args.locked_pairs], args.pairs)
    if locked:
        locked.close()
    return Row(
        model=Path(model).name if Path(model).exists() else model,
        shape=shape,
        threads=args.threads,
        date=datetime.date.today().isoformat(),
        settings=str(batched.settings),
        locked_settings=locked.settings if locked else "",
        sterna=runs[0],
        batched=runs[1],
        locked=runs[2] if locked else [],
    )


HEADER = (
    "| model | sequences | decode, t/s: sterna | llama-batched-bench | ratio (range) | total, t/s: sterna "
    "| llama-batched-bench | ratio (range) | locked llama-cpp-python | ratio (range) | settings of llama.cpp |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def format_row(row: Row) -> str:
    """A line of the Markdown table."""
    cells = [row.model, str(row.shape.sequences)]
    cells += compare(*([run.decode(row.shape) for run in runs] for runs in (row.sterna, row.batched)))
    cells += compare(*([run.total(row.shape) for run in runs] for runs in (row.sterna, row.batched)))
    cells += compare(*([run.total(row.shape) for run in runs] for runs in (row.sterna, row.locked)))[1:]
    cells.append(f"{row.settings}; {row.locked_settings}" if row.locked_settings else row.settings)
    return f"| {' | '.join(cells)} |"


def compare(ours: list[float], theirs: list[float]) -> list[str]:
    """Median speeds of both, and the median and range of the ratios of each pair that has both."""
    if not theirs:
        return [speed(statistics.median(ours)), "", ""]
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [speed(statistics.median(ours)), speed(statistics.median(theirs)), ratio]


def report(rows: list[Row], versions: list[str]) -> str:
    """The Markdown file."""
    models = " ".join(dict.fromkeys(row.model for row in rows))
    first = rows[0]
    shape = first.shape
    counts = ",".join(str(count) for count in sorted({row.shape.sequences for row in rows}))
    pairs = min(len(row.sterna) for row in rows)
    dates = sorted({row.date for row in rows})
    options = f"--sequences {counts} --prompt {shape.prompt} --generate {shape.generate} --pairs {pairs}"
    options += f" --locked-pairs {min(len(row.locked) for row in rows)} --threads {first.threads}"
    return f"""# Many sequences at once

`python tools/bench_batching.py {models} --batched-bench PATH {options}`: tokens per second of all sequences together,
medians; ratios are medians over at least {pairs} pairs of alternating runs. Prompts are random tokens; no sequence
shares a prefix with another, in any of the three. "total" counts prompts and generated tokens by all the time, "decode"
the generated ones by the time that they add.

{HEADER}
{chr(10).join(map(format_row, rows))}

Machine: {processor()}, {first.threads} threads. sterna {sterna.__version__}, {sterna._core.chosen_isa()}.
Measured {dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"}.

Peers: {". ".join(versions)}.
"""


def saved_rows(path: Path) -> list[Row]:
    """The rows of an earlier run; none where there is no such file."""
    if not path.exists():
        return []
    rows = []
    for saved in json.loads(path.read_text(encoding="utf-8")):
        runs = {name: [Run(**run) for run in saved.pop(name)] for name in ("sterna", "batched", "locked")}
        rows.append(Row(**{**saved, "shape": Shape(**saved["shape"])}, **runs))
    return rows


def write(path: Path, rows: list[Row], versions: list[str]) -> None:
    """The table and the raw runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(rows, versions), encoding="utf-8")
    raw = json.dumps([asdict(row) for row in rows], indent=2)
    path.with_suffix(".json").write_text(raw + "\n", encoding="utf-8")


def main() -> None:
    """Prints the table; writes Markdown and JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--batched-bench", type=Path, required=True, metavar="PATH")
    parser.add_argument("--sequences", default="1,4,16,32", help="numbers with commas between")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--locked-pairs", type=int, default=2, help="0 leaves llama-cpp-python behind a lock out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file; the same name with .json beside it holds the runs")
    args = parser.parse_args()
    if not args.batched_bench.is_file():
        parser.error(f"--batched-bench: {args.batched_bench} is no file; --help says how to build it")
    if min(args.prompt, args.generate, args.pairs, args.threads) < 1:
        parser.error("--prompt, --generate, --pairs and --threads must be at least 1")
    shapes = [Shape(int(count), args.prompt, args.generate) for count in args.sequences.split(",")]
    versions = [f"llama-batched-bench: {Batched(args.batched_bench, '', shapes[0], 1).version()}"]
    if args.locked_pairs:
        versions.append(f"locked: {Peer.version()}")
    rows = saved_rows(args.out.with_suffix(".json")) if args.out else []
    print(HEADER, flush=True)
    for model in args.models:
        most = max(shapes, key=lambda shape: shape.sequences)
        settings = {"context": most.context, "kv_tokens": most.kv_tokens, "max_sequences": most.sequences}
        with sterna.load(model, threads=args.threads, **settings) as llm:
            for shape in shapes:
                row = bench(llm, model, shape, args)
                print(format_row(row), flush=True)
                rows = [old for old in rows if (old.model, old.shape) != (row.model, row.shape)] + [row]
                if args.out:  # what is there is kept, whatever happens to the next one
                    write(args.out, rows, versions)
    print("\n".join(versions), file=sys.stderr)


if __name__ == "__main__":
    main()

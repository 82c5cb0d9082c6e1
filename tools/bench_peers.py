"""sterna beside llama.cpp on the same files, measured in turn in one run.

    python tools/bench_peers.py MODEL... [--tests pp512,tg128,tg128@d4096,"tg128 b4"] [--pairs 7] [--threads 2]
                                [--peer-model FILE] [--out FILE.md]

MODEL is a path or a name that `sterna.load` takes; tests are named as `sterna bench` names them. The peer (`pip install
'sterna[peers]'`, built for the machine) runs with its best settings: each of repacking and flash attention, on and off
(and for several sequences a cache of their own or a common one), is tried first, and the fastest counts, for each test
by itself. Then the two take turns, and before each pair the machine's limits are measured, because they drift; a row is
the median of the pairs' ratios, with their range. Neither samples: sterna's greedy choice is the only thing in its time
that the peer's has not. Prompts of the same token ids, the same context, warm caches, no speculation. FILE.json keeps
the rows of earlier runs that this one does not measure again, so that a table may grow. With --peer-model the peer runs
another file: the same shape in a format that it reads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sterna
from peer import Peer, PeerSettings, all_settings
from sterna._core import Gguf, Machine
from sterna.bench import BenchTest, Measurement, Work, work_of
from sterna.machine import SHORT_BUFFER_BYTES
from sterna.trace import trace

# A setting is tried up to three times, but not for longer.
TRIAL_SECONDS = 4.0
# Until the idle threads of the other one no longer spin.
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Row:
    """One test of one model; speeds in tokens per second, medians over the pairs."""

    model: str
    test: str
    sterna: float
    peer: float
    peer_settings: str
    ratio: float  # median over the pairs
    ratio_range: tuple[float, float]
    pairs: int
    share: float  # of the machine's limit, measured before each pair
    peer_share: float
    limit: str
    machine_bytes_per_second: float
    machine_macs_per_second: float
    work: Work
    sterna_runs: list[float]
    peer_runs: list[float]
    peer_model: str = ""  # where the peer ran another file


class PeerMeasurement:
    """A test in llama.cpp, made ready to run again and again: the tokens before it stay in the cache."""

    def __init__(self, path: str, test: BenchTest, threads: int, settings: PeerSettings) -> None:
        self.test = test
        self.peer = Peer(path, context=test.context, threads=threads, sequences=test.batch, settings=settings)
        rng = np.random.default_rng(0)
        shape = test.batch, test.depth + 1 + test.prompt + test.generate
        tokens = rng.integers(0, self.peer.vocab_size, shape).tolist()
        if test.depth:
            self.peer.prefill([sequence[: test.depth] for sequence in tokens], 0)
        fresh = [sequence[test.depth :] for sequence in tokens]
        self._prompts = [sequence[: test.prompt or 1] for sequence in fresh]
        self._steps = [
            list(step) for step in zip(*(sequence[1 : test.generate + 1] for sequence in fresh), strict=True)
        ]

    def run(self) -> float:
        """Tokens per second of one run, all sequences together."""
        test, peer = self.test, self.peer
        peer.rewind(test.depth)
        seconds = peer.prefill_seconds(self._prompts, test.depth)
        if test.generate:
            seconds = peer.decode_seconds(self._steps, test.depth + 1)
        return test.batch * (test.prompt or test.generate) / seconds

    def close(self) -> None:
        self.peer.close()


def best_settings(path: str, test: BenchTest, threads: int) -> PeerSettings:
    """The peer's fastest settings for a test."""
    speeds: dict[PeerSettings, float] = {}
    for settings in all_settings(test.batch):
        measurement = PeerMeasurement(path, test, threads, settings)
        begin, runs = time.perf_counter(), 0
        while runs < 3 and time.perf_counter() - begin < TRIAL_SECONDS:
            speeds[settings] = max(speeds.get(settings, 0.0), measurement.run())
            runs += 1
        measurement.close()
    return max(speeds, key=lambda settings: speeds[settings])


def run_pairs(
    ours: Callable[[], float], theirs: Callable[[], float], machine: Machine, pairs: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Runs of both, taking turns at going first, and the machine's bytes and multiply-accumulates per second."""
    runs: tuple[list[float], list[float]] = [], []
    bandwidths, peaks = [], []
    ours()
    theirs()
    for pair in range(pairs):
        bandwidths.append(max(speed for _, _, speed in machine.read_speeds(1)))
        peaks.append(machine.macs_per_second(4))
        for of, run in sorted(((0, ours), (1, theirs)), key=lambda each: each[0], reverse=pair % 2 == 1):
            time.sleep(PAUSE_SECONDS)
            runs[of].append(run())
    return *runs, bandwidths, peaks


def bench(model: str, tests: list[BenchTest], pairs: int, threads: int, peer_model: str | None = None) -> list[Row]:
    """All tests of one model; the peer runs peer_model, where there is one."""
    rows = []
    machine = Machine(threads=threads, buffer_bytes=SHORT_BUFFER_BYTES)
    context = max(test.context for test in tests)
    kv_tokens = max(test.kv_tokens for test in tests)
    sequences = max(test.batch for test in tests)
    with sterna.load(model, context=context, threads=threads, max_sequences=sequences, kv_tokens=kv_tokens) as llm:
        program = trace(Gguf(llm.info.path)).program
        for test in tests:
            peer_path = peer_model or llm.info.path
            settings = best_settings(peer_path, test, threads)
            peer = PeerMeasurement(peer_path, test, threads, settings)
            ours, theirs, bandwidths, peaks = run_pairs(Measurement(llm.engine, test).run, peer.run, machine, pairs)
            peer.close()
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            work = work_of(program, test)
            shares, limit = median_share(work, ours, bandwidths, peaks)
            rows.append(
                Row(
                    model=Path(model).name if Path(model).exists() else model,
                    test=test.name,
                    sterna=statistics.median(ours),
                    peer=statistics.median(theirs),
                    peer_settings=str(settings),
                    ratio=statistics.median(ratios),
                    ratio_range=(min(ratios), max(ratios)),
                    pairs=pairs,
                    share=shares,
                    peer_share=median_share(work, theirs, bandwidths, peaks)[0],
                    limit=limit,
                    machine_bytes_per_second=statistics.median(bandwidths),
                    machine_macs_per_second=statistics.median(peaks),
                    work=work,
                    sterna_runs=ours,
                    peer_runs=theirs,
                    peer_model=Path(peer_model).name if peer_model else "",
                )
            )
            print(format_row(rows[-1]), flush=True)
    return rows


def median_share(work: Work, speeds: list[float], bandwidths: list[float], peaks: list[float]) -> tuple[float, str]:
    """The nearer limit's share and name; each run is held against the limits measured beside it."""
    shares = [work.shares(*measured) for measured in zip(speeds, bandwidths, peaks, strict=True)]
    memory, integer = (statistics.median(share) for share in zip(*shares, strict=True))
    return (memory, "memory") if memory >= integer else (integer, "integer")


def format_row(row: Row) -> str:
    """A line of the Markdown table."""
    low, high = row.ratio_range
    model = Path(row.model).name + (f" (llama.cpp: {row.peer_model})" if row.peer_model else "")
    return (
        f"| {model} | {row.test} | {speed(row.sterna)} | {speed(row.peer)} | "
        f"{row.ratio:.2f} ({low:.2f} to {high:.2f}) | {100 * row.share:.0f} % / {100 * row.peer_share:.0f} % "
        f"{row.limit} | {row.peer_settings} |"
    )


def speed(tokens_per_second: float) -> str:
    """Three digits, or all before the point."""
    return f"{tokens_per_second:.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


HEADER = (
    "| model | test | sterna, t/s | llama.cpp, t/s | ratio (range) | share of the limit, sterna / llama.cpp | "
    "llama.cpp's best settings |\n"
    "|---|---|---|---|---|---|---|"
)


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(rows: list[Row], args: argparse.Namespace) -> str:
    """The Markdown file: how it was measured, the table, the peer, and the limits of the machine."""
    models = " ".join(dict.fromkeys(Path(row.model).name for row in rows))
    tests = ",".join(dict.fromkeys(row.test for row in rows))
    pairs = min(row.pairs for row in rows)
    options = f"--tests {tests!r} --pairs {pairs} --threads {args.threads}"
    reads = [row.machine_bytes_per_second / 1e9 for row in rows]
    peaks = [row.machine_macs_per_second / 1e9 for row in rows]
    return f"""# sterna beside llama.cpp on a CPU

`python tools/bench_peers.py {models} {options}`: tokens per second, medians; the ratio is the median over
at least {pairs} pairs of alternating runs. The limit is the memory bandwidth or the integer peak, whichever is nearer,
measured before each pair.

{HEADER}
{chr(10).join(map(format_row, rows))}

Machine: {processor()}, {args.threads} threads; from row to row reads of {min(reads):.1f} to {max(reads):.1f} GB/s and
{min(peaks):.0f} to {max(peaks):.0f} GMAC/s. sterna {sterna.__version__}, {sterna._core.chosen_isa()}.

Peer: {Peer.version()}.
"""


def saved_rows(path: Path) -> list[Row]:
    """The rows of an earlier run; none where there is no such file."""
    if not path.exists():
        return []
    rows = []
    for saved in json.loads(path.read_text(encoding="utf-8")):
        work = Work(**saved.pop("work"))
        rows.append(Row(**{**saved, "ratio_range": tuple(saved["ratio_range"])}, work=work))
    return rows


def main() -> None:
    """Prints the table; writes Markdown and JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tests", default="pp512,tg128", help="names with commas between")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-model", metavar="FILE", help="what llama.cpp runs in place of MODEL")
    parser.add_argument("--out", type=Path, help="Markdown file; the same name with .json beside it holds the rows")
    args = parser.parse_args()
    tests = [BenchTest.parse(name.strip()) for name in args.tests.split(",")]
    print(HEADER, flush=True)
    rows = saved_rows(args.out.with_suffix(".json")) if args.out else []
    for model in args.models:
        found = bench(model, tests, args.pairs, args.threads, args.peer_model)
        measured = {(row.model, row.test) for row in found}
        rows = [row for row in rows if (row.model, row.test) not in measured] + found
        if args.out:  # what is there is kept, whatever happens to the next model
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(report(rows, args), encoding="utf-8")
            saved = json.dumps([asdict(row) for row in rows], indent=2)
            args.out.with_suffix(".json").write_text(saved + "\n", encoding="utf-8")
    print(f"Peer: {Peer.version()}.")


if __name__ == "__main__":
    main()

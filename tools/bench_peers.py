"""sterna beside llama.cpp on the same files: prefill and decode, measured in turn in one run.

    python tools/bench_peers.py MODEL... [--prompt 512] [--generate 128] [--pairs 7] [--threads 2] [--out FILE.md]

MODEL is a path or a name that `sterna.load` takes. The peer (`pip install 'sterna[peers]'`, built for the machine) runs
with its best settings: each of repacking and flash attention, on and off, is tried first, and the fastest counts, for
prefill and decode separately. Then the two take turns, one run each; a row is the median of the pairs' ratios, with
their range. Neither samples: sterna's greedy choice is the only thing in its time that the peer's has not. The same
token ids, the same context, warm caches, no speculation.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sterna
from peer import ALL_SETTINGS, Peer, PeerSettings
from sterna.bench import BenchTest, measure


@dataclass(frozen=True)
class Row:
    """One test of one model, in tokens per second."""

    model: str
    test: str
    sterna: float
    peer: float
    peer_settings: str
    ratio: float  # median over the pairs
    ratio_range: tuple[float, float]
    pairs: int


def best_settings(path: str, threads: int, run: Callable[[Peer], float]) -> tuple[PeerSettings, Peer]:
    """The peer's fastest settings for a test, and a peer that has them."""
    speeds: dict[PeerSettings, float] = {}
    for settings in ALL_SETTINGS:
        peer = Peer(path, context=1024, threads=threads, settings=settings)
        run(peer)
        speeds[settings] = max(run(peer) for _ in range(3))
        peer.close()
    best = max(speeds, key=lambda settings: speeds[settings])
    return best, Peer(path, context=1024, threads=threads, settings=best)


def bench(model: str, tests: list[BenchTest], pairs: int, threads: int) -> list[Row]:
    """All tests of one model."""
    rows = []
    with sterna.load(model, context=1024, threads=threads) as llm:
        tokens = np.random.default_rng(0).integers(0, llm.info.vocab_size, 1024).tolist()
        for test in tests:

            def run_peer(peer: Peer, test: BenchTest = test) -> float:
                if test.prompt:
                    return test.prompt / peer.prefill_seconds(tokens[: test.prompt])
                peer.prefill_seconds(tokens[:1])
                return test.generate / peer.decode_seconds(tokens[1 : test.generate + 1], 1)

            settings, peer = best_settings(llm.info.path, threads, run_peer)
            ours, theirs = [], []
            for _ in range(pairs):
                ours.append(measure(llm.engine, test, 1).tokens_per_second)
                theirs.append(run_peer(peer))
            peer.close()
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            rows.append(
                Row(
                    model,
                    test.name,
                    statistics.median(ours),
                    statistics.median(theirs),
                    str(settings),
                    statistics.median(ratios),
                    (min(ratios), max(ratios)),
                    pairs,
                )
            )
            print(format_row(rows[-1]), flush=True)
    return rows


def format_row(row: Row) -> str:
    """A line of the Markdown table."""
    low, high = row.ratio_range
    return (
        f"| {Path(row.model).name} | {row.test} | {row.sterna:.0f} | {row.peer:.0f} | "
        f"{row.ratio:.2f} ({low:.2f} to {high:.2f}) | {row.peer_settings} |"
    )


HEADER = (
    "| model | test | sterna, t/s | llama.cpp, t/s | ratio (range) | llama.cpp's best settings |\n"
    "|---|---|---|---|---|---|"
)


def main() -> None:
    """Prints the table; writes Markdown and JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file; the same name with .json beside it holds the rows")
    args = parser.parse_args()
    tests = [BenchTest(prompt=args.prompt), BenchTest(generate=args.generate)]
    print(HEADER)
    rows = [row for model in args.models for row in bench(model, tests, args.pairs, args.threads)]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table = "\n".join([HEADER, *map(format_row, rows)])
        text = (
            "# sterna beside llama.cpp on a CPU\n\n"
            f"`python tools/bench_peers.py {' '.join(Path(model).name for model in args.models)} --pairs {args.pairs} "
            f"--threads {args.threads}`: tokens per second, medians; the ratio is the median over {args.pairs} pairs "
            f"of alternating runs.\n\n{table}\n\nPeer: {Peer.version()}.\n"
        )
        args.out.write_text(text, encoding="utf-8")
        args.out.with_suffix(".json").write_text(
            json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()

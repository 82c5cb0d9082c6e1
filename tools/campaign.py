"""The same tokens, whatever the company: random schedules of requests, bit for bit against each sequence alone.

    python tools/campaign.py [--model FILE]... [--comparisons 10000] [--seed 0] [--threads N]
    python tools/campaign.py --model FILE --repeat SCHEDULE.json [--times 100]

A schedule makes an engine (threads, chunk size, pages, sequences at a time, cache type) and lets requests arrive, be
read, continue each other, be cancelled and be left: tests/engine/schedules.py makes them, company_check.py runs them.
A comparison is one request: all its tokens, and the log-probabilities of the whole vocabulary at each of them, or its
scores, or its rows of logits, equal in every bit to what the plan gives for it alone; the rows are counted as well. The
engine's thread runs beside the script, so that one schedule may take several courses: the first difference ends the
campaign with exit code 1 and the schedule, which --repeat runs again, many times. Models are of tests/data by default.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sterna import _core

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from company_check import Check, DifferenceError, Model  # noqa: E402
from schedules import Schedule, random_schedule  # noqa: E402

# Integer codes with an activation rule, a sliding window, experts, ternary weights.
DEFAULT_MODELS = ("llama-256.Q4_0", "gemma3", "mixtral", "bitnet.TQ2_0")


def campaign(models: list[Model], comparisons: int, seed: int, threads: int | None) -> Counter[str]:
    """The models take turns until there are so many comparisons. DifferenceError."""
    counts: Counter[str] = Counter()
    said = time.monotonic()
    while counts["sequences"] < comparisons:
        model = models[counts["schedules"] % len(models)]
        rng = random.Random(f"{seed}/{counts['schedules']}")
        counts["schedules"] += 1
        counts.update(run(model, random_schedule(rng, threads)))
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{counts['sequences']} comparisons, {counts['rows']} rows", file=sys.stderr)
    return counts


def run(model: Model, schedule: Schedule) -> Counter[str]:
    """The counts of one schedule; DifferenceError names the model too."""
    try:
        return Check(model, schedule).run()
    except DifferenceError as error:
        raise DifferenceError(f"{model.path}: {error}") from None


def summary(models: list[Model], args: argparse.Namespace, counts: Counter[str], seconds: float) -> dict[str, Any]:
    """What is printed at the end."""
    return {
        "models": [f"{model.path.parent.name}/{model.path.name}" for model in models],
        "isa": _core.chosen_isa(),
        "seed": args.seed,
        "comparisons": counts["sequences"],
        **{name.replace(" ", "_"): count for name, count in sorted(counts.items()) if name != "sequences"},
        "seconds": round(seconds, 1),
        "differences": 0,
    }


def main() -> int:
    """Runs a campaign, or one schedule again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", help="a GGUF file; may be given several times")
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, choices=(1, 2, 3), help="of all schedules; they choose by themselves")
    parser.add_argument("--repeat", type=Path, metavar="SCHEDULE", help="a schedule as a difference printed it")
    parser.add_argument("--times", type=int, default=100, help="how often to repeat it")
    args = parser.parse_args()
    folder = ROOT / "tests" / "data" / "oracle"
    models = [Model(path) for path in args.model or [folder / name / "model.gguf" for name in DEFAULT_MODELS]]
    begin = time.monotonic()
    try:
        if args.repeat:
            if len(models) != 1:
                parser.error("--repeat needs one --model")
            schedule = Schedule.from_json(args.repeat.read_text(encoding="utf-8"))
            counts: Counter[str] = Counter()
            for _ in range(args.times):
                counts.update(run(models[0], schedule))
        else:
            counts = campaign(models, args.comparisons, args.seed, args.threads)
    except DifferenceError as error:
        print(error)
        return 1
    print(json.dumps(summary(models, args, counts, time.monotonic() - begin), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rows of `sterna bench` as saved in JSON: their share of the machine's limit, and one run of them beside another."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.bench import Work
from sterna.errors import ArgumentError, FileError
from sterna.machine import MachineLimits

Row = dict[str, Any]

_NEEDED = ("test", "tokens_per_second", "runs", "model", "threads", "isa")
_NUMBERS = (
    "tokens_per_second",
    "threads",
    "share",
    "work_bytes_per_token",
    "work_macs_per_token",
    "machine_bytes_per_second",
    "machine_macs_per_second",
)


def limit_fields(work: Work, tokens_per_second: float, limits: MachineLimits) -> Row:
    """What a row says about the machine's limits: `share` of the nearer one, and which it is ("memory", "integer")."""
    memory, integer = work.shares(tokens_per_second, limits.bytes_per_second, limits.macs_per_second)
    return {
        "share": max(memory, integer),
        "limit": "memory" if memory >= integer else "integer",
        "work_bytes_per_token": work.bytes_per_token,
        "work_macs_per_token": work.macs_per_token,
        "machine_bytes_per_second": limits.bytes_per_second,
        "machine_macs_per_second": limits.macs_per_second,
    }


def share_text(row: Row) -> str:
    """ "87 % memory", or nothing where the row has no share."""
    return f"{100 * row['share']:.0f} % {row['limit']}" if "share" in row else ""


def load_rows(path: Path) -> list[Row]:
    """What `sterna bench -o json` printed. FileError, ArgumentError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", str(path), error.errno or 0) from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ArgumentError(f"{path} is no list of benchmark rows")
    for row in rows:
        if problem := _problem(row):
            raise ArgumentError(f"{path} is no list of benchmark rows: {problem}")
    return rows


def _problem(row: Any) -> str | None:
    """What is wrong with a row of a file."""
    if not isinstance(row, dict):
        return "one is no object"
    for name in _NEEDED + (_NUMBERS if "share" in row else ()):
        if name not in row:
            return f"one has no {name}"
    for name in _NUMBERS:
        if name in row and not _is_speed(row[name]):
            return f"{name} is no number above 0"
    if not isinstance(row["runs"], list) or not row["runs"] or not all(_is_speed(run) for run in row["runs"]):
        return "runs is no list of speeds"
    texts = [row[name] for name in ("test", "model", "isa")] + ([row.get("limit")] if "share" in row else [])
    return None if all(isinstance(text, str) for text in texts) else "a name is no text"


def _is_speed(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


@dataclass(frozen=True)
class Comparison:
    """The same test in two runs."""

    now: Row
    saved: Row

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return float(self.now["tokens_per_second"] / self.saved["tokens_per_second"])

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a run now to a saved run, without the outer quarters of each."""
        low_now, high_now = _middle(self.now["runs"])
        low_saved, high_saved = _middle(self.saved["runs"])
        return low_now / high_saved, high_now / low_saved

    def as_json(self) -> Row:
        """For the row now: what it was compared to."""
        low, high = self.spread
        saved = self.saved["tokens_per_second"]
        return {"saved_tokens_per_second": saved, "ratio": self.ratio, "ratio_spread": [low, high]}


def _middle(runs: list[float]) -> tuple[float, float]:
    """The quartiles, or all of fewer than four runs."""
    if len(runs) < 4:
        return min(runs), max(runs)
    low, _, high = statistics.quantiles(runs, n=4, method="inclusive")
    return low, high


def compare(now: list[Row], saved: list[Row]) -> list[Comparison]:
    """Each row with the saved one of the same model, test and number of threads. ArgumentError where there is none."""

    def key(row: Row) -> tuple[str, str, int]:
        return row["model"], row["test"], row["threads"]

    before = {key(row): row for row in saved}
    pairs = [Comparison(row, before[key(row)]) for row in now if key(row) in before]
    if not pairs:
        raise ArgumentError("the saved results have no test of the same model, name and number of threads")
    return pairs

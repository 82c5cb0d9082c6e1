"""Writes docs/models.md: every family, the file that describes it, and how close it is to its reference.

    python tools/make_models_table.py [--out docs/models.md]

Runs the tests that compare whole models with transformers' numbers (STERNA_REFERENCE has the whole set, the repository
a subset) and tabulates what they recorded. A family whose tests fail, or that has none, says so.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/cpu"]
# The tests that record an "oracle".
CHOSEN = "float_models or quantised_models or quantised_twins or hidden_states or against_transformers"
INTRODUCTION = """\
Written by `tools/make_models_table.py` from the results of the tests. Each model is a tiny one of random weights; its
reference is Hugging Face transformers in float32, or, where there is none, a program written from the paper.

* **F32**: the relative error of the logits (of the hidden states, for encoders) over all positions, with an f32 cache,
  and at how many positions another token is the most likely one; then the same with an f16 cache.
* **quantised**: how many variants in other formats are tested, and our error divided by llama.cpp's; or the error of a
  Q8_0 twin against the F32 reference, which is mostly what Q8_0 loses.
* Every model that passes gives the same bits token by token as in one piece, in company as alone, and on every
  instruction set: tests beside those that give these numbers."""
FAMILIES = ROOT / "tools" / "model_families.toml"


@dataclass(frozen=True)
class Result:
    """One test of one model: what it measured, whether it passed."""

    oracle: str
    passed: bool
    properties: dict[str, Any]
    error: str = ""


@dataclass
class Collector:
    """Takes what tests record with `record_property`: an "oracle" and its numbers."""

    results: list[Result] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if report.when == "call" and "oracle" in properties:
            reason = "" if report.passed else str(report.longreprtext).strip().splitlines()[-1]
            self.results.append(Result(str(properties.pop("oracle")), report.passed, properties, reason))


@dataclass(frozen=True)
class Family:
    """A row of the table: what people call it, model files, oracles."""

    name: str
    files: Sequence[str]
    oracles: Sequence[str]
    note: str = ""


def read_families() -> list[Family]:
    import tomllib

    table = tomllib.loads(FAMILIES.read_text(encoding="utf-8"))
    return [Family(row["name"], row["files"], row["oracles"], row.get("note", "")) for row in table["family"]]


def file_of(oracle: str) -> str:
    """The model file that describes an oracle: where its program was traced."""
    from oracle import model_path
    from sterna._core import Gguf
    from sterna.trace import trace

    program = trace(Gguf(str(model_path(oracle)))).program
    function = "logits" if "logits" in program.functions else "encode"
    return Path(program.nodes(function)[0].source.rpartition(":")[0]).stem


def files_cell(family: Family) -> str:
    cells = []
    for name in family.files:
        path = ROOT / "models" / f"{name}.py"
        lines = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else None
        cells.append(f"[{name}](../models/{name}.py) {lines}" if lines else f"{name} (not there)")
    return ", ".join(cells)


def numbers_cell(results: Iterable[Result], kv_dtype: str) -> str:
    """The error and the positions with another most likely token."""
    for result in results:
        properties = result.properties
        if properties.get("kv_dtype") == kv_dtype and "error" in properties:
            misses = f", {properties['misses']} of {properties['positions']}" if "misses" in properties else ""
            return f"{properties['error']:.1e}{misses}"
    return ""


def quantised_cell(results: Sequence[Result]) -> str:
    ratios = [result.properties["ratio"] for result in results if "ratio" in result.properties]
    if ratios:
        return f"{len(ratios)}: {min(ratios):.2f} to {max(ratios):.2f} of llama.cpp's error"
    twins = [f"{result.oracle.rpartition('.')[2]} {numbers_cell([result], 'f32')}" for result in results]
    return ", ".join(twins)


def rows_of(family: Family, results: dict[str, list[Result]]) -> Iterable[str]:
    if not family.oracles:
        yield f"| {family.name} | {files_cell(family)} | | | | | {family.note or 'not measured'} |"
    for i, oracle in enumerate(family.oracles):
        found = results.get(oracle, [])
        quantised = [r for name, rs in results.items() if name.startswith(f"{oracle}.") for r in rs]
        failed = [result for result in [*found, *quantised] if not result.passed]
        status = "passes" if found else "not measured"
        if found and family.note:
            status += f"; {family.note}"
        if failed:
            status = f"FAILS: {failed[0].oracle}: {failed[0].error[:80]}"
        first = (family.name, files_cell(family)) if i == 0 else ("", "")
        cells = [
            *first,
            oracle,
            numbers_cell(found, "f32"),
            numbers_cell(found, "f16"),
            quantised_cell(quantised),
            status,
        ]
        yield f"| {' | '.join(cells)} |"


def markdown(families: Sequence[Family], results: dict[str, list[Result]]) -> str:
    lines = [
        "# Models",
        "",
        *INTRODUCTION.splitlines(),
        "",
        "| family | file, lines | model | F32, f32 cache | F32, f16 cache | quantised | status |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in families:
        lines.extend(rows_of(family, results))
    known = {oracle for family in families for oracle in family.oracles}
    rest = sorted(name for name in results if name not in known and name.rpartition(".")[0] not in {*known, *results})
    for name in rest:
        lines.extend(rows_of(Family(name, [file_of(name)], [name]), results))
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    parser.add_argument("--tests", nargs="*", default=TESTS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    collector = Collector()
    pytest.main(["-q", "-k", CHOSEN, "--rootdir", str(ROOT), *(str(ROOT / test) for test in args.tests)], [collector])
    results: dict[str, list[Result]] = defaultdict(list)
    for result in collector.results:
        results[result.oracle].append(result)
    if not results:
        print("no test recorded anything", file=sys.stderr)
        return 1
    args.out.write_text(markdown(read_families(), results), encoding="utf-8")
    failed = sum(not result.passed for result in collector.results)
    print(f"{args.out}: {len(results)} models, {failed} failed tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())

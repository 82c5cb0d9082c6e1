"""`sterna bench`: prefill and decode speed, in the columns of llama-bench."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import find_model


class Numbers(click.ParamType[list[int]]):
    """`512` or `512,2048`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no number, and no numbers with commas between", param, ctx)
        if any(number < 0 or number > 1 << 24 for number in numbers):
            self.fail(f"{value!r} is out of range", param, ctx)
        return numbers


@click.command()
@click.argument("model", required=False)
@click.option("-p", "prompts", type=Numbers(), default="512", show_default=True, help="Prompt lengths; 0 for none.")
@click.option(
    "-n", "generates", type=Numbers(), default="128", show_default=True, help="Tokens to generate; 0 for none."
)
@click.option("-d", "depths", type=Numbers(), default="0", show_default=True, help="Tokens in the cache before.")
@click.option("-b", "batches", type=Numbers(), default="1", show_default=True, help="Sequences at the same time.")
@click.option("-t", "threads", type=Numbers(), default="0", help="Threads (default: one per core).")
@click.option(
    "-r", "repetitions", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs of each test."
)
@click.option(
    "-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Form of the result."
)
def command(
    model: str | None,
    prompts: list[int],
    generates: list[int],
    depths: list[int],
    batches: list[int],
    threads: list[int],
    repetitions: int,
    output: str,
) -> None:
    """Measure MODEL: prompt processing (pp512) and generation (tg128) in tokens per second, the median of the runs.

    Numbers may be lists: -p 128,512 -t 1,2. A warm-up run of each test is not counted.
    """
    from sterna.bench import BenchTest

    shapes = [{"prompt": n} for n in prompts if n] + [{"generate": n} for n in generates if n]
    tests = [BenchTest(**shape, depth=depth, batch=batch) for shape in shapes for depth in depths for batch in batches]
    if not tests:
        raise click.UsageError("nothing to measure: both -p and -n are 0")
    path = find_model(model).path
    rows: list[dict[str, Any]] = []
    for count in threads:
        rows += _measure(path, tests, count, repetitions)
    if output == "json":
        console.print_json(rows)
    else:
        _print(rows)


def _measure(path: Path, tests: list[Any], threads: int, repetitions: int) -> list[dict[str, Any]]:
    from sterna._core import Engine, Gguf, Pieces, compile_cpu
    from sterna.bench import measure, weight_bytes_per_token
    from sterna.trace import trace

    file = Gguf(path)
    program = trace(file).program.fuse()
    # The length of the table, not of the vocabulary's tokens: -b runs that many outputs in one batch.
    most = max(test.batch for test in tests)
    plan = compile_cpu(program, file, threads=threads, max_outputs=max(64, most))
    context = max(test.context for test in tests)
    engine = Engine(plan, Pieces.from_gguf(file), context=context, max_sequences=most, kv_tokens=context * most)
    common = {
        "model": file.find_string("general.name") or path.stem,
        "path": str(path),
        "file_bytes": file.file_bytes,
        "device": "cpu",
        "isa": plan.isa,
        "threads": plan.threads,
        "weights_bytes": plan.weight_bytes,
        "bytes_per_token": weight_bytes_per_token(program),
    }
    rows = []
    try:
        for test in tests:
            result = measure(engine, test, repetitions)
            console.say(f"{test.name}: {result.tokens_per_second:.2f} tokens/s")
            found = {"test": test.name, "tokens_per_second": result.tokens_per_second, "runs": result.runs}
            rows.append({**found, **common, "peak_rss_bytes": _peak_rss_bytes()})
    finally:
        engine.close()
    return rows


def _peak_rss_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print(rows: list[dict[str, Any]]) -> None:
    print("| model | size | backend | threads | test | t/s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        spread = statistics.stdev(row["runs"]) if len(row["runs"]) > 1 else 0.0
        speed = f"{row['tokens_per_second']:.2f} ± {spread:.2f}"
        cells = (row["model"], f"{row['file_bytes'] / 2**20:.2f} MiB", f"{row['device']} {row['isa']}", row["threads"])
        print("| " + " | ".join(console.printable(str(cell)) for cell in (*cells, row["test"], speed)) + " |")

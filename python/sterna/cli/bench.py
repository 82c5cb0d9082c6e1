"""`sterna bench`: prefill and decode speed, in the columns of llama-bench."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import (
    device_option,
    draft_option,
    find_draft,
    find_model,
    gpu_layers_option,
    i2s_order_option,
)


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
@device_option
@gpu_layers_option
@draft_option
@i2s_order_option
@click.option(
    "-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Form of the result."
)
@click.option("--machine", is_flag=True, help="Measure what the machine can do at most; no model.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="SAVED.json",
    help="Put the rows beside those that `-o json` printed before.",
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the rows below the limits.")
def command(
    model: str | None,
    prompts: list[int],
    generates: list[int],
    depths: list[int],
    batches: list[int],
    threads: list[int],
    repetitions: int,
    device: str,
    gpu_layers: int | None,
    draft: str | None,
    i2s_order: str,
    output: str,
    machine: bool,
    compare: Path | None,
    plot: Path | None,
) -> None:
    """Measure MODEL: prompt processing (pp512) and generation (tg128) in tokens per second, the median of the runs.

    Numbers may be lists: -p 128,512 -t 1,2. A warm-up run of each test is not counted. The limit column says which part
    of the machine's memory bandwidth or integer peak, whichever is nearer, a test uses on the CPU. A MODEL that is a
    .json file is taken as saved results; nothing is measured then. Without --draft nothing is guessed ahead, from the
    text neither.
    """
    from sterna.bench import BenchTest

    if machine:
        if model is not None or compare is not None or plot is not None:
            raise click.UsageError("--machine measures no model: it goes with -t and -o only")
        _print_machine(threads, output)
        return
    shapes = [{"prompt": n} for n in prompts if n] + [{"generate": n} for n in generates if n]
    tests = [BenchTest(**shape, depth=depth, batch=batch) for shape in shapes for depth in depths for batch in batches]
    if not tests:
        raise click.UsageError("nothing to measure: both -p and -n are 0")

    from sterna.bench_rows import compare as beside
    from sterna.bench_rows import load_rows

    # Before minutes of measuring: what was saved must be readable.
    saved = load_rows(compare) if compare is not None else None
    if model is not None and model.endswith(".json") and Path(model).is_file():
        rows = load_rows(Path(model))
    else:
        path, draft = find_model(model).path, find_draft(draft)
        rows = []
        for count in threads:
            rows += _measure(path, tests, count, repetitions, device, gpu_layers, i2s_order, draft)
    pairs = beside(rows, saved) if saved is not None else None
    for pair in pairs or ():
        pair.now.update(pair.as_json())
    if output == "json":
        console.print_json(rows)
    elif pairs is None:
        _print(rows)
    else:
        _print_compared(pairs)
    if plot is not None:
        _plot(rows, plot)


def _measure(
    path: Path,
    tests: list[Any],
    threads: int,
    repetitions: int,
    device: str,
    gpu_layers: int | None,
    i2s_order: str,
    draft: str | None,
) -> list[dict[str, Any]]:
    from sterna._core import Engine, Gguf, Pieces
    from sterna.bench import measure, weight_bytes_per_token, work_of
    from sterna.bench_rows import limit_fields
    from sterna.device import CPU, choose_devices, compile_placed, place, place_parts, split_program, threads_of
    from sterna.draft import compile_draft, prepare_draft
    from sterna.machine import measure_limits_shortly
    from sterna.memory import PREFILL_TOKENS, CacheSize, PlanSettings
    from sterna.trace import trace

    devices = choose_devices(device, gpu_layers)
    file = Gguf(path, i2s_order=i2s_order)
    traced = trace(file)
    program = traced.program.fuse()
    divided = split_program(traced.program, gpu_layers)
    # The length of the table, not of the vocabulary's tokens: -b runs that many outputs in one batch.
    most = max(test.batch for test in tests)
    context = max(test.context for test in tests)
    kv_tokens = max(test.kv_tokens for test in tests)
    settings = PlanSettings(threads, "f16", PREFILL_TOKENS, max(64, most), most)
    prepared = draft_plan = None
    if draft is not None:
        prepared = prepare_draft(
            draft,
            file,
            settings,
            vocab_size=traced.config.vocab_size,
            program=program,
            i2s_order=i2s_order,
            progress=None,
        )
    draft_part = None if prepared is None else prepared.part
    size = CacheSize(context, kv_tokens, context)
    if divided is None:
        placed = place(program, devices, None, settings, draft_part, size)
    else:
        placed = place_parts(divided, devices[0], None, settings, draft_part, size)
    plan = compile_placed(placed, program, file)
    if prepared is not None:
        draft_plan = compile_draft(prepared, plan, placed.devices[0].id)
    engine = Engine(
        plan, Pieces.from_gguf(file), context=context, max_sequences=most, kv_tokens=kv_tokens, draft=draft_plan
    )
    common: dict[str, Any] = {
        "model": file.find_string("general.name") or path.stem,
        "path": str(path),
        "file_bytes": file.file_bytes,
        "device": placed.title,
        "isa": placed.isa,
        "threads": threads_of(plan),
        "weights_bytes": plan.weight_bytes,
        "bytes_per_token": weight_bytes_per_token(program),
    }
    run_tokens = plan.max_tokens
    rows = []
    try:
        for test in tests:
            before = engine.stats()
            result = measure(engine, test, repetitions, draft_tokens=0 if draft is None else None)
            found = {"test": test.name, "tokens_per_second": result.tokens_per_second, "runs": result.runs}
            guesses = ""
            if draft is not None:
                after = engine.stats()
                drafted = after.draft_tokens - before.draft_tokens
                accepted = after.accepted_tokens - before.accepted_tokens
                guesses = f", {accepted} of {drafted} guesses right"
                found |= {"draft": draft, "draft_tokens": drafted, "accepted_tokens": accepted}
            console.say(f"{test.name}: {result.tokens_per_second:.2f} tokens/s{guesses}")
            rows.append({**found, **common, "peak_rss_bytes": _peak_rss_bytes()})
    finally:
        engine.close()
    # With the model's memory given back, and after peak_rss_bytes has been read.
    del engine, plan, draft_plan
    # work_of knows nothing of guesses, and a GPU's limits are other ones.
    if draft is not None or placed.devices != (CPU,):
        return rows
    limits = measure_limits_shortly(common["threads"], common["isa"])
    for row, test in zip(rows, tests, strict=True):
        row.update(limit_fields(work_of(program, test, run_tokens=run_tokens), row["tokens_per_second"], limits))
    return rows


def _print_machine(threads: list[int], output: str) -> None:
    from sterna._core import available_cpus
    from sterna.machine import measure_limits

    if threads == [0]:
        threads = [1 << power for power in range(available_cpus().bit_length()) if 1 << power < available_cpus()]
        threads.append(available_cpus())
    found = [measure_limits(count) for count in threads]
    if output == "json":
        console.print_json([limits.as_json() for limits in found])
        return
    print("| threads | isa | memory reads, GB/s | best pattern | integer peak, GMAC/s |")
    print("| ---: | --- | ---: | --- | ---: |")
    for limits in found:
        memory, peak = limits.bytes_per_second / 1e9, limits.macs_per_second / 1e9
        print(f"| {limits.threads} | {limits.isa} | {memory:.1f} | {limits.pattern} | {peak:.0f} |")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from sterna.bench_plot import roofline
    from sterna.errors import FileError

    picture = roofline(rows)
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", str(path), error.errno or 0) from error


def _peak_rss_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print(rows: list[dict[str, Any]]) -> None:
    from sterna.bench_rows import share_text

    print("| model | size | backend | threads | test | t/s | limit |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        spread = statistics.stdev(row["runs"]) if len(row["runs"]) > 1 else 0.0
        speed = f"{row['tokens_per_second']:.2f} ± {spread:.2f}"
        size = f"{row['file_bytes'] / 2**20:.2f} MiB" if "file_bytes" in row else ""
        backend = f"{row.get('device', 'cpu')} {row['isa']}"
        _print_row(row["model"], size, backend, row["threads"], row["test"], speed, share_text(row))


def _print_compared(pairs: list[Any]) -> None:
    from sterna.bench_rows import share_text

    print("| model | threads | test | saved t/s | t/s | ratio | saved limit | limit |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for pair in pairs:
        row, (low, high) = pair.now, pair.spread
        speeds = f"{pair.saved['tokens_per_second']:.2f}", f"{row['tokens_per_second']:.2f}"
        ratio = f"{pair.ratio:.3f} ({low:.3f} to {high:.3f})"
        shares = share_text(pair.saved), share_text(row)
        _print_row(row["model"], row["threads"], row["test"], *speeds, ratio, *shares)


def _print_row(*cells: object) -> None:
    print("| " + " | ".join(console.printable(str(cell)) for cell in cells) + " |")

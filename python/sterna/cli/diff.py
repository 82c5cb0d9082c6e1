"""`sterna diff`: the compiled plan against the numpy reference, or a model file against another, value by value."""

from __future__ import annotations

import click

from sterna.cli import console
from sterna.cli.options import find_model, gpu_layers_option, i2s_order_option, json_option, kv_dtype_option
from sterna.memory import KvDtype


@click.command()
@click.argument("model")
@click.option(
    "--tokens", "num_tokens", type=click.IntRange(1, 512), default=8, show_default=True, help="Length of the sequence."
)
@click.option("--isa", default="", help="Instruction set (default: the best).")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@gpu_layers_option
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads that compute.")
@kv_dtype_option
@i2s_order_option
@click.option("--unfused", is_flag=True, help="The program as traced, without fusion passes.")
@click.option(
    "--against",
    metavar="FILE",
    help="Compare the model file with this: a program that `sterna trace` printed, or an .npz of tools/make_oracle.py.",
)
@click.option("--all", "show_all", is_flag=True, help="Every value, not only those that diverge.")
@json_option
def command(
    model: str,
    num_tokens: int,
    isa: str,
    device: str,
    gpu_layers: int | None,
    threads: int,
    kv_dtype: KvDtype,
    i2s_order: str,
    unfused: bool,
    against: str | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """Run a short sequence through MODEL's compiled plan and the reference, and name the first value that differs.

    Each operation of the reference gets the plan's own inputs, so that it is judged alone. Both compute what the model
    file says; whether it is right is what --against tells. Exit code 1 on a difference.
    """
    path = find_model(model).path
    import numpy as np

    from sterna import reference
    from sterna._core import Gguf
    from sterna.device import CPU, choose_devices
    from sterna.diff import diff_parts
    from sterna.trace import trace

    chosen = choose_devices(device, gpu_layers)[0]
    file = Gguf(path, i2s_order=i2s_order)
    program = trace(file).program
    vocab_size = file.array_length("tokenizer.ggml.tokens")
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens).tolist()
    if against is None:
        parts = [(program, chosen)]
        if gpu_layers and gpu_layers < program.num_layers:
            before, behind = program.split_layers(program.num_layers - gpu_layers)
            parts = [(before, CPU), (behind, chosen)]
        if not unfused:
            parts = [(part.fuse(), on) for part, on in parts]
        differences = list(diff_parts(file, program, parts, tokens, isa=isa, threads=threads, kv_dtype=kv_dtype))
    else:
        if against.endswith(".npz"):
            expected = reference.other_implementation(against, program)
        else:
            expected = reference.other_program(against, file, tokens)
        differences = list(reference.differences(file, program, expected))
    diverging = [difference for difference in differences if difference.diverges]
    shown = differences if show_all else diverging
    if as_json:
        keys = ("name", "op", "source", "shape", "error", "diverges")
        console.print_json([{key: getattr(difference, key) for key in keys} for difference in shown])
    elif shown:
        rows = [(d.name, d.op, d.source, f"{d.error:.2e}" + (" <--" if d.diverges else "")) for d in shown]
        console.print_table(("VALUE", "OP", "SOURCE", "RELATIVE ERROR"), rows)
    worst = max(differences, key=lambda difference: difference.error, default=None)
    if diverging:
        first = diverging[0]
        console.say(
            f"First diverging value: {first.name} ({first.op}, {first.source}), relative error {first.error:.2e}."
        )
        click.get_current_context().exit(1)
    if worst is not None:
        console.say(
            f"{len(differences)} values agree; the largest relative error is {worst.error:.2e}, of {worst.name}."
        )

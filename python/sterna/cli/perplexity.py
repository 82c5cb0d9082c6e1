"""`sterna perplexity`: how well a model predicts a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sterna.cli import console
from sterna.cli.options import json_option, kv_dtype_option, load_model
from sterna.errors import ArgumentError


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-c", "--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens per window.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads that compute (default: one per core).")
@click.option("--device", default="auto", show_default=True, help="auto or cpu.")
@kv_dtype_option
@json_option
def command(
    model: str, file: Path, context: int, threads: int | None, device: str, kv_dtype: str, as_json: bool
) -> None:
    """Measure MODEL's perplexity on the text in FILE, scored as llama-perplexity does. Lower is better."""
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is not UTF-8 text: byte {error.start} is wrong") from None
    with load_model(model, threads=threads, context=context, device=device, kv_dtype=kv_dtype) as llm:
        result = llm.perplexity(text, context=context)
    if as_json:
        console.print_json({"model": model, "file": str(file), "perplexity": result.value, **asdict(result)})
    else:
        print(result)

"""`sterna embed`: vectors of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import json_option, load_model, loading_options
from sterna.errors import ArgumentError


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="A text on each line; - is standard input.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors' lengths as they are.")
@loading_options
@json_option
def command(
    model: str,
    texts: tuple[str, ...],
    file: Path | None,
    no_normalize: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Print the vector of each text, one line of numbers each, or with --json a list of objects.

    TEXTS are arguments, the lines of a file, or those of standard input where neither is given.
    """
    if texts and file is not None:
        raise click.UsageError("texts are given as arguments or in a file, not both")
    items = list(texts) if texts else _lines(file)
    if not items:
        raise click.UsageError("there is no text")
    with load_model(model, **loading) as llm:
        vectors = llm.embed(items, normalize=not no_normalize)
    if as_json:
        rows = [{"text": text, "embedding": vector.tolist()} for text, vector in zip(items, vectors, strict=True)]
        console.print_json({"model": model, "size": vectors.shape[1], "embeddings": rows})
    else:
        for vector in vectors:
            print(" ".join(f"{x:.8g}" for x in vector.tolist()))


def _lines(file: Path | None) -> list[str]:
    name = "standard input" if file is None or str(file) == "-" else str(file)
    data = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
    try:
        return [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{name} is not UTF-8 text: byte {error.start} is wrong") from None

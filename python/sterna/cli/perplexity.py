"""`sterna perplexity`: how well a model predicts a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import (
    device_option,
    gpu_layers_option,
    i2s_order_option,
    json_option,
    kv_dtype_option,
    load_model,
)
from sterna.errors import ArgumentError

_CONTEXT = 512


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("-c", "--context", type=click.IntRange(min=4), help="Tokens per window (default: 512, or REF's).")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads that compute (default: one per core).")
@device_option
@gpu_layers_option
@kv_dtype_option
@i2s_order_option
@click.option("--save-logits", type=click.Path(path_type=Path), metavar="REF", help="Write the distributions to REF.")
@click.option(
    "--kl-divergence", type=click.Path(path_type=Path), metavar="REF", help="Compare with those of another run."
)
@json_option
def command(
    model: str,
    file: Path | None,
    context: int | None,
    save_logits: Path | None,
    kl_divergence: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure MODEL's perplexity on the text in FILE, scored as llama-perplexity does. Lower is better.

    How far a quantisation lies from its original: save the original's distributions with --save-logits REF, then run
    the quantised MODEL with --kl-divergence REF. REF has the tokens; with FILE they are checked to be the same. The
    files of llama-perplexity --kl-divergence-base are of the same format.
    """
    if save_logits is not None and kl_divergence is not None:
        raise click.UsageError("--save-logits and --kl-divergence are two runs: the reference's, and another one's")
    text = None if file is None else _read(file)
    if kl_divergence is not None:
        context = _context_of(kl_divergence, context)
        with load_model(model, context=context, **loading) as llm:
            compared = llm.divergence(kl_divergence, text)
        of = {"model": model, "file": None if file is None else str(file), "reference_file": str(kl_divergence)}
        _print(compared, {**of, **asdict(compared)}, as_json)
        return
    if text is None:
        raise click.UsageError("Missing argument 'FILE'.")
    context = context or _CONTEXT
    with load_model(model, context=context, **loading) as llm:
        result = llm.perplexity(text, context=context, save_logits=save_logits)
    _print(result, {"model": model, "file": str(file), "perplexity": result.value, **asdict(result)}, as_json)


def _print(result: object, fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(fields)
    else:
        print(result)


def _context_of(reference: Path, context: int | None) -> int:
    """The window length of a file of distributions, which `context` must be where it is given."""
    from sterna.reference_logits import ReferenceLogits

    with ReferenceLogits(reference) as header:
        windows_of: int = header.context
    if context not in (None, windows_of):
        raise ArgumentError(f"{reference}: its windows have {windows_of} tokens, --context is {context}")
    return windows_of


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is not UTF-8 text: byte {error.start} is wrong") from None

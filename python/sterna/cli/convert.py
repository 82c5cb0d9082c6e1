"""`sterna convert`: a BitNet repository of Hugging Face becomes one GGUF file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sterna.cli import console
from sterna.cli.options import json_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--type", "type_", default="TQ2_0", show_default=True, help="TQ1_0, TQ2_0 or I2_S, of the matrices.")
@click.option("--head", default="F16", show_default=True, help="F16, BF16, F32 or Q8_0, of embedding and output.")
@click.option("--masters", is_flag=True, help="Quantise floating-point weights of a Llama or Qwen by their mean.")
@click.option("--pre", metavar="NAME", help="Name of the pre-tokenizer (llama-bpe, ...) where it is not recognised.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT where it exists.")
@json_option
def command(
    folder: Path, output: Path, type_: str, head: str, masters: bool, pre: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write the BitNet repository in FOLDER (config.json, safetensors, tokenizer) to the GGUF file OUTPUT.

    Weights may be packed (BitNet b1.58 2B4T, Llama3-8B-1.58, Falcon-E), masters in floating point, or ternary floats.
    OUTPUT appears when it is complete.
    """
    from sterna.conversion import convert

    with console.WriteProgress("converting") as progress:
        done = convert(
            folder, output, type=type_, head=head, masters=masters, pre=pre, overwrite=overwrite, progress=progress
        )
    for line in done.losses:
        console.say(line)
    if as_json:
        console.print_json(asdict(done))
    else:
        console.say(f"{done.path}: {done.architecture}, {done.tensors} tensors, {console.size(done.bytes)}.")

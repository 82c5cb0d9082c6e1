"""`sterna trace`: a model's Program as text."""

from __future__ import annotations

import click

from sterna.cli.options import find_model


@click.command()
@click.argument("model")
@click.option("--fused", is_flag=True, help="After the fusion passes, as it is compiled.")
def command(model: str, fused: bool) -> None:
    """Print the program that MODEL's architecture file was traced to: one line per operation, with its source line."""
    path = find_model(model).path
    from sterna._core import Gguf
    from sterna.trace import trace

    program = trace(Gguf(path)).program
    print((program.fuse() if fused else program).text(), end="")

"""`sterna pull`: fetches a model."""

from __future__ import annotations

import click

from sterna.cli import console
from sterna.cli.options import find_model, json_option


@click.command()
@click.argument("model")
@json_option
def command(model: str, as_json: bool) -> None:
    """Fetch MODEL to this machine: a catalogue name (smollm2:135m), org/repo, org/repo:Q4_K_M or org/repo/file.gguf.

    An interrupted download of a repository goes on where it stopped. The file is checked by its sha256.
    """
    found = find_model(model, refresh=True)
    if as_json:
        from sterna.cli.show import describe

        console.print_json(describe(found))
        return
    console.say(f"{found.name} is at {found.path} ({console.size(found.bytes)}).")
    if found.licence:
        console.say(f"Licence: {found.licence}")

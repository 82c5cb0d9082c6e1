"""`sterna rm`: removes fetched models."""

from __future__ import annotations

import click

from sterna.cli import console
from sterna.cli.options import json_option


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option
def command(models: tuple[str, ...], as_json: bool) -> None:
    """Remove fetched models, by the names that `sterna list` shows."""
    from sterna.hub.installed import remove

    freed = {}
    for name in models:
        freed[name] = remove(name)
        console.say(f"Removed {name}: {console.size(freed[name])} are free.")
    if as_json:
        console.print_json([{"name": name, "freed_bytes": count} for name, count in freed.items()])

"""`sterna list`: the models on this machine."""

from __future__ import annotations

import time

import click

from sterna.cli import console
from sterna.cli.options import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the models on this machine, and the names that `sterna pull` knows by itself."""
    from sterna.hub.catalogue import catalogue
    from sterna.hub.installed import list_models

    models = list_models()
    if as_json:
        keys = ("name", "source", "bytes", "modified", "licence")
        console.print_json(
            [{**{key: getattr(m, key) for key in keys}, "files": [str(f) for f in m.files]} for m in models]
        )
        return
    if models:
        rows = [(m.name, console.size(m.bytes), time.strftime("%Y-%m-%d", time.localtime(m.modified))) for m in models]
        console.print_table(("NAME", "SIZE", "FETCHED"), rows, right=(1,))
    here = {model.name for model in models}
    others = [entry for name, entry in catalogue().entries.items() if name not in here]
    if not models:
        console.say("No model has been fetched to this machine.")
    if others:
        console.say("To fetch: " + ", ".join(f"sterna pull {e.name} ({console.size(e.bytes)})" for e in others))

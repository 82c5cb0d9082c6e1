"""`sterna show`: where a model comes from and where it lies, without fetching it."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import console
from sterna.cli.options import json_option
from sterna.errors import DownloadError
from sterna.hub import ResolvedModel, resolve


@click.command()
@click.argument("model")
@json_option
def command(model: str, as_json: bool) -> None:
    """Show where MODEL comes from, and where it lies if it is on this machine. Fetches nothing."""
    from sterna.hub.catalogue import catalogue

    entry = catalogue().find(model)
    try:
        fields = describe(resolve(model, offline=True))
    except DownloadError:
        fields = {"name": entry.name if entry else model, "installed": False}
    if entry is not None:
        origin = [f"{p.name}=={p.version}" for p in entry.packages] or [str(entry.repository)]
        fields |= {"title": entry.title, "bytes": entry.bytes, "sha256": entry.sha256, "licence": entry.licence}
        fields["origin"] = origin
    if as_json:
        console.print_json(fields)
        return
    if "bytes" in fields:
        fields["bytes"] = f"{fields['bytes']} ({console.size(fields['bytes'])})"
    fields["installed"] = "yes" if fields["installed"] else f"no; sterna pull {model} fetches it"
    console.print_fields((k, ", ".join(v) if isinstance(v, list) else v) for k, v in fields.items())


def describe(model: ResolvedModel) -> dict[str, Any]:
    """A model that is on this machine, for JSON."""
    fields: dict[str, Any] = {"name": model.name, "installed": True, "source": model.source, "bytes": model.bytes}
    fields["files"] = [str(path) for path in model.files]
    return fields | ({"licence": model.licence} if model.licence else {})

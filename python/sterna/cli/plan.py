"""`sterna plan`: memory before loading."""

from __future__ import annotations

import click

from sterna.cli import console
from sterna.cli.options import context_option, find_model, json_option


@click.command()
@click.argument("model")
@context_option
@json_option
def command(model: str, context: int | None, as_json: bool) -> None:
    """Show how much memory MODEL needs for a context; exit code 1 where it would not fit."""
    path = find_model(model).path
    import sterna

    plan = sterna.plan(str(path), context=context)
    fields = {name: getattr(plan, name) for name in ("weights", "kv", "scratch", "total")}
    if as_json:
        console.print_json({**fields, "fits": plan.fits})
    else:
        console.print_fields(
            [*((name, console.size(value)) for name, value in fields.items()), ("fits", "yes" if plan.fits else "no")]
        )
    if not plan.fits:
        click.get_current_context().exit(1)

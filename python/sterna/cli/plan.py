"""`sterna plan`: memory before loading."""

from __future__ import annotations

import click

from sterna.cli import console
from sterna.cli.options import (
    context_option,
    device_option,
    draft_option,
    find_draft,
    find_model,
    i2s_order_option,
    json_option,
    kv_dtype_option,
)


@click.command()
@click.argument("model")
@context_option
@device_option
@kv_dtype_option
@draft_option
@i2s_order_option
@json_option
def command(
    model: str, context: int | None, device: str, kv_dtype: str, draft: str | None, i2s_order: str, as_json: bool
) -> None:
    """Show how much memory MODEL needs for a context; exit code 1 where it would not fit.

    The total is what a process takes beyond Python, its libraries and the tokenizer once the context is full: the
    packed weights, the KV cache of the whole context, and what one run computes in. The KV cache grows with what is in
    it, so a short run takes only the part that it fills. The file is read, never mapped: cached pages do not count.
    With --device cuda the memory is a GPU's; where there is none, nobody knows whether it fits.
    """
    path, draft = find_model(model).path, find_draft(draft)
    import sterna
    from sterna.device import cuda_problem

    plan = sterna.plan(str(path), context=context, device=device, kv_dtype=kv_dtype, draft=draft, i2s_order=i2s_order)
    if as_json:
        console.print_json(plan.to_dict())
    else:
        parts = ("weights", "kv", "scratch", *(() if draft is None else ("draft",)), "total")
        fields = [(name, console.size(getattr(plan, name))) for name in parts]
        unknown = "unknown" if plan.device == "cpu" else f"unknown: {cuda_problem()}"
        budget = unknown if plan.budget is None else console.size(plan.budget)
        fits = "yes" if plan.fits else f"no; the longest context that fits has {plan.max_context or 0} tokens"
        if plan.budget is None:
            fits = "unknown"
        named = [("device", plan.device), ("context", f"{plan.context} tokens")]
        console.print_fields([*named, *fields, ("budget", budget), ("fits", fits)])
    if not plan.fits:
        click.get_current_context().exit(1)

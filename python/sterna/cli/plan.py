"""`sterna plan`: memory before loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sterna.cli import console
from sterna.cli.options import (
    context_option,
    device_option,
    draft_option,
    find_draft,
    find_model,
    gpu_layers_option,
    i2s_order_option,
    json_option,
    kv_dtype_option,
)

if TYPE_CHECKING:
    from sterna.memory import MemoryPlan, PartMemory


@click.command()
@click.argument("model")
@context_option
@device_option
@gpu_layers_option
@kv_dtype_option
@draft_option
@i2s_order_option
@json_option
def command(
    model: str,
    context: int | None,
    device: str,
    gpu_layers: int | None,
    kv_dtype: str,
    draft: str | None,
    i2s_order: str,
    as_json: bool,
) -> None:
    """Show how much memory MODEL needs for a context; exit code 1 where it would not fit.

    The total is what a process takes beyond Python, its libraries and the tokenizer once the context is full: the
    packed weights, the KV cache of the whole context, and what one run computes in. The KV cache grows with what is in
    it, so a short run takes only the part that it fills. The file is read, never mapped: cached pages do not count.
    With --device cuda the memory is a GPU's, with --gpu-layers the CPU's and a GPU's; where there is none, nobody knows
    whether it fits.
    """
    path, draft = find_model(model).path, find_draft(draft)
    import sterna

    plan = sterna.plan(
        str(path),
        context=context,
        device=device,
        gpu_layers=gpu_layers,
        kv_dtype=kv_dtype,
        draft=draft,
        i2s_order=i2s_order,
    )
    if as_json:
        console.print_json(plan.to_dict())
    else:
        _print(plan)
    if not plan.fits:
        click.get_current_context().exit(1)


def _print(plan: MemoryPlan) -> None:
    fits = "yes" if plan.fits else f"no; the longest context that fits has {plan.max_context or 0} tokens"
    if plan.fits and plan.budget is None:
        fits = "unknown"
    named = [("device", plan.device), ("context", f"{plan.context} tokens")]
    if not plan.parts:
        console.print_fields([*named, *_sizes(plan), ("fits", fits)])
        return
    console.print_fields([*named, ("total", console.size(plan.total)), ("fits", fits)])
    for part in plan.parts:
        print(f"{part.device}, {part.layers} layers")
        console.print_fields(_sizes(part), "  ")


def _sizes(memory: MemoryPlan | PartMemory) -> list[tuple[str, str]]:
    from sterna.device import cuda_problem

    names = ("weights", "kv", "scratch", *(("draft",) if memory.draft else ()), "total")
    unknown = "unknown" if memory.device == "cpu" else f"unknown: {cuda_problem()}"
    budget = unknown if memory.budget is None else console.size(memory.budget)
    return [*((name, console.size(getattr(memory, name))) for name in names), ("budget", budget)]

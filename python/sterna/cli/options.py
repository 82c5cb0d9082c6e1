"""Options that several commands share, and loading a model by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sterna.cli import console
from sterna.hub import ResolvedModel, default_model, resolve
from sterna.loading import I2S_ORDERS
from sterna.memory import KV_DTYPES

if TYPE_CHECKING:
    from sterna import LLM

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
context_option = click.option("-c", "--context", type=click.IntRange(min=1), help="Longest sequence, in tokens.")
kv_dtype_option = click.option(
    "--kv-dtype", type=click.Choice(KV_DTYPES), default="f16", show_default=True, help="How the KV cache rounds."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N; auto is a GPU where the model fits."
)
gpu_layers_option = click.option(
    "--gpu-layers",
    "-ngl",
    type=click.IntRange(min=0),
    metavar="N",
    help="Divide the model: its last N layers on the GPU, the others on the CPU.",
)
i2s_order_option = click.option(
    "--i2s-order",
    type=click.Choice(I2S_ORDERS),
    default="x86",
    show_default=True,
    help="Arrangement of I2_S tensors, which their files do not tell.",
)

draft_option = click.option(
    "--draft", metavar="MODEL", help="A smaller model with the same tokens, which guesses ahead: it changes no text."
)

_LOADING = (
    click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads that compute (default: one per core)."),
    context_option,
    device_option,
    gpu_layers_option,
    kv_dtype_option,
    draft_option,
    i2s_order_option,
)

_SAMPLING = (
    click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="Longest answer (default: the context)."),
    click.option("--temp", "--temperature", "temperature", type=click.FloatRange(min=0), help="0 takes the likeliest."),
    click.option("--top-k", type=click.IntRange(min=0), help="Choose among so many tokens; 0 is off."),
    click.option("--top-p", type=click.FloatRange(0, 1), help="Choose within this share of probability; 1 is off."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Smallest probability beside the likeliest; 0 is off."),
    click.option("--seed", type=int, help="Same seed, same answer."),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be given several times."),
)


def loading_options(function: _F) -> _F:
    """Adds --threads, --context, --device, --gpu-layers, --kv-dtype, --draft and --i2s-order."""
    return _add(_LOADING, function)


def sampling_options(function: _F) -> _F:
    """Adds -n, --temp, --top-k, --top-p, --min-p, --seed and --stop; `sampling_arguments` collects them."""
    return _add(_SAMPLING, function)


def _add(options: tuple[Callable[[Any], Any], ...], function: _F) -> _F:
    for option in reversed(options):
        function = option(function)
    return function


def sampling_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling options that were given, as arguments of `LLM.generate`."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
    given = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("stop"):
        given["stop"] = list(options["stop"])
    return given


def find_model(name: str | None, *, refresh: bool = False) -> ResolvedModel:
    """The model called `name` (None: the default one, which is announced), fetched where necessary."""
    if name is None:
        name = default_model()
        console.say(f"Using the default model, {name}.")
    with console.FetchProgress(name) as progress:
        return resolve(name, progress=progress, refresh=refresh)


def find_draft(name: str | None) -> str | None:
    """The path of the draft model called `name`, if there is one."""
    return None if name is None else str(find_model(name).path)


def load_model(
    name: str | None,
    *,
    threads: int | None,
    context: int | None,
    device: str,
    gpu_layers: int | None = None,
    kv_dtype: str,
    draft: str | None = None,
    i2s_order: str = "x86",
) -> LLM:
    """The model called `name`, loaded; closes itself at the end of a `with` block."""
    found, draft = find_model(name), find_draft(draft)
    import sterna

    return sterna.load(
        str(found.path),
        threads=threads,
        context=context,
        device=device,
        gpu_layers=gpu_layers,
        kv_dtype=kv_dtype,
        draft=draft,
        i2s_order=i2s_order,
    )

"""Names of a program's hidden states: what each layer reads from the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sterna.errors import ArgumentError

if TYPE_CHECKING:
    from sterna._core import Program


def hidden_state_names(program: Program) -> list[str]:
    """The value that layer i reads, for each layer, and last what the layers give, before the final norm."""
    values = program.values
    inputs: dict[int, str] = {}
    last = None
    taken: dict[int, int] = {}  # what only rows with logits were taken of, by these: a value of all rows has one name
    for node in program.nodes("logits"):
        x = next((id for role, id in node.inputs if role in ("x", "a")), None)
        if node.op == "take_rows" and x is not None:
            taken[node.outputs[0]] = x
        if node.op == "unembed" and x is not None:
            last = values[taken.get(x, x)].name
        layer = _layer(node.name)
        if layer is None or layer in inputs:
            continue
        outside = (values[taken.get(id, id)].name for _, id in node.inputs if values[id].kind == "node")
        inputs[layer] = next((name for name in outside if _layer(name) != layer), "")
    names = [inputs.get(layer, "") for layer in range(len(inputs))]
    return [*names, last or ""]


def _layer(name: str) -> int | None:
    """The layer of a node's name, "layers.3/attn_q"."""
    scope, _, _ = name.partition("/")
    kind, _, number = scope.partition(".")
    return int(number) if kind == "layers" and number.isdigit() else None


def hidden_state_name(program: Program, layer: int) -> str:
    """ArgumentError when there is no such layer."""
    names = hidden_state_names(program)
    if type(layer) is not int or not -len(names) <= layer < len(names):
        raise ArgumentError(f"layer is {layer!r:.60}, must be from 0 to {len(names) - 1}, or negative, from the end")
    if not names[layer]:
        raise ArgumentError(f"layer {layer} of this model reads no value of its own")
    return names[layer]

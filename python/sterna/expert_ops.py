"""Ops of mixtures of experts: which experts a row takes, and what these make of it. As those of `ops`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sterna import ops
from sterna.ops import Gate, Value


@dataclass(frozen=True)
class Groups:
    """Experts in `count` groups of neighbours, of which only the `used` best may be chosen from.

    A group counts as much as its best expert (DeepSeek V2, arXiv:2405.04434), or as the sum of its two best (V3,
    arXiv:2412.19437).
    """

    count: int = 1
    used: int = 1
    scores: Literal["best", "two_best"] = "best"


def route(
    logits: Value,
    used: int,
    *,
    bias: Value | None = None,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    groups: Groups = Groups(),
) -> tuple[Value, Value]:
    """The `used` experts of each row with the largest scores, [num_tokens, num_experts] -> ids, weights.

    Both are [num_tokens, used], the largest first, ties to the lower id. Scores are the softmax or the sigmoid of the
    logits; `bias`, [num_experts], is added to them for the choice alone. Weights are the chosen scores, with
    `normalize` divided by their sum (for softmax that is the softmax over the chosen ones), times `scale`
    (arXiv:2401.04088, arXiv:2101.03961, arXiv:2412.19437).
    """
    experts, weights = ops.current_tracer().emit(
        "route",
        f"{logits.label}.route",
        [("x", logits), ("bias", bias)],
        {
            "used": used,
            "scores": scores,
            "normalize": normalize,
            "scale": scale,
            "groups": groups.count,
            "groups_used": groups.used,
            "group_scores": groups.scores,
        },
    )
    return experts, weights


@dataclass(frozen=True)
class Matrices:
    """Gate and up of experts, [num_experts, n, k], and down, [num_experts, hidden_size, n]; biases of their rows."""

    gate: Value
    up: Value
    down: Value
    gate_bias: Value | None = None
    up_bias: Value | None = None
    down_bias: Value | None = None


def expert_glu(
    x: Value, experts: Value, weights: Value, matrices: Matrices, *, glu: Gate = "silu", weigh_input: bool = False
) -> Value:
    """Gated feed-forward networks of the experts that `route` chose, summed with its weights in its order.

    x [num_tokens, k] -> [num_tokens, hidden_size]; activations are rounded as in `linear`. With `weigh_input` an
    expert's weight scales what it reads, not what it says (Llama 4).
    """
    operands = [("x", x), ("experts", experts), ("weights", weights), *vars(matrices).items()]
    rule = ops.current_tracer().activation_rule
    return ops.emit("expert_glu", "experts", *operands, glu=glu, weigh_input=weigh_input, activation=rule)

"""Mixtures of experts: their part of a Config, and the two kinds of feed-forward networks that model files build of it.

Every key that changes how experts are chosen is honoured here, so that all families agree about it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Self

from sterna import expert_ops, ops
from sterna.arch import DecoderConfig, Weights, decoder_fields
from sterna.metadata import MAX_EXTENT, Metadata
from sterna.typed_reads import shown

MAX_EXPERTS = 4096

_HANDLED = (
    "expert_count",
    "expert_gating_func",
    "expert_group_count",
    "expert_weights_scale",
    "leading_dense_block_count",
)


@dataclass(frozen=True)
class MoeConfig(DecoderConfig):
    """A decoder's Config with the keys of experts; a model file asks `has_experts` of each layer."""

    num_experts: int  # 0: none
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int  # 0: none
    shared_expert_gate: bool  # of the family: its files must have the matrix of it
    first_k_dense_replace: int  # so many layers at the beginning have no experts
    interleave_moe_layer_step: int  # of the others every n-th layer has some, counted from the first of all
    scoring_func: Literal["softmax", "sigmoid"]
    norm_topk_prob: bool
    routed_scaling_factor: float
    n_group: int
    topk_group: int

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata))

    def has_experts(self, layer: int) -> bool:
        if self.num_experts == 0 or layer < self.first_k_dense_replace:
            return False
        return (layer + 1) % self.interleave_moe_layer_step == 0

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and one matrix per expert."""
        experts, hidden = self.num_experts, self.hidden_size
        size, shared = self.moe_intermediate_size, self.shared_expert_intermediate_size
        return super().tensor_shapes() | {
            "ffn_gate_inp": (experts, hidden),
            "ffn_gate_inp.bias": (experts,),
            "exp_probs_b.bias": (experts,),
            "ffn_gate_exps": (experts, size, hidden),
            "ffn_up_exps": (experts, size, hidden),
            "ffn_down_exps": (experts, hidden, size),
            "ffn_gate_exps.bias": (experts, size),
            "ffn_up_exps.bias": (experts, size),
            "ffn_down_exps.bias": (experts, hidden),
            "ffn_gate_inp_shexp": (1, hidden),
            "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden),
            "ffn_down_shexp": (hidden, shared),
        }


def moe_fields(
    m: Metadata,
    *,
    scoring_func: Literal["softmax", "sigmoid"] = "softmax",
    norm_topk_prob: bool = True,
    shared: Literal["declared", "always", "gated"] = "declared",
    handles: Collection[str] = (),
    hybrid: bool = False,
) -> dict[str, Any]:
    """GGUF metadata -> the fields of MoeConfig.

    `scoring_func` and `norm_topk_prob` are what a family does where its files do not say. Layers with experts have
    `shared` ones where a key says so, or in every model of the family, then maybe with a gate. `handles`, of keys
    beside those of experts, and `hybrid` as in `decoder_fields`.
    """
    fields = decoder_fields(m, handles=(*_HANDLED, *handles), hybrid=hybrid)
    experts = m.integer("expert_count", 0, MAX_EXPERTS, 0)
    used = m.integer("expert_used_count", 1, experts) if experts else 0
    size = m.integer("expert_feed_forward_length", 1, MAX_EXTENT, fields["intermediate_size"])
    count = m.integer("expert_shared_count", 0, MAX_EXPERTS, 0)
    shared_size = m.integer("expert_shared_feed_forward_length", 0, MAX_EXTENT, min(count * size, MAX_EXTENT))
    if experts and shared != "declared" and not shared_size:
        m.fail(
            "expert_shared_feed_forward_length",
            f"is missing or 0, expert_shared_count is {count}: every model of this family has shared experts",
        )
    groups = max(m.integer("expert_group_count", 0, MAX_EXPERTS, 1), 1)
    groups_used = m.integer("expert_group_used_count", 0, groups, 1) or 1
    if experts and (experts % groups or experts // groups * groups_used < used):
        m.fail(
            "expert_group_count", f"is {groups}, {groups_used} of them used: {experts} experts of which {used} are used"
        )
    if not isinstance(norm := m.value_or("expert_weights_norm", norm_topk_prob), bool):
        m.fail("expert_weights_norm", f"is {shown(norm)}, expected true or false")
    scores: tuple[Literal["softmax", "sigmoid"], ...] = (scoring_func, "softmax", "sigmoid")
    return fields | {
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": shared_size,
        "shared_expert_gate": shared == "gated",
        "first_k_dense_replace": m.integer("leading_dense_block_count", 0, fields["num_hidden_layers"], 0),
        "interleave_moe_layer_step": m.integer("interleave_moe_layer_step", 1, fields["num_hidden_layers"], 1),
        "scoring_func": scores[m.integer("expert_gating_func", 0, 2, 0)],
        "norm_topk_prob": norm,
        "routed_scaling_factor": 1.0 if _is_zero(m, "expert_weights_scale") else m.number("expert_weights_scale", 1.0),
        "n_group": groups,
        "topk_group": groups_used,
    }


def _is_zero(m: Metadata, name: str) -> bool:
    value = m.value(name)
    return isinstance(value, int | float) and value == 0


def routes(config: MoeConfig, w: Weights, x: ops.Value) -> tuple[ops.Value, ops.Value]:
    """The experts that the router chooses for each row of x, and their weights: [num_tokens, num_experts_per_tok].

    Groups of experts count as their best one under softmax scores (DeepSeek V2), as the sum of the two best under
    sigmoid scores (V3).
    """
    return expert_ops.route(
        ops.linear(x, w["ffn_gate_inp"], w.get("ffn_gate_inp.bias")),
        config.num_experts_per_tok,
        bias=w.get("exp_probs_b.bias"),
        scores=config.scoring_func,
        normalize=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        groups=expert_ops.Groups(
            config.n_group, config.topk_group, "best" if config.scoring_func == "softmax" else "two_best"
        ),
    )


def expert_matrices(w: Weights) -> expert_ops.Matrices:
    """Those of all experts of a layer, with the file's biases."""
    return expert_ops.Matrices(
        w["ffn_gate_exps"],
        w["ffn_up_exps"],
        w["ffn_down_exps"],
        w.get("ffn_gate_exps.bias"),
        w.get("ffn_up_exps.bias"),
        w.get("ffn_down_exps.bias"),
    )


def experts(config: MoeConfig, w: Weights, x: ops.Value, glu: ops.Gate = "silu") -> ops.Value:
    """The best few experts of each row, summed with the router's weights: x [num_tokens, hidden_size] -> the same."""
    chosen, weights = routes(config, w, x)
    return expert_ops.expert_glu(x, chosen, weights, expert_matrices(w), glu=glu)


def mixture(config: MoeConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU experts, the best few of each row, and what all rows share where the model has it. Same shape as x.

    Tensors of a shared expert whose size no key says have a wrong shape.
    """
    y = experts(config, w, x)
    has_shared = config.shared_expert_intermediate_size > 0 or "ffn_up_shexp" in w
    return y + shared_expert(config, w, x) if has_shared else y


def shared_expert(config: MoeConfig, w: Weights, x: ops.Value) -> ops.Value:
    """The SwiGLU network that all rows pass, weighted by a gate of its own where the family or the file has one."""
    hidden = ops.glu(ops.linear(x, w["ffn_gate_shexp"]), ops.linear(x, w["ffn_up_shexp"]))
    gate = w["ffn_gate_inp_shexp"] if config.shared_expert_gate else w.get("ffn_gate_inp_shexp")
    if gate is None:
        return ops.linear(hidden, w["ffn_down_shexp"])
    share = ops.activation(ops.linear(x, gate), "sigmoid")
    return ops.linear(hidden, w["ffn_down_shexp"]) * share

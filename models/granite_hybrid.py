"""Granite 4 hybrids: layers of Mamba-2 or of attention without positions, experts, multipliers on every branch.

Reference: huggingface/transformers, models/granitemoehybrid/modeling_granitemoehybrid.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.projections import qkv
from sterna.recurrent import RecurrentConfig, headed_fields, mamba2_mixer

_MULTIPLIERS = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")


@dataclass(frozen=True)
class GraniteHybridConfig(MoeConfig, RecurrentConfig):
    """Both kinds of layers, and the multipliers."""

    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_scaling: float  # logits are divided by it
    has_rope: bool

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = headed_fields(metadata, moe_fields(metadata, shared="always", handles=_MULTIPLIERS, hybrid=True))
        return cls(
            **fields,
            embedding_multiplier=metadata.number("embedding_scale", 1.0),
            residual_multiplier=metadata.number("residual_scale", 1.0),
            attention_multiplier=metadata.number("attention.scale", fields["head_dim"] ** -0.5),
            logits_scaling=metadata.number("logit_scale", 1.0),
            has_rope=metadata.flag("rope.scaling.finetuned", True),
        )


@register("granitehybrid", config=GraniteHybridConfig)
def logits(config: GraniteHybridConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.embedding_multiplier
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            y = mamba2_mixer(config, w, y, i) if config.recurrent_layers[i] else attention(config, w, batch, y, i)
            x = x + y * config.residual_multiplier
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            y = mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y)
            x = x + y * config.residual_multiplier
    x = ops.rms_norm(x, weights["output_norm"], eps)
    return ops.unembed(x, weights.first("output", "token_embd")) * (1 / config.logits_scaling)


def attention(config: GraniteHybridConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    if config.has_rope:
        q = ops.rope(q, batch.positions, config.rope, style="interleaved")
        k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, scale=config.attention_multiplier))

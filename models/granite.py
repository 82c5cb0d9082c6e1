"""Granite 3 and 4, dense and MoE, MiniCPM 1 and 2: as Llama, with multipliers on what goes through the layers.

Reference: huggingface/transformers, models/granite/modeling_granite.py and models/granitemoeshared; GGUF files have the
rows of q and k permuted, so that rope turns neighbours.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.projections import qkv


@dataclass(frozen=True)
class GraniteConfig(MoeConfig):
    """Logits are divided by logits_scaling, the others are factors."""

    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        handles = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")
        fields = moe_fields(metadata, handles=handles)
        return cls(
            **fields,
            embedding_multiplier=metadata.number("embedding_scale", 1.0),
            attention_multiplier=metadata.number("attention.scale", fields["head_dim"] ** -0.5),
            residual_multiplier=metadata.number("residual_scale", 1.0),
            logits_scaling=metadata.number("logit_scale", 1.0),
        )


@dataclass(frozen=True)
class MiniCpmConfig(GraniteConfig):
    """Older files leave the multipliers out, which are those of MiniCPM 2B then."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = vars(GraniteConfig.from_metadata(metadata))
        residual = 1.4 / fields["num_hidden_layers"] ** 0.5
        return cls(
            **fields
            | {
                "embedding_multiplier": metadata.number("embedding_scale", 12.0),
                "residual_multiplier": metadata.number("residual_scale", residual),
                "logits_scaling": metadata.number("logit_scale", fields["hidden_size"] / 256.0),
            }
        )


@register("minicpm", config=MiniCpmConfig)
@register("granite", "granitemoe", config=GraniteConfig)
def logits(config: GraniteConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps, multiplier = config.rms_norm_eps, config.residual_multiplier
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.embedding_multiplier
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i) * multiplier
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y)) * multiplier
    x = ops.rms_norm(x, weights["output_norm"], eps)
    return ops.unembed(x, weights.first("output", "token_embd")) * (1 / config.logits_scaling)


def attention(config: GraniteConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, scale=config.attention_multiplier))

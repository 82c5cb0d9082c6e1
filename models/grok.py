"""Grok-1: RMS norms before and after each block, capped attention, GELU experts, multipliers of embeddings and logits.

Reference: xai-org/grok-1, model.py (not in transformers). GGUF files without the keys of multipliers are Grok-1's own.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.errors import UnsupportedModelError
from sterna.moe import MoeConfig, experts, moe_fields
from sterna.projections import qkv


@dataclass(frozen=True)
class GrokConfig(MoeConfig):
    """Multipliers and caps; a cap of 0 is none."""

    embedding_multiplier_scale: float
    output_multiplier_scale: float
    attn_output_multiplier: float
    attn_logit_softcapping: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of grok. The cap of router logits changes nothing: llama.cpp and this file leave it out."""
        handles = ("embedding_scale", "logit_scale", "attn_logit_softcapping")
        if metadata.shape("blk.0.ffn_up.weight") is not None:
            raise UnsupportedModelError(f"{metadata.file.path}: dense networks beside experts (Grok-2) are not known")
        return cls(
            **moe_fields(metadata, handles=handles),
            embedding_multiplier_scale=metadata.number("embedding_scale", 78.38367176906169),
            output_multiplier_scale=metadata.number("logit_scale", 0.5773502691896257),
            attn_output_multiplier=metadata.number("attention.output_scale", 0.08838834764831845),
            attn_logit_softcapping=metadata.number("attn_logit_softcapping", 30.0),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a mixture, and the names of the norms behind the blocks."""
        norms = ("attn_output_norm", "post_ffw_norm", "layer_output_norm")
        return super().tensor_shapes() | dict.fromkeys(norms, (self.hidden_size,))


@register("grok", config=GrokConfig)
def logits(config: GrokConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.embedding_multiplier_scale
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["attn_output_norm"], eps)
            y = experts(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
            x = x + ops.rms_norm(y, w.first("layer_output_norm", "post_ffw_norm"), eps)
    y = ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))
    return y * config.output_multiplier_scale


def attention(config: GrokConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size], with capped scores."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    scale, cap = config.attn_output_multiplier, config.attn_logit_softcapping
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, scale=scale, softcap=cap))

"""OLMo 1 and 1.7, OLMo-Bitnet: layer norms without weights, SwiGLU; some models clamp q, k and v.

Reference: huggingface/transformers, models/olmo/modeling_olmo.py; GGUF files have the rows of q and k permuted, so
that rope turns neighbours.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm_fields
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class OlmoConfig(LayerNormConfig):
    """q, k and v are kept within -clip_qkv .. clip_qkv; 0: as they are."""

    clip_qkv: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        clip_qkv = metadata.number_or_zero("attention.clamp_kqv")
        return cls(**layer_norm_fields(metadata, ("attention.clamp_kqv",)), clip_qkv=clip_qkv)


@register("olmo", config=OlmoConfig)
def logits(config: OlmoConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.layer_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.layer_norm(x, None, None, eps), i)
            x = x + glu_mlp(config, w, ops.layer_norm(x, None, None, eps))
    return ops.unembed(ops.layer_norm(x, None, None, eps), weights.first("output", "token_embd"))


def attention(config: OlmoConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    if config.clip_qkv:
        q, k, v = (ops.clamp(y, config.clip_qkv) for y in (q, k, v))
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

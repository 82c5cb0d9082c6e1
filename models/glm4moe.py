"""GLM-4.5 and 4.6: half of each head turns, sigmoid routes with a bias, one expert that all rows share.

Reference: huggingface/transformers, models/glm4_moe/modeling_glm4_moe.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.projections import qkv


class Glm4MoeConfig(MoeConfig):
    """Scores are sigmoids."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, scoring_func="sigmoid", norm_topk_prob=False, shared="always"))


@register("glm4moe", config=Glm4MoeConfig)
def logits(config: Glm4MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            y = ops.rms_norm(x, w["post_attention_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: Glm4MoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; heads are normalised where the file has norms."""
    q, k, v = qkv(config, w, x)
    if (norm := w.get("attn_q_norm")) is not None:
        q = ops.rms_norm(q, norm, config.rms_norm_eps)
        k = ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

"""Qwen 1.5 and 2 MoE: as Qwen 2, with a mixture of experts and one expert that all rows share in every layer.

Reference: huggingface/transformers, models/qwen2_moe/modeling_qwen2_moe.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.moe import MoeConfig, mixture, moe_fields


class Qwen2MoeConfig(MoeConfig):
    """The weights of experts are those of the softmax over all of them."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, norm_topk_prob=False, shared="gated"))


@register("qwen2moe", config=Qwen2MoeConfig)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + mixture(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    x = ops.rms_norm(x, weights["output_norm"], eps)
    return ops.unembed(x, weights.first("output", "token_embd"), weights.get("output.bias"))


def attention(config: MoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q = ops.linear(x, w["attn_q"], w["attn_q.bias"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"], w["attn_k.bias"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"], w["attn_v.bias"]).heads(config.value_head_dim)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return ops.linear(ops.attention(q, k, v, layer=layer), w["attn_output"])

"""Hunyuan 0.5B to 7B and A13B: as Llama, with a norm on each head of q and k behind the rotary positions.

The A13B has experts, and one that all rows share, in every layer. Reference: huggingface/transformers,
models/hunyuan_v1_dense/modeling_hunyuan_v1_dense.py and models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.projections import qkv


class HunyuanConfig(MoeConfig):
    """Where there are experts, all rows share one."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, shared="always"))


@register("hunyuan-dense", "hunyuan-moe", config=HunyuanConfig)
def logits(config: HunyuanConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: HunyuanConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rms_norm(ops.rope(q, batch.positions, config.rope), w["attn_q_norm"], config.rms_norm_eps)
    k = ops.rms_norm(ops.rope(k, batch.positions, config.rope), w["attn_k_norm"], config.rms_norm_eps)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

"""Qwen 3 MoE, dots.llm1: as Qwen 3, with a mixture of experts.

dots.llm1 has sigmoid routes with a bias, experts that all rows share, and dense first layers. Reference:
huggingface/transformers, models/qwen3_moe/modeling_qwen3_moe.py and models/dots1/modeling_dots1.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.projections import qkv


class Dots1Config(MoeConfig):
    """Weights of experts sum up to the factor only where the file says so."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, scoring_func="sigmoid", norm_topk_prob=False, shared="always"))


@register("dots1", config=Dots1Config)
@register("qwen3moe", config=MoeConfig)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
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


def attention(config: MoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

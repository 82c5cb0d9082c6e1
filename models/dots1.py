"""dots.llm1: as Qwen 3, with sigmoid routes with a bias, experts that all rows share, and dense first layers.

Reference: huggingface/transformers, models/dots1/modeling_dots1.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.moe import MoeConfig, experts, moe_fields, shared_expert
from sterna.projections import qkv


class Dots1Config(MoeConfig):
    """Weights of experts sum up to the factor only where the file says so."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, scoring_func="sigmoid", norm_topk_prob=False))


@register("dots1", config=Dots1Config)
def logits(config: Dots1Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (experts(config, w, y) + shared_expert(w, y) if config.has_experts(i) else mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: Dots1Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size], with a norm on each head of q and k."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))


def mlp(config: Dots1Config, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network of the first layers."""
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x))
    return linear(config, w, "ffn_down", y)

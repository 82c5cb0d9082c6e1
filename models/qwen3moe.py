"""Qwen 3 MoE: as Qwen 3, with a mixture of experts in every layer.

Reference: huggingface/transformers, models/qwen3_moe/modeling_qwen3_moe.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.moe import MoeConfig, experts


@register("qwen3moe", config=MoeConfig)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps), i)
            x = x + experts(config, w, ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps))
    x = ops.rms_norm(x, weights["output_norm"], config.rms_norm_eps)
    return ops.unembed(x, weights.first("output", "token_embd"))


def attention(config: MoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q = ops.linear(x, w["attn_q"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"]).heads(config.value_head_dim)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, config.rope)
    return ops.linear(ops.attention(q, k, v, layer=layer), w["attn_output"])

"""Qwen 3: pre-norm decoder, grouped-query attention with an RMS norm on each head of q and k, SwiGLU.

Reference: huggingface/transformers, models/qwen3/modeling_qwen3.py
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@register("qwen3")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, config.rope)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

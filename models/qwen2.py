"""Qwen 2 and 2.5: as Llama, with biases on q, k and v, and rope on halves.

Reference: huggingface/transformers, models/qwen2/modeling_qwen2.py
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear


@register("qwen2")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps), i)
            x = x + mlp(config, w, ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps))
    x = ops.rms_norm(x, weights["output_norm"], config.rms_norm_eps)
    return ops.unembed(x, weights.first("output", "token_embd"), weights.get("output.bias"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q = linear(config, w, "attn_q", x).heads(config.head_dim)
    k = linear(config, w, "attn_k", x).heads(config.head_dim)
    v = linear(config, w, "attn_v", x).heads(config.value_head_dim)
    q = ops.rope(q, batch.positions, config.rope)
    k = ops.rope(k, batch.positions, config.rope)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)


def mlp(config: DecoderConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network."""
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x))
    return linear(config, w, "ffn_down", y)

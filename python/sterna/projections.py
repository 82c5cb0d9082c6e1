"""The projections of x to q, k and v: one matrix in some files of a family, three in others."""

from __future__ import annotations

from sterna import ops
from sterna.arch import DecoderConfig, Weights
from sterna.bitlinear import linear


def qkv_rows(config: DecoderConfig, w: Weights, x: ops.Value) -> tuple[ops.Value, ops.Value, ops.Value]:
    """q, k and v of x, [num_tokens, hidden_size] -> [num_tokens, num_heads * head_dim] each, with the file's biases.

    From attn_qkv, which has the rows of q, then of k, then of v; where the file has none, from attn_q, attn_k, attn_v.
    """
    if "attn_qkv" not in w:
        return linear(config, w, "attn_q", x), linear(config, w, "attn_k", x), linear(config, w, "attn_v", x)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sizes = heads * config.head_dim, kv_heads * config.head_dim, kv_heads * config.value_head_dim
    q, k, v = ops.split(linear(config, w, "attn_qkv", x), *sizes)
    return q, k, v


def qkv(config: DecoderConfig, w: Weights, x: ops.Value) -> tuple[ops.Value, ops.Value, ops.Value]:
    """The same by heads: [num_tokens, num_heads, head_dim]."""
    q, k, v = qkv_rows(config, w, x)
    return q.heads(config.head_dim), k.heads(config.head_dim), v.heads(config.value_head_dim)

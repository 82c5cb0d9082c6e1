"""BERT: learned positions, norms behind each half of a block, GELU; all-MiniLM, BGE, E5, GTE, mxbai.

Reference: huggingface/transformers, models/bert/modeling_bert.py. Texts are one segment: token type 0.
"""

from sterna import ops
from sterna.arch import Batch, Weights, register_encoder
from sterna.encoder import EncoderConfig


@register_encoder("bert", config=EncoderConfig)
def encode(config: EncoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """A vector for each sequence, [num_outputs, hidden_size]."""
    eps = config.layer_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) + ops.embed(batch.positions, weights["position_embd"])
    types = weights.get("token_types")
    if types is not None:
        x = x + ops.embed(batch.token_types, types)
    x = ops.layer_norm(x, weights["token_embd_norm"], weights["token_embd_norm.bias"], eps)
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, x, i)
            x = ops.layer_norm(x, w["attn_output_norm"], w["attn_output_norm.bias"], eps)
            x = ops.layer_norm(x + mlp(w, x), w["layer_output_norm"], w["layer_output_norm.bias"], eps)
    return ops.pool(x, config.pooling)


def attention(config: EncoderConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Self-attention of x, [num_tokens, hidden_size], over the whole sequence."""
    q = ops.linear(x, w["attn_q"], w["attn_q.bias"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"], w["attn_k.bias"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"], w["attn_v.bias"]).heads(config.value_head_dim)
    y = ops.attention(q, k, v, layer=layer, causal=False)
    return ops.linear(y, w["attn_output"], w["attn_output.bias"])


def mlp(w: Weights, x: ops.Value) -> ops.Value:
    """Feed-forward network."""
    y = ops.activation(ops.linear(x, w["ffn_up"], w["ffn_up.bias"]), "gelu")
    return ops.linear(y, w["ffn_down"], w["ffn_down.bias"])

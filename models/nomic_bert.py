"""Nomic-BERT: as BERT, with rope instead of learned positions, fused q, k and v, SwiGLU, and no biases.

Reference: huggingface/transformers, models/nomic_bert/modeling_nomic_bert.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register_encoder
from sterna.bitlinear import linear
from sterna.encoder import EncoderConfig
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@register_encoder("nomic-bert", config=EncoderConfig)
def encode(config: EncoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """A vector for each sequence, [num_outputs, hidden_size]."""
    eps = config.layer_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    types = weights.get("token_types")
    if types is not None:
        x = x + ops.embed(batch.token_types, types)
    x = ops.layer_norm(x, weights["token_embd_norm"], weights["token_embd_norm.bias"], eps)
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, x, i)
            x = ops.layer_norm(x, w["attn_output_norm"], w["attn_output_norm.bias"], eps)
            x = ops.layer_norm(x + glu_mlp(config, w, x), w["layer_output_norm"], w["layer_output_norm.bias"], eps)
    return ops.pool(x, config.pooling)


def attention(config: EncoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Self-attention of x, [num_tokens, hidden_size], over the whole sequence."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, causal=False))

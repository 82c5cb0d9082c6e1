"""Falcon 7B, 40B, 180B: attention and feed-forward network side by side, few heads of keys and values, GELU, no biases.

The 7B has one norm for both; the 40B and 180B ("new decoder architecture") have one for each, of which attn_norm_2 is
that of attention. Reference: huggingface/transformers, models/falcon/modeling_falcon.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp
from sterna.projections import qkv


@register("falcon", config=LayerNormConfig)
def logits(config: LayerNormConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            mlp_input = layer_norm(config, w, "attn_norm", x)
            attention_input = layer_norm(config, w, "attn_norm_2", x) if "attn_norm_2" in w else mlp_input
            x = x + attention(config, w, batch, attention_input, i) + mlp(config, w, mlp_input, "gelu")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: LayerNormConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; the 7B has one head of keys and values."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

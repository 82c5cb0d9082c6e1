"""StarCoder2, CodeShell: layer norms with biases, grouped-query attention with rotary positions, GELU.

Reference: huggingface/transformers, models/starcoder2/modeling_starcoder2.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp
from sterna.projections import qkv


@register("starcoder2", "codeshell", config=LayerNormConfig)
def logits(config: LayerNormConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "gelu_tanh")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: LayerNormConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; the window is there where the file asks for one."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

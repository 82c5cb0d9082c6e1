"""Phi-1.5, Phi-2: attention and feed-forward network side by side behind one norm; partial rotary; biased logits.

Reference: huggingface/transformers, models/phi/modeling_phi.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp
from sterna.projections import qkv


@register("phi2", config=LayerNormConfig)
def logits(config: LayerNormConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = layer_norm(config, w, "attn_norm", x)
            x = x + attention(config, w, batch, y, i) + mlp(config, w, y, "gelu_tanh")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights["output"], weights["output.bias"])


def attention(config: LayerNormConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]; the first elements of each head are turned."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

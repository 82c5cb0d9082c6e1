"""GPT-2, and StarCoder (one head of keys and values): learned positions, layer norms with biases, fused q, k, v, GELU.

Reference: huggingface/transformers, models/gpt2/modeling_gpt2.py and models/gpt_bigcode/modeling_gpt_bigcode.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp
from sterna.projections import qkv


@register("gpt2", "starcoder", config=LayerNormConfig)
def logits(config: LayerNormConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"]) + ops.embed(batch.positions, weights["position_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "gelu_tanh")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: LayerNormConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

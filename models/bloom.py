"""BLOOM: no positions but a penalty on distance (ALiBi, arXiv:2108.12409), a norm behind the embedding, biases, GELU.

Reference: huggingface/transformers, models/bloom/modeling_bloom.py; GGUF files have the rows of q, k and v in that
order and not by heads.
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp
from sterna.projections import qkv

MAX_ALIBI_BIAS = 8.0


@register("bloom", config=LayerNormConfig)
def logits(config: LayerNormConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = layer_norm(config, weights, "token_embd_norm", ops.embed(batch.tokens, weights["token_embd"]))
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "gelu_tanh")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: LayerNormConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, max_alibi_bias=MAX_ALIBI_BIAS))

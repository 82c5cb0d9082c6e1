"""Persimmon-8B: a layer norm on each head of q and k, partial rotary, a squared ReLU, biases.

Reference: huggingface/transformers, models/persimmon/modeling_persimmon.py; attn_qkv has the rows of q, k and v of the
first head, then those of the second, and so on.
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import mlp


class PersimmonConfig(LayerNormConfig):
    """The norms of q and k have biases."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and the biases."""
        head = (self.head_dim,)
        return super().tensor_shapes() | {"attn_q_norm.bias": head, "attn_k_norm.bias": head}


@register("persimmon", config=PersimmonConfig)
def logits(config: PersimmonConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "relu2")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: PersimmonConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]; the first elements of each head are turned."""
    heads = linear(config, w, "attn_qkv", x).heads(3 * config.head_dim)
    q, k, v = ops.split(heads, config.head_dim, config.head_dim, config.head_dim)
    q, k = layer_norm(config, w, "attn_q_norm", q), layer_norm(config, w, "attn_k_norm", k)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

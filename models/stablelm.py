"""StableLM 3B, StableLM 2 1.6B and 12B; Orion: layer norms, partial rotary (Orion: the whole head), SwiGLU.

The 12B has attention and feed-forward network side by side behind one norm, and a layer norm for each head of q and k.
Reference: huggingface/transformers, models/stablelm/modeling_stablelm.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm
from sterna.mlp import glu_mlp
from sterna.projections import qkv


class StableLmConfig(LayerNormConfig):
    """The norms of q and k have a weight of their own for each head."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder but for the norms of q and k."""
        q, k = (self.num_attention_heads, self.head_dim), (self.num_key_value_heads, self.head_dim)
        return super().tensor_shapes() | {"attn_q_norm": q, "attn_k_norm": k}


@register("stablelm", "orion", config=StableLmConfig)
def logits(config: StableLmConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = layer_norm(config, w, "attn_norm", x)
            x = x + attention(config, w, batch, y, i)
            x = x + glu_mlp(config, w, layer_norm(config, w, "ffn_norm", x) if "ffn_norm" in w else y)
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: StableLmConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; the first elements of each head are turned."""
    q, k, v = qkv(config, w, x)
    if "attn_q_norm" in w:
        q, k = layer_norm(config, w, "attn_q_norm", q), layer_norm(config, w, "attn_k_norm", k)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

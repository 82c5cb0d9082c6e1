"""GPT-Neo, TinyStories: as GPT-2, but scores are not scaled, and every other layer sees a window of positions only.

Reference: huggingface/transformers, models/gpt_neo/modeling_gpt_neo.py. No GGUF of another program has this
architecture; the names are those of GPT-2, with attn_q, attn_k and attn_v.
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm, layer_norm_fields
from sterna.mlp import mlp
from sterna.projections import qkv

WINDOW_SIZE = 256  # of files without the key


class GptNeoConfig(LayerNormConfig):
    """Layers 1, 3, 5 ... ("local") see a window of positions, their own included."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = layer_norm_fields(metadata)
        return cls(**fields | {"sliding_window": fields["sliding_window"] or WINDOW_SIZE})


@register("gptneo", config=GptNeoConfig)
def logits(config: GptNeoConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"]) + ops.embed(batch.positions, weights["position_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "gelu_tanh")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: GptNeoConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    window = config.sliding_window if layer % 2 else 0
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, scale=1.0, window=window))

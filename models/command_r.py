"""Command-R, Aya: attention and SwiGLU side by side behind one norm without bias; scaled logits.

Command-R+ has a layer norm for each head of q and k. Reference: huggingface/transformers,
models/cohere/modeling_cohere.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm, layer_norm_fields
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class CommandRConfig(LayerNormConfig):
    """The norms of q and k have a weight of their own for each head."""

    logit_scale: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**layer_norm_fields(metadata, ("logit_scale",)), logit_scale=metadata.number("logit_scale", 1.0))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder but for the norms of q and k."""
        q, k = (self.num_attention_heads, self.head_dim), (self.num_key_value_heads, self.head_dim)
        return super().tensor_shapes() | {"attn_q_norm": q, "attn_k_norm": k}


@register("command-r", config=CommandRConfig)
def logits(config: CommandRConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = layer_norm(config, w, "attn_norm", x)
            x = x + attention(config, w, batch, y, i) + glu_mlp(config, w, y)
    x = layer_norm(config, weights, "output_norm", x)
    return ops.unembed(x, weights.first("output", "token_embd")) * config.logit_scale


def attention(config: CommandRConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    if "attn_q_norm" in w:
        q, k = layer_norm(config, w, "attn_q_norm", q), layer_norm(config, w, "attn_k_norm", k)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

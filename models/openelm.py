"""OpenELM: as Llama, with heads and a feed-forward size of each layer's own, and norms of the heads of q and k.

Reference: apple/OpenELM, modeling_openelm.py (arXiv:2404.14619); transformers has no class of it.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_EXTENT, MAX_HEADS, Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp


@dataclass(frozen=True)
class OpenElmConfig(DecoderConfig):
    """Sizes by layer; the plain fields have the largest."""

    num_query_heads: tuple[int, ...]
    num_kv_heads: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        fields = decoder_fields(metadata, keys)
        layers = fields["num_hidden_layers"]
        heads, kv_heads, sizes = (
            metadata.by_layer(key, layers, 1, high)
            for key, high in zip(keys, (MAX_HEADS, MAX_HEADS, MAX_EXTENT), strict=True)
        )
        for i in range(layers):
            if heads[i] % kv_heads[i]:
                metadata.fail(keys[0], f"is {heads[i]} in layer {i}, no multiple of the K/V heads {kv_heads[i]}")
        return cls(**fields, num_query_heads=heads, num_kv_heads=kv_heads, intermediate_sizes=sizes)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, with the sizes of each layer."""
        shapes = super().tensor_shapes()
        hidden, head_dim = self.hidden_size, self.head_dim
        for i in range(self.num_hidden_layers):
            heads, size = self.num_query_heads[i], self.intermediate_sizes[i]
            shapes |= {
                f"blk.{i}.attn_qkv": ((heads + 2 * self.num_kv_heads[i]) * head_dim, hidden),
                f"blk.{i}.attn_output": (hidden, heads * head_dim),
                f"blk.{i}.ffn_gate": (size, hidden),
                f"blk.{i}.ffn_up": (size, hidden),
                f"blk.{i}.ffn_down": (hidden, size),
            }
        return shapes


@register("openelm", config=OpenElmConfig)
def logits(config: OpenElmConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: OpenElmConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size], with the heads of this layer."""
    head_dim, eps = config.head_dim, config.rms_norm_eps
    kv_size = config.num_kv_heads[layer] * head_dim
    parts = ops.split(linear(config, w, "attn_qkv", x), config.num_query_heads[layer] * head_dim, kv_size, kv_size)
    q, k, v = (part.heads(head_dim) for part in parts)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], eps), batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

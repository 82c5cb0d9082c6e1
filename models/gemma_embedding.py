"""EmbeddingGemma: Gemma 3 whose rows see both ways, windows around each row, and two linear layers behind the pool.

Reference: huggingface/transformers, models/gemma3/modeling_gemma3.py with use_bidirectional_attention. GGUF files hold
the weights of the norms plus one; sentence-transformers' two Dense modules are dense_2 and dense_3.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, RopeSpec, Weights, register_encoder
from sterna.bitlinear import linear
from sterna.encoder import EncoderConfig, encoder_fields
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class GemmaEmbeddingConfig(EncoderConfig):
    """Layers with a window have a rope of their own."""

    rope_local: RopeSpec
    is_sliding: tuple[bool, ...]  # by layer; the others are global

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of gemma-embedding."""
        fields = encoder_fields(metadata) | {"sliding_window": metadata.required_window()}
        return cls(
            **fields,
            rope_local=fields["rope"].unscaled(metadata.number("rope.freq_base_swa", 10000.0)),
            is_sliding=metadata.sliding_layers(fields["num_hidden_layers"], 6),
        )


@register_encoder("gemma-embedding", config=GemmaEmbeddingConfig)
def encode(config: GemmaEmbeddingConfig, weights: Weights, batch: Batch) -> ops.Value:
    """A vector for each sequence, [num_outputs, size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    x = ops.pool(ops.rms_norm(x, weights["output_norm"], eps), config.pooling)
    for name in ("dense_2", "dense_3"):
        dense = weights.get(name)
        x = x if dense is None else ops.linear(x, dense)
    return x


def attention(config: GemmaEmbeddingConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; every sixth layer sees all positions."""
    is_sliding = config.is_sliding[layer]
    rope = config.rope_local if is_sliding else config.rope
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, rope)
    window = config.sliding_window if is_sliding else 0
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, causal=False, window=window))

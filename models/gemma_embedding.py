"""EmbeddingGemma: Gemma 3 whose rows see both ways, windows around each row, and two linear layers behind the pool.

Reference: huggingface/transformers, models/gemma3/modeling_gemma3.py with use_bidirectional_attention. GGUF files hold
the weights of the norms plus one; sentence-transformers' two Dense modules are dense_2 and dense_3.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, RopeSpec, Weights, register_encoder
from sterna.encoder import EncoderConfig, encoder_fields


@dataclass(frozen=True)
class GemmaEmbeddingConfig(EncoderConfig):
    """Layers with a window have a rope of their own."""

    rope_local: RopeSpec
    sliding_window_pattern: int  # every n-th layer is global

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of gemma-embedding."""
        fields = encoder_fields(metadata)
        return cls(
            **fields,
            rope_local=fields["rope"].unscaled(metadata.number("rope.freq_base_swa", 10000.0)),
            sliding_window_pattern=metadata.integer("attention.sliding_window_pattern", 1, 1024, 6),
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
            y = mlp(w, ops.rms_norm(x, w["ffn_norm"], eps))
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    x = ops.pool(ops.rms_norm(x, weights["output_norm"], eps), config.pooling)
    for name in ("dense_2", "dense_3"):
        dense = weights.get(name)
        x = x if dense is None else ops.linear(x, dense)
    return x


def attention(config: GemmaEmbeddingConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; every sixth layer sees all positions."""
    is_global = (layer + 1) % config.sliding_window_pattern == 0
    rope = config.rope if is_global else config.rope_local
    q = ops.linear(x, w["attn_q"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"]).heads(config.value_head_dim)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, rope)
    window = 0 if is_global else config.sliding_window
    return ops.linear(ops.attention(q, k, v, layer=layer, causal=False, window=window), w["attn_output"])


def mlp(w: Weights, x: ops.Value) -> ops.Value:
    """GeGLU feed-forward network."""
    gate, up = ops.linear(x, w["ffn_gate"]), ops.linear(x, w["ffn_up"])
    return ops.linear(ops.glu(gate, up, "gelu_tanh"), w["ffn_down"])

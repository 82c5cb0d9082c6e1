"""ModernBERT: pre-norm encoder without biases, rope, GeGLU; one global layer, then `pattern - 1` with a window.

Reference: huggingface/transformers, models/modernbert/modeling_modernbert.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_LAYERS, Batch, Metadata, RopeSpec, Weights, register_encoder
from sterna.bitlinear import linear
from sterna.encoder import EncoderConfig, encoder_fields
from sterna.mlp import merged_glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Layers with a window have a rope of their own."""

    rope_local: RopeSpec
    sliding_window_pattern: int  # every n-th layer, from the first on, is global

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of modern-bert."""
        fields = encoder_fields(metadata)
        return cls(
            **fields,
            rope_local=fields["rope"].unscaled(metadata.number("rope.freq_base_swa", 10000.0)),
            sliding_window_pattern=metadata.integer("attention.sliding_window_pattern", 1, MAX_LAYERS, 3),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of an encoder; gate and up lie in one matrix."""
        return super().tensor_shapes() | {"ffn_up": (2 * self.intermediate_size, self.hidden_size)}


@register_encoder("modern-bert", config=ModernBertConfig)
def encode(config: ModernBertConfig, weights: Weights, batch: Batch) -> ops.Value:
    """A vector for each sequence, [num_outputs, hidden_size]."""
    eps = config.layer_norm_eps
    x = ops.layer_norm(ops.embed(batch.tokens, weights["token_embd"]), weights["token_embd_norm"], None, eps)
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            # The first layer reads the norm of the embeddings as it is.
            x = x + attention(config, w, batch, ops.layer_norm(x, w["attn_norm"], None, eps) if i else x, i)
            x = x + merged_glu_mlp(config, w, ops.layer_norm(x, w["ffn_norm"], None, eps), "gelu")
    return ops.pool(ops.layer_norm(x, weights["output_norm"], None, eps), config.pooling)


def attention(config: ModernBertConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Self-attention of x, [num_tokens, hidden_size], over the whole sequence or a window around each row."""
    is_global = layer % config.sliding_window_pattern == 0
    rope = config.rope if is_global else config.rope_local
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, rope), ops.rope(k, batch.positions, rope)
    window = 0 if is_global else config.sliding_window
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, causal=False, window=window))

"""EXAONE 4: norms behind each block and none before it, norms on each head of q and k, SwiGLU.

The 32B has three layers with a sliding window and rotary positions to one that sees all positions and knows none.
Reference: huggingface/transformers, models/exaone4/modeling_exaone4.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv

SLIDING_WINDOW_PATTERN = 4


@dataclass(frozen=True)
class Exaone4Config(DecoderConfig):
    """Which layers have the window: none where the file has none."""

    is_sliding: tuple[bool, ...]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = decoder_fields(metadata)
        period = SLIDING_WINDOW_PATTERN if fields["sliding_window"] else 1
        return cls(**fields, is_sliding=metadata.sliding_layers(fields["num_hidden_layers"], period))


@register("exaone4", config=Exaone4Config)
def logits(config: Exaone4Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + ops.rms_norm(attention(config, w, batch, x, factors, i), w["post_attention_norm"], eps)
            x = x + ops.rms_norm(glu_mlp(config, w, x), w["post_ffw_norm"], eps)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: Exaone4Config, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` hold the frequency scaling of Llama 3."""
    q, k, v = qkv(config, w, x)
    q, k = (ops.rms_norm(y, w[name], config.rms_norm_eps) for y, name in ((q, "attn_q_norm"), (k, "attn_k_norm")))
    window = config.sliding_window if config.is_sliding[layer] else 0
    if window or not config.sliding_window:
        q, k = (ops.rope(y, batch.positions, config.rope, factors=factors) for y in (q, k))
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, window=window))

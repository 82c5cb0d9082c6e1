"""Command-R7B, Command-A: as Command-R, with three layers of a sliding window to one that sees all positions.

Only those with the window have rotary positions. Reference: huggingface/transformers,
models/cohere2/modeling_cohere2.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm, layer_norm_fields
from sterna.mlp import glu_mlp
from sterna.projections import qkv

SLIDING_WINDOW_PATTERN = 4


@dataclass(frozen=True)
class Cohere2Config(LayerNormConfig):
    """Which layers have the window, and the factor of the logits."""

    is_sliding: tuple[bool, ...]
    logit_scale: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = layer_norm_fields(metadata, ("logit_scale",))
        is_sliding = metadata.sliding_layers(fields["num_hidden_layers"], SLIDING_WINDOW_PATTERN)
        fields["sliding_window"] = metadata.required_window()
        return cls(**fields, is_sliding=is_sliding, logit_scale=metadata.number("logit_scale", 1.0))


@register("cohere2", config=Cohere2Config)
def logits(config: Cohere2Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = layer_norm(config, w, "attn_norm", x)
            x = x + attention(config, w, batch, y, i) + glu_mlp(config, w, y)
    x = layer_norm(config, weights, "output_norm", x)
    return ops.unembed(x, weights.first("output", "token_embd")) * config.logit_scale


def attention(config: Cohere2Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    if not config.is_sliding[layer]:
        return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

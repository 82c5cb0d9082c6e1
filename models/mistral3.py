"""Ministral 3: as Llama, with YaRN, and scores that grow with the position so that long contexts stay sharp.

Reference: huggingface/transformers, models/ministral3/modeling_ministral3.py; GGUF files have the rows of q and k
permuted, so that rope turns neighbours.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_CONTEXT, Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class Mistral3Config(DecoderConfig):
    """The temperature grows with every original context that a position is beyond."""

    temperature: ops.AttentionTemperature

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = decoder_fields(metadata, handles=("attention.temperature_scale",))
        scale = metadata.number("attention.temperature_scale", 0.0, zero=True)
        context = fields["max_position_embeddings"]
        length = metadata.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT, context)
        return cls(**fields, temperature=ops.AttentionTemperature(scale, length))


@register("mistral3", config=Mistral3Config)
def logits(config: Mistral3Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: Mistral3Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window, temperature=config.temperature)
    return linear(config, w, "attn_output", y)

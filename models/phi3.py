"""Phi 3, 3.5 and 4, Phi-4-mini: as Llama, with q, k, v and gate, up in one matrix each, and two sets of rope factors.

A sequence that may grow beyond the original context turns with the long factors (LongRoPE, arXiv:2402.13753).
Reference: huggingface/transformers, models/phi3/modeling_phi3.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import merged_glu_mlp
from sterna.projections import qkv


class Phi3Config(DecoderConfig):
    """A decoder's Config."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys; files without a window say that it is 0. ModelFormatError."""
        return cls(**decoder_fields(metadata, handles=("attention.sliding_window",)))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder; gate and up lie in one matrix."""
        return super().tensor_shapes() | {"ffn_up": (2 * self.intermediate_size, self.hidden_size)}


@register("phi3", config=Phi3Config)
def logits(config: Phi3Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_factors_short"), weights.get("rope_factors_long")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            x = x + merged_glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: Phi3Config,
    w: Weights,
    batch: Batch,
    x: ops.Value,
    factors: tuple[ops.Value | None, ops.Value | None],
    layer: int,
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` are the short and the long ones."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, factors=factors[0], long_factors=factors[1])
    k = ops.rope(k, batch.positions, config.rope, factors=factors[0], long_factors=factors[1])
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, window=config.sliding_window))

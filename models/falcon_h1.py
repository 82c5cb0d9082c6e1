"""Falcon-H1: every layer attends and has a state space, side by side; the multipliers are in the file's weights.

Reference: huggingface/transformers, models/falcon_h1/modeling_falcon_h1.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv
from sterna.recurrent import RecurrentConfig, headed_fields, mamba2_mixer


class FalconH1Config(RecurrentConfig):
    """Layers are recurrent whatever their K/V heads."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**headed_fields(metadata, decoder_fields(metadata)))


@register("falcon-h1", config=FalconH1Config)
def logits(config: FalconH1Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            x = x + (mamba2_mixer(config, w, y, i) + attention(config, w, batch, y, i))
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: FalconH1Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

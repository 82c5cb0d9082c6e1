"""Mamba-2, Mamba-Codestral: state spaces with scalar decays, no attention and no feed-forward networks.

Reference: huggingface/transformers, models/mamba2/modeling_mamba2.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, decoder_fields, register
from sterna.recurrent import RecurrentConfig, headed_fields, mamba2_mixer


class Mamba2Config(RecurrentConfig):
    """Heads and groups divide the inner size."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**headed_fields(metadata, decoder_fields(metadata, hybrid=True)))


@register("mamba2", config=Mamba2Config)
def logits(config: Mamba2Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + mamba2_mixer(config, w, ops.rms_norm(x, w["attn_norm"], eps), i)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))

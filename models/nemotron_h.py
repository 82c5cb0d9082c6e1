"""Nemotron-H, Nemotron Nano 2: each layer is one of three: Mamba-2, attention without positions, or squared-ReLU MLP.

Reference: huggingface/transformers, models/nemotron_h/modeling_nemotron_h.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_EXTENT, Batch, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import mlp
from sterna.projections import qkv
from sterna.recurrent import RecurrentConfig, headed_fields, mamba2_mixer


@dataclass(frozen=True)
class NemotronHConfig(RecurrentConfig):
    """Layers have K/V heads, a feed-forward network, or else a state."""

    mlp_layers: tuple[bool, ...]  # by layer

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = headed_fields(metadata, decoder_fields(metadata, hybrid=True))
        sizes = metadata.by_layer("feed_forward_length", fields["num_hidden_layers"], 0, MAX_EXTENT)
        return cls(**fields, mlp_layers=tuple(size > 0 for size in sizes))


@register("nemotron_h", config=NemotronHConfig)
def logits(config: NemotronHConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            if config.mlp_layers[i]:
                x = x + mlp(config, w, y, "relu2")
            elif config.recurrent_layers[i]:
                x = x + mamba2_mixer(config, w, y, i)
            else:
                q, k, v = qkv(config, w, y)
                x = x + linear(config, w, "attn_output", ops.attention(q, k, v, layer=i))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))

"""Mamba, Falcon Mamba: selective state spaces, no attention and no feed-forward networks.

Reference: huggingface/transformers, models/mamba/modeling_mamba.py and models/falcon_mamba/modeling_falcon_mamba.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, decoder_fields, register
from sterna.recurrent import MambaConfig, mamba_mixer, recurrent_fields

FALCON_EPS = 1e-6  # mixer_rms_eps of all Falcon Mamba models; files have no key for it


class PureMambaConfig(MambaConfig):
    """The Config of models that have nothing else."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = recurrent_fields(metadata, decoder_fields(metadata, hybrid=True))
        return cls(**fields, mixer_rms_eps=FALCON_EPS if metadata.flag("ssm.dt_b_c_rms", False) else 0.0)


@register("mamba", config=PureMambaConfig)
def logits(config: MambaConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + mamba_mixer(config, w, ops.rms_norm(x, w["attn_norm"], eps), i)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))

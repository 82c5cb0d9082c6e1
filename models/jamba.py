"""Jamba: layers of Mamba, every eighth attends without positions; experts in every other layer.

Reference: huggingface/transformers, models/jamba/modeling_jamba.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, experts, moe_fields
from sterna.projections import qkv
from sterna.recurrent import MambaConfig, mamba_mixer, recurrent_fields


@dataclass(frozen=True)
class JambaConfig(MoeConfig, MambaConfig):
    """Both kinds of layers. The weights of experts are shares of all of them."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = moe_fields(metadata, norm_topk_prob=False, hybrid=True)
        return cls(**recurrent_fields(metadata, fields), mixer_rms_eps=fields["rms_norm_eps"])


@register("jamba", config=JambaConfig)
def logits(config: JambaConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            x = x + (mamba_mixer(config, w, y, i) if config.recurrent_layers[i] else attention(config, w, y, i))
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (experts(config, w, y) if "ffn_gate_inp" in w else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: JambaConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention without positions, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

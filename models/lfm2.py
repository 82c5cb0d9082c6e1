"""LFM2, LFM2.5, LFM2 MoE: most layers mix tokens with a gated short convolution, some with grouped-query attention.

Reference: huggingface/transformers, models/lfm2/modeling_lfm2.py and models/lfm2_moe/modeling_lfm2_moe.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_HEADS, Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, experts, moe_fields
from sterna.projections import qkv
from sterna.recurrent import MAX_KERNEL


@dataclass(frozen=True)
class Lfm2Config(MoeConfig):
    """A decoder's Config; layers with attention have K/V heads, the others a convolution."""

    attention_layers: tuple[bool, ...]  # by layer
    conv_kernel: int

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = moe_fields(metadata, scoring_func="sigmoid", hybrid=True)
        kv_heads = metadata.by_layer("attention.head_count_kv", fields["num_hidden_layers"], 0, MAX_HEADS)
        return cls(
            **fields,
            attention_layers=tuple(count > 0 for count in kv_heads),
            conv_kernel=metadata.integer("shortconv.l_cache", 2, MAX_KERNEL),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and of the convolutions."""
        hidden = self.hidden_size
        return super().tensor_shapes() | {
            "token_embd_norm": (hidden,),
            "shortconv.in_proj": (3 * hidden, hidden),
            "shortconv.conv": (hidden, self.conv_kernel),
            "shortconv.out_proj": (hidden, hidden),
        }


@register("lfm2", "lfm2moe", config=Lfm2Config)
def logits(config: Lfm2Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            x = x + (attention(config, w, batch, y, i) if config.attention_layers[i] else convolution(w, y, i))
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (experts(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    x = ops.rms_norm(x, weights.first("token_embd_norm", "output_norm"), eps)
    return ops.unembed(x, weights.first("output", "token_embd"))


def convolution(w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Short convolution with a gate before and behind, [num_tokens, hidden_size]."""
    b, c, x = ops.split(ops.linear(x, w["shortconv.in_proj"]), *[x.size] * 3)
    y = c * ops.short_conv(b * x, w["shortconv.conv"], layer=layer)
    return ops.linear(y, w["shortconv.out_proj"])


def attention(config: Lfm2Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention with normalised heads, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

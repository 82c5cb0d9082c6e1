"""MPT: no positions but a penalty on distance (ALiBi, arXiv:2108.12409), norms without biases, GELU.

Some models clamp q, k and v, or have learned positions. Reference: huggingface/transformers,
models/mpt/modeling_mpt.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm, layer_norm_fields
from sterna.mlp import mlp
from sterna.projections import qkv_rows


@dataclass(frozen=True)
class MptConfig(LayerNormConfig):
    """q, k and v are kept within -clip_qkv .. clip_qkv; 0: as they are."""

    alibi_bias_max: float  # 0: no ALiBi
    clip_qkv: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        bias, clip = "attention.max_alibi_bias", "attention.clamp_kqv"
        fields = layer_norm_fields(metadata, (bias, clip))
        return cls(**fields, alibi_bias_max=metadata.number_or_zero(bias), clip_qkv=metadata.number_or_zero(clip))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder but for the norms of q and k, which go over all heads."""
        q, k = (self.num_attention_heads * self.head_dim,), (self.num_key_value_heads * self.head_dim,)
        norms = {"attn_q_norm": q, "attn_q_norm.bias": q, "attn_k_norm": k, "attn_k_norm.bias": k}
        return super().tensor_shapes() | norms


@register("mpt", config=MptConfig)
def logits(config: MptConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    if "position_embd" in weights:
        x = x + ops.embed(batch.positions, weights["position_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, layer_norm(config, w, "attn_norm", x), i)
            x = x + mlp(config, w, layer_norm(config, w, "ffn_norm", x), "gelu")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: MptConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv_rows(config, w, x)
    if config.clip_qkv:
        q, k, v = (ops.clamp(y, config.clip_qkv) for y in (q, k, v))
    if "attn_q_norm" in w:
        q, k = layer_norm(config, w, "attn_q_norm", q), layer_norm(config, w, "attn_k_norm", k)
    q, k, v = q.heads(config.head_dim), k.heads(config.head_dim), v.heads(config.value_head_dim)
    y = ops.attention(q, k, v, layer=layer, max_alibi_bias=config.alibi_bias_max)
    return linear(config, w, "attn_output", y)

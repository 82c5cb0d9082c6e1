"""Qwen3-Next and Qwen3.5: three layers of four are gated delta nets, the fourth attends, with a gate on what it says.

Reference: huggingface/transformers, models/qwen3_next/modeling_qwen3_next.py and models/qwen3_5/modeling_qwen3_5.py.
Norm weights in the files have 1 added; "ssm_a" is -exp(A_log); Qwen3.5 files have the value heads that share a key head
not side by side, but a head of each key head first.
"""

import math
from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields
from sterna.recurrent import RecurrentConfig, headed_fields


@dataclass(frozen=True)
class Qwen3NextConfig(MoeConfig, RecurrentConfig):
    """Both kinds of layers; a state has `state_size` rows for keys, `ssm_intermediate_size` / num_ssm_heads columns."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**headed_fields(metadata, moe_fields(metadata, shared="gated", hybrid=True)))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder and of experts, gates of attention, and the delta nets."""
        hidden, inner, heads = self.hidden_size, self.ssm_intermediate_size, self.num_ssm_heads
        channels = inner + 2 * self.num_ssm_groups * self.state_size
        return super().tensor_shapes() | {
            "attn_q": (2 * self.num_attention_heads * self.head_dim, hidden),
            "attn_qkv": (channels, hidden),
            "attn_gate": (inner, hidden),
            "ssm_conv1d": (channels, self.conv_kernel),
            "ssm_ba": (2 * heads, hidden),
            "ssm_alpha": (heads, hidden),
            "ssm_beta": (heads, hidden),
            "ssm_a": (heads,),
            "ssm_norm": (inner // heads,),
        }


@register("qwen3next", "qwen35", "qwen35moe", config=Qwen3NextConfig)
def logits(config: Qwen3NextConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = ops.rms_norm(x, w["attn_norm"], eps)
            x = x + (delta_net(config, w, y, i) if config.recurrent_layers[i] else attention(config, w, batch, y, i))
            y = ops.rms_norm(x, w["post_attention_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def delta_net(config: Qwen3NextConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Gated delta net over x, [num_tokens, hidden_size] -> the same (arXiv:2412.06464)."""
    inner, heads = config.ssm_intermediate_size, config.num_ssm_heads
    key_heads, key_dim = config.num_ssm_groups, config.state_size
    mixed = ops.short_conv(ops.linear(x, w["attn_qkv"]), w["ssm_conv1d"], layer=layer)
    q, k, v = ops.split(ops.activation(mixed, "silu"), key_heads * key_dim, key_heads * key_dim, inner)
    if (both := w.get("ssm_ba")) is not None:  # of the value heads of each key head: betas, then alphas
        shared = heads // key_heads
        beta, alpha = ops.split(ops.linear(x, both).heads(2 * shared), shared, shared)
        beta, alpha = ops.reshape(beta, heads), ops.reshape(alpha, heads)
    else:
        beta, alpha = ops.linear(x, w["ssm_beta"]), ops.linear(x, w["ssm_alpha"])
        q, k = (ops.concat(*[value] * (heads // key_heads)) for value in (q, k))
    decay = ops.activation(alpha + w["ssm_dt.bias"], "softplus") * w["ssm_a"]
    q, k = unit(q.heads(key_dim)) * (1 / math.sqrt(key_dim)), unit(k.heads(key_dim))
    beta = ops.activation(beta, "sigmoid")
    y = ops.delta_rule(q, k, v.heads(inner // heads), decay, beta, layer=layer)
    y = ops.reshape(ops.rms_norm(y.heads(inner // heads), w["ssm_norm"], config.rms_norm_eps), inner)
    return ops.linear(ops.glu(ops.linear(x, w["attn_gate"]), y), w["ssm_out"])


def unit(x: ops.Value) -> ops.Value:
    """x / sqrt(sum(x^2) + 1e-6) of each head."""
    return ops.rms_norm(x, None, 1e-6 / x.size) * (1 / math.sqrt(x.size))


def attention(config: Qwen3NextConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention; each head has a gate beside its queries. [num_tokens, hidden_size]."""
    dim, eps = config.head_dim, config.rms_norm_eps
    q, gate = ops.split(ops.linear(x, w["attn_q"]).heads(2 * dim), dim, dim)
    k = ops.linear(x, w["attn_k"]).heads(dim)
    v = ops.linear(x, w["attn_v"]).heads(config.value_head_dim)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], eps), batch.positions, config.rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], eps), batch.positions, config.rope)
    gate = ops.activation(ops.reshape(gate, config.num_attention_heads * dim), "sigmoid")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer) * gate)

"""DeepSeek V2, V2-Lite, V3, R1, V3.1 and Kimi K2: attention over a low-rank latent (MLA), many small experts in groups.

The absorbed form of MLA: each head's query meets the latent itself, which stands for the keys and the values of all
heads and is cached once (arXiv:2405.04434, section 2.1). Files from before the matrices were split keep K and V.
Reference: huggingface/transformers, models/deepseek_v2/modeling_deepseek_v2.py and models/deepseek_v3.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

from sterna import ops
from sterna.arch import MAX_EXTENT, Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture, moe_fields


@dataclass(frozen=True)
class DeepseekConfig(MoeConfig):
    """Sizes of MLA; `head_dim` and `value_head_dim` are those of the cache."""

    kv_lora_rank: int
    q_lora_rank: int  # 0: queries are not compressed
    qk_nope_head_dim: int
    v_head_dim: int
    attention_scale: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of deepseek2. ModelFormatError, UnsupportedModelError."""
        fields = moe_fields(metadata, norm_topk_prob=False, shared="always")
        rope = fields["rope"]
        head_dim = metadata.integer("attention.key_length_mla", rope.rotary_dim + 1, MAX_EXTENT, fields["head_dim"])
        scale = head_dim**-0.5
        if rope.scaling == "yarn" and metadata.has("rope.scaling.yarn_log_multiplier"):
            # mscale and mscale_all_dim of the configuration, which are equal: scores grow, queries and keys do not.
            scale *= (1 + metadata.number("rope.scaling.yarn_log_multiplier") * math.log(max(rope.factor, 1.0))) ** 2
            fields["rope"] = replace(rope, attention_factor=1.0)
        return cls(
            **fields,
            kv_lora_rank=metadata.integer("attention.kv_lora_rank", 1, MAX_EXTENT),
            q_lora_rank=metadata.integer("attention.q_lora_rank", 0, MAX_EXTENT, 0),
            qk_nope_head_dim=head_dim - rope.rotary_dim,
            v_head_dim=metadata.integer("attention.value_length_mla", 1, MAX_EXTENT, fields["value_head_dim"]),
            attention_scale=scale,
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a mixture of experts, and the matrices of MLA."""
        heads, hidden, latent, q = self.num_attention_heads, self.hidden_size, self.kv_lora_rank, self.q_lora_rank
        nope, turned, v = self.qk_nope_head_dim, self.rope.rotary_dim, self.v_head_dim
        return super().tensor_shapes() | {
            "attn_q": (heads * (nope + turned), hidden),
            "attn_q_a": (q, hidden),
            "attn_q_a_norm": (q,),
            "attn_q_b": (heads * (nope + turned), q),
            "attn_kv_a_mqa": (latent + turned, hidden),
            "attn_kv_a_norm": (latent,),
            "attn_kv_b": (heads * (nope + v), latent),
            "attn_k_b": (heads, latent, nope),
            "attn_v_b": (heads, v, latent),
            "attn_output": (hidden, heads * v),
        }


@register("deepseek2", config=DeepseekConfig)
def logits(config: DeepseekConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DeepseekConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head latent attention of x, [num_tokens, hidden_size]."""
    nope, turned, latent = config.qk_nope_head_dim, config.rope.rotary_dim, config.kv_lora_rank
    q, q_rope = ops.split(queries(config, w, x).heads(nope + turned), nope, turned)
    c, k_rope = ops.split(ops.linear(x, w["attn_kv_a_mqa"]), latent, turned)
    c = ops.rms_norm(c, w["attn_kv_a_norm"], config.rms_norm_eps)
    q_rope = ops.rope(q_rope, batch.positions, config.rope, style="interleaved")
    k_rope = ops.rope(k_rope.heads(turned), batch.positions, config.rope, style="interleaved")
    scale, heads = config.attention_scale, config.num_attention_heads
    if (kv_b := w.get("attn_kv_b")) is not None:
        k, v = ops.split(ops.linear(c, kv_b).heads(nope + config.v_head_dim), nope, config.v_head_dim)
        k_rope = ops.reshape(ops.concat(*[k_rope] * heads), heads, turned)
        y = ops.attention(ops.concat(q, q_rope), ops.concat(k, k_rope), v, layer=layer, scale=scale)
        return linear(config, w, "attn_output", y)
    q = ops.concat(ops.head_linear(q, w["attn_k_b"]), q_rope)
    k = ops.concat(c.heads(latent), k_rope)
    y = ops.attention(q, k, None, layer=layer, scale=scale, latent=latent)
    y = ops.head_linear(y.heads(latent), w["attn_v_b"])
    return linear(config, w, "attn_output", ops.reshape(y, heads * config.v_head_dim))


def queries(config: DeepseekConfig, w: Weights, x: ops.Value) -> ops.Value:
    """Queries of all heads, [num_tokens, num_heads * (nope + rope)], by way of a low rank where the model has one."""
    if not config.q_lora_rank:
        return ops.linear(x, w["attn_q"])
    y = ops.rms_norm(ops.linear(x, w["attn_q_a"]), w["attn_q_a_norm"], config.rms_norm_eps)
    return ops.linear(y, w["attn_q_b"])

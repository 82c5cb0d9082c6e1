"""Llama 4 Scout and Maverick: experts in every n-th layer, attention in chunks, every fourth layer without positions.

Layers without rope see all positions, with a temperature that grows with the position. The router's weight scales what
its one expert reads. Reference: huggingface/transformers, models/llama4/modeling_llama4.py; GGUF files do not say how
long chunks are, and from where on the temperature grows: both are 8192.
"""

from dataclasses import dataclass
from typing import Self

from sterna import expert_ops, ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, expert_matrices, moe_fields, routes, shared_expert
from sterna.projections import qkv

CHUNK = 8192
TEMPERATURE = ops.AttentionTemperature(scale=0.1, length=8192, offset=1)
NO_ROPE_LAYER_INTERVAL = 4


@dataclass(frozen=True)
class Llama4Config(MoeConfig):
    """Scores are sigmoids; queries and keys may be normalised."""

    use_qk_norm: bool

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of llama4. Maverick alone has 128 experts, and no norms, which no key says."""
        fields = moe_fields(metadata, scoring_func="sigmoid", norm_topk_prob=False)
        fields["shared_expert_intermediate_size"] = fields["moe_intermediate_size"]
        return cls(**fields, use_qk_norm=fields["num_experts"] != 128)


@register("llama4", config=Llama4Config)
def logits(config: Llama4Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            if config.has_experts(i):
                x = x + (experts(config, w, y) + shared_expert(config, w, y))
            else:
                x = x + glu_mlp(config, w, y)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: Llama4Config, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` divide the frequencies of rope."""
    q, k, v = qkv(config, w, x)
    if (layer + 1) % NO_ROPE_LAYER_INTERVAL == 0:
        return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, temperature=TEMPERATURE))
    q = ops.rope(q, batch.positions, config.rope, style="interleaved", factors=factors)
    k = ops.rope(k, batch.positions, config.rope, style="interleaved", factors=factors)
    if config.use_qk_norm:
        q, k = ops.rms_norm(q, None, config.rms_norm_eps), ops.rms_norm(k, None, config.rms_norm_eps)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer, chunk=CHUNK))


def experts(config: Llama4Config, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU experts of x, [num_tokens, hidden_size], each of which reads x times its weight."""
    chosen, weights = routes(config, w, x)
    return expert_ops.expert_glu(x, chosen, weights, expert_matrices(w), weigh_input=True)

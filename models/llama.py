"""Llama 1 to 3, Mistral, Mixtral, SmolLM2, TinyLlama: pre-norm decoder, grouped-query attention, SwiGLU.

Reference: huggingface/transformers, models/llama/modeling_llama.py and models/mixtral/modeling_mixtral.py; GGUF files
have the rows of q and k permuted, so that rope turns neighbours.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.moe import MoeConfig


@register("llama", "mistral", config=MoeConfig)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps), factors, i)
            normed = ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps)
            x = x + (moe(config, w, normed) if config.num_experts else mlp(config, w, normed))
    x = ops.rms_norm(x, weights["output_norm"], config.rms_norm_eps)
    return ops.unembed(x, weights.first("output", "token_embd"))


def attention(
    config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` hold the frequency scaling of Llama 3."""
    q = linear(config, w, "attn_q", x).heads(config.head_dim)
    k = linear(config, w, "attn_k", x).heads(config.head_dim)
    v = linear(config, w, "attn_v", x).heads(config.value_head_dim)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved", factors=factors)
    k = ops.rope(k, batch.positions, config.rope, style="interleaved", factors=factors)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)


def mlp(config: DecoderConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network."""
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x))
    return linear(config, w, "ffn_down", y)


def moe(config: MoeConfig, w: Weights, x: ops.Value) -> ops.Value:
    """Mixture of SwiGLU experts, the best few of each row (Mixtral, arXiv:2401.04088)."""
    experts, weights = ops.route(ops.linear(x, w["ffn_gate_inp"]), config.num_experts_per_tok)
    return ops.expert_glu(x, experts, weights, w["ffn_gate_exps"], w["ffn_up_exps"], w["ffn_down_exps"])

"""Qwen 1.5 and 2 MoE: as Qwen 2, with a mixture of experts and one expert that all rows share in every layer.

Reference: huggingface/transformers, models/qwen2_moe/modeling_qwen2_moe.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.moe import MoeConfig


@register("qwen2moe", config=MoeConfig)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps), i)
            x = x + moe(config, w, ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps))
    x = ops.rms_norm(x, weights["output_norm"], config.rms_norm_eps)
    return ops.unembed(x, weights.first("output", "token_embd"), weights.get("output.bias"))


def attention(config: MoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q = ops.linear(x, w["attn_q"], w["attn_q.bias"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"], w["attn_k.bias"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"], w["attn_v.bias"]).heads(config.value_head_dim)
    q = ops.rope(q, batch.positions, config.rope)
    k = ops.rope(k, batch.positions, config.rope)
    return ops.linear(ops.attention(q, k, v, layer=layer), w["attn_output"])


def moe(config: MoeConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU experts, weighted by the softmax over all of them, and the shared one, weighted by a gate of its own."""
    experts, weights = ops.route(ops.linear(x, w["ffn_gate_inp"]), config.num_experts_per_tok, normalize=False)
    routed = ops.expert_glu(x, experts, weights, w["ffn_gate_exps"], w["ffn_up_exps"], w["ffn_down_exps"])
    hidden = ops.glu(ops.linear(x, w["ffn_gate_shexp"]), ops.linear(x, w["ffn_up_shexp"]))
    share = ops.activation(ops.linear(x, w["ffn_gate_inp_shexp"]), "sigmoid")
    return routed + ops.linear(hidden, w["ffn_down_shexp"]) * share

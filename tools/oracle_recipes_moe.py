"""Recipes of tools/make_oracle.py for mixtures of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracle_recipes import F32, HEAD_DIM, NUM_HEADS, ROPE, SANDWICH, WINDOW, Recipe, permuted

# Beside NAMES of oracle_recipes.
MOE_NAMES = {
    **{f"{mlp}.gate": "ffn_gate_inp" for mlp in ("mlp", "feed_forward")},
    **dict.fromkeys(("mlp.gate.wg", "block_sparse_moe.router", "feed_forward.router"), "ffn_gate_inp"),
    **dict.fromkeys(
        (
            "mlp.e_score_correction_bias",
            "mlp.gate.e_score_correction_bias",
            "mlp.gate.moe_statics.e_score_correction_bias",
        ),
        "exp_probs_b",
    ),
    **{f"{mlp}.experts.gate_up_proj": "gate_up_exps" for mlp in ("mlp", "block_sparse_moe", "feed_forward")},
    **{f"{mlp}.experts.down_proj": "ffn_down_exps" for mlp in ("mlp", "block_sparse_moe", "feed_forward")},
    **{
        f"{shared}.{part}_proj": f"ffn_{part}_shexp"
        for shared in ("mlp.shared_expert", "mlp.shared_experts", "mlp.shared_mlp", "feed_forward.shared_expert")
        for part in ("gate", "up", "down")
    },
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "shared_mlp.input_linear": "gate_up_shexp",
    "shared_mlp.output_linear": "ffn_down_shexp",
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
}


def gate_and_up(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """gate_up_proj of experts as two tensors; the bias of a choice without an extent of 1."""
    if name.startswith("gate_up_"):
        gate, up = np.split(x, 2, axis=-2)
        return {name.replace("gate_up_", "ffn_gate_"): gate, name.replace("gate_up_", "ffn_up_"): up}
    return {name: x.reshape(-1) if name == "exp_probs_b" else x}


def permuted_gate_and_up(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    return gate_and_up(config, name, kind, permuted(config, name, kind, x)[name])


def turned_over(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Experts whose matrices multiply from the left."""
    return gate_and_up(config, name, kind, x.swapaxes(1, 2) if name.endswith("_exps") else x)


def gpt_oss(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Experts whose matrices multiply from the left, with the columns of gate and up by turns."""
    x = x.swapaxes(1, 2) if name.endswith("_exps") and kind == "weight" else x
    if name == "gate_up_exps":
        return {"ffn_gate_exps": x[:, ::2], "ffn_up_exps": x[:, 1::2]}
    return {name: x}


def split_kv_b(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """The projection up from the latent as one matrix for keys, turned over, and one for values, of each head."""
    if name != "attn_kv_b":
        return gate_and_up(config, name, kind, x)
    heads = x.reshape(NUM_HEADS, -1, config.kv_lora_rank)
    keys, values = heads[:, : config.qk_nope_head_dim], heads[:, config.qk_nope_head_dim :]
    return {"attn_k_b": keys.swapaxes(1, 2), "attn_v_b": values}


def moe(architecture: str, hf_class: str, notes: str, **fields: Any) -> Recipe:
    return Recipe(
        architecture, f"{hf_class}ForCausalLM", notes, **{"names": MOE_NAMES, "change": gate_and_up, **fields}
    )


NUM_EXPERTS, USED, MOE_SIZE = 8, 3, 16
KEYS = {"expert_count": NUM_EXPERTS, "expert_used_count": USED, "expert_feed_forward_length": MOE_SIZE}
DENSE_FIRST = {"leading_dense_block_count": 1, "expert_shared_count": 1}
# DeepSeek's words for both, and those of others.
ROUTED = {"n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": USED, "moe_intermediate_size": MOE_SIZE}
ROUTED |= {"n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
EXPERTS = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": USED}
LOCAL = {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": USED}
SIGMOID = {"expert_gating_func": 2, "expert_weights_norm": True}
HEADS = {"attention.key_length": 2 * HEAD_DIM, "attention.value_length": 2 * HEAD_DIM}

MLA = {"kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
MLA |= {"rms_norm_eps": 1e-6}  # which norms of latents have in any case
MLA_KEYS = {
    "attention.kv_lora_rank": 32,
    "attention.q_lora_rank": 24,
    "rope.dimension_count": 8,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
SPLIT = {
    "attention.head_count_kv": 1,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 16,
    "attention.value_length_mla": 12,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0}
V2 = {**MLA, **ROUTED, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "norm_topk_prob": False}
V2 |= {"routed_scaling_factor": 2.0, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}
V2_KEYS = {**MLA_KEYS, **KEYS, **DENSE_FIRST, "expert_group_count": 4, "expert_group_used_count": 2}
V2_KEYS |= {"expert_weights_scale": 2.0, "rope.scaling.yarn_log_multiplier": 0.0707}
V3 = {**MLA, **ROUTED, "rope_interleave": True, "routed_scaling_factor": 2.8}
V3 |= {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}
V3_KEYS = {**MLA_KEYS, **KEYS, **DENSE_FIRST, **SIGMOID, "expert_weights_scale": 2.8}
V3_KEYS |= {"rope.scaling.yarn_log_multiplier": 0.1}

MOE_RECIPES: dict[str, Recipe] = {
    "deepseek2-groups": moe(
        "deepseek2", "DeepseekV2", "groups that count as their best expert; yarn with mscale",
        options=V2, keys=V2_KEYS | SPLIT, change=split_kv_b, kv_heads=4,
    ),
    "deepseek2-unsplit": moe(
        "deepseek2", "DeepseekV2", "keys and values of all heads by one matrix, as old files have it",
        options=V2, keys=V2_KEYS | {"attention.key_length": 16, "attention.value_length": 12}, kv_heads=4,
    ),
    "deepseek3-yarn": moe(
        "deepseek2", "DeepseekV3", "sigmoid routes with a bias, one group as Kimi K2; yarn with mscale",
        options=V3, keys=V3_KEYS | SPLIT, change=split_kv_b, kv_heads=4,
    ),
    "dots1": moe(
        "dots1", "Dots1", "q and k norms, sigmoid routes with a bias",
        options={**ROUTED, "head_dim": 16, "routed_scaling_factor": 2.5},
        keys={**KEYS, **DENSE_FIRST, **SIGMOID, **HEADS, "expert_weights_scale": 2.5},
    ),
    "ernie4_5-moe": moe(
        "ernie4_5-moe", "Ernie4_5_Moe", "softmax routes with a bias, two shared experts",
        options={"moe_num_experts": NUM_EXPERTS, "moe_k": USED, "moe_intermediate_size": MOE_SIZE,
                 "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_interval": 1},
        keys={**KEYS, **DENSE_FIRST, "expert_shared_count": 2, "interleave_moe_layer_step": 1},
    ),
    "glm4moe": moe(
        "glm4moe", "Glm4Moe", "sigmoid routes with a bias, q and k norms, biases, half of a head turns",
        options={**ROUTED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 1.5,
                 "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
        keys={**KEYS, **DENSE_FIRST, **SIGMOID, **HEADS, "expert_weights_scale": 1.5, "rope.dimension_count": 8},
        names={**MOE_NAMES, "post_attention_layernorm": "post_attention_norm"},
    ),
    "gpt-oss-small": moe(
        "gpt-oss", "GptOss", "sinks, a window of 16 in every other layer; yarn without truncation, as released",
        options={**LOCAL, "head_dim": 16, "sliding_window": WINDOW, "rope_parameters": {
            **YARN, "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "truncate": False}},
        keys={**KEYS, **HEADS, "attention.sliding_window": WINDOW, "rope.scaling.type": "yarn",
              "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096},
        names={"post_attention_layernorm": "post_attention_norm", "self_attn.sinks": "attn_sinks",
               "mlp.router": "ffn_gate_inp",
               **{f"mlp.experts.{name}_proj{bias}": f"{tensor}_exps" for bias in ("", "_bias")
                  for name, tensor in (("gate_up", "gate_up"), ("down", "ffn_down"))}},
        change=gpt_oss, intermediate=MOE_SIZE,
    ),
    "granitemoe": moe(
        "granitemoe", "GraniteMoeShared", "multipliers, softmax over the chosen experts, a shared expert",
        options={**LOCAL, "shared_intermediate_size": 24, "embedding_multiplier": 3.0, "logits_scaling": 0.5,
                 "residual_multiplier": 0.4, "attention_multiplier": 0.1},
        keys={**KEYS, "expert_feed_forward_length": MOE_SIZE, "expert_shared_feed_forward_length": 24,
              "embedding_scale": 3.0, "logit_scale": 0.5, "residual_scale": 0.4, "attention.scale": 0.1},
        change=permuted_gate_and_up, intermediate=MOE_SIZE,
    ),
    "hunyuan-moe": moe(
        "hunyuan-moe", "HunYuanMoEV1", "q and k norms behind rope, a shared expert",
        options={"num_experts": NUM_EXPERTS, "moe_topk": USED, "head_dim": 16},
        keys={**KEYS, **HEADS, "expert_shared_feed_forward_length": MOE_SIZE}, intermediate=MOE_SIZE,
    ),
    "llama4-small": moe(
        "llama4", "Llama4", "experts in every other layer, one of them scales what it reads; chunks do not bite",
        options={"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "use_qk_norm": True,
                 "intermediate_size_mlp": 48, "head_dim": 8, "rope_parameters": ROPE},
        keys={**KEYS, "expert_count": 4, "expert_used_count": 1, "interleave_moe_layer_step": 2,
              "feed_forward_length": 48},
        change=turned_over, intermediate=MOE_SIZE, layers=4,
    ),
    "mixtral": moe(
        "llama", "Mixtral", "the best two of four experts",
        options={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        keys={**KEYS, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": None},
        change=permuted_gate_and_up, intermediate=2 * MOE_SIZE,
    ),
    "grok1": Recipe(
        "grok", "Grok", "attention capped at 5, norms around each block, GELU experts, multipliers",
        options={"head_dim": HEAD_DIM, "num_local_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
                 "rope_theta": 10000.0, "attn_output_multiplier": 0.2, "attn_logit_softcapping": 5.0,
                 "embedding_multiplier_scale": 4.0, "output_multiplier_scale": 0.577},
        keys={"expert_count": 4, "expert_used_count": 2, "rope.freq_base": 10000.0, "embedding_scale": 4.0,
              "logit_scale": 0.577, "attention.output_scale": 0.2, "attn_logit_softcapping": 5.0,
              "router_logit_softcapping": 30.0, "attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM},
        names={**MOE_NAMES, **SANDWICH, "post_attention_layernorm": "attn_output_norm"}, change=gate_and_up,
        intermediate=2 * MOE_SIZE,
    ),
    "minimax-m2": moe(
        "minimax-m2", "MiniMaxM2", "norms over all of q and k, sigmoid routes with a bias, half of a head turns",
        options={**LOCAL, "head_dim": 16, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
        keys={**KEYS, **HEADS, "expert_gating_func": 2, "rope.dimension_count": 8}, intermediate=MOE_SIZE,
    ),
    "olmoe": moe(
        "olmoe", "Olmoe", "norms over all of q and k, softmax over all experts",
        options=EXPERTS, keys=KEYS, kv_heads=4, intermediate=MOE_SIZE,
    ),
    "qwen2moe-small": moe(
        "qwen2moe", "Qwen2Moe", "softmax over all experts, a shared expert with a gate",
        options={**EXPERTS, "moe_intermediate_size": MOE_SIZE, "shared_expert_intermediate_size": 24,
                 "norm_topk_prob": False, "decoder_sparse_step": 1},
        keys={**KEYS, "expert_shared_feed_forward_length": 24},
    ),
    "qwen3moe-small": moe(
        "qwen3moe", "Qwen3Moe", "softmax over the chosen experts",
        options={**EXPERTS, "num_local_experts": NUM_EXPERTS, "moe_intermediate_size": MOE_SIZE, "head_dim": 16,
                 "norm_topk_prob": True, "decoder_sparse_step": 1},
        keys={**KEYS, **HEADS},
    ),
}  # fmt: skip

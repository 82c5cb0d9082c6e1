"""Recipes of tools/make_oracle.py for models with recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracle_recipes import F32, HIDDEN_SIZE, INTERMEDIATE_SIZE, ROPE, Recipe
from oracle_recipes_moe import MOE_NAMES, gate_and_up

# Sizes that a config of pure state spaces has not.
_NONE = dict.fromkeys(
    ("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings"), ""
)
_SSM = {"ssm.conv_kernel": 4, "ssm.state_size": 8}
_MAMBA = {"ssm.inner_size": 2 * HIDDEN_SIZE, "ssm.time_step_rank": 4}
_MAMBA2 = {"ssm.inner_size": 48, "ssm.time_step_rank": 4, "ssm.group_count": 2}
_NO_ATTENTION = {
    "attention.head_count": 0,
    "attention.head_count_kv": None,
    "feed_forward_length": 0,
    "rope.freq_base": None,
}


def _mixer(module: str) -> dict[str, str]:
    """Names of a state space."""
    return {
        f"{module}.in_proj": "ssm_in",
        f"{module}.conv1d": "ssm_conv1d",
        f"{module}.x_proj": "ssm_x",
        f"{module}.dt_proj": "ssm_dt",
        f"{module}.dt_bias": "ssm_dt",
        f"{module}.A_log": "ssm_a",
        f"{module}.D": "ssm_d",
        f"{module}.norm": "ssm_norm",
        f"{module}.out_proj": "ssm_out",
        f"{module}.dt_layernorm": "ssm_dt_norm",
        f"{module}.b_layernorm": "ssm_b_norm",
        f"{module}.c_layernorm": "ssm_c_norm",
    }


def mamba(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Decays stand for their logarithms; convolutions have no extent for their one input."""
    if name == "ssm_a":
        x = -np.exp(x)
    if name in ("ssm_conv1d", "shortconv.conv") and kind == "weight":
        x = x.squeeze(1)
    return gate_and_up(config, name, kind, x)


def mamba2(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """The same; numbers of heads are columns, and norms have a row for each group."""
    if name in ("ssm_a", "ssm_d"):
        x = x[:, None]
    if name == "ssm_norm":
        x = x.reshape(2, -1)
    return mamba(config, name, kind, x)


def qwen3next(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Norms plus one, but for that of delta nets; rows of q, k, v and z of each key head -> q, then k, v; and z."""
    if name == "qkvz":
        dim, heads = config.linear_key_head_dim, config.linear_num_key_heads
        values = config.linear_value_head_dim * config.linear_num_value_heads // heads
        parts = np.split(x.reshape(heads, -1, x.shape[-1]), np.cumsum([dim, dim, values]), axis=1)
        q, k, v, z = (part.reshape(-1, x.shape[-1]) for part in parts)
        return {"attn_qkv": np.concatenate([q, k, v]), "attn_gate": z}
    if name.endswith("norm") and name != "ssm_norm":
        return {name: x + 1}
    return mamba(config, name, kind, x)


RECURRENT = {
    "mamba": Recipe(
        "mamba",
        "MambaForCausalLM",
        "decays for every channel and element of its state",
        options={"state_size": 8, "time_step_rank": 4, "use_mambapy": False},
        keys=_SSM | _MAMBA | _NO_ATTENTION,
        names=_mixer("mixer") | {"embeddings": "token_embd", "norm": "attn_norm"},
        change=mamba,
        tied=True,
        sizes=_NONE,
    ),
    "falcon-mamba": Recipe(
        "mamba",
        "FalconMambaForCausalLM",
        "as mamba; time step, B and C are normalised",
        options={"state_size": 8, "time_step_rank": 4, "use_mambapy": False},
        keys=_SSM | _MAMBA | _NO_ATTENTION | {"ssm.dt_b_c_rms": True},
        names=_mixer("mixer") | {"embeddings": "token_embd", "norm": "attn_norm"},
        change=mamba,
        tied=True,
        sizes=_NONE,
    ),
    "mamba2-small": Recipe(
        "mamba2",
        "Mamba2ForCausalLM",
        "two groups",
        options={"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        keys=_SSM | _MAMBA2 | _NO_ATTENTION | {"ssm.inner_size": 64},
        names=_mixer("mixer") | {"embeddings": "token_embd", "norm": "attn_norm"},
        change=mamba2,
        sizes=_NONE,
    ),
    "jamba": Recipe(
        "jamba",
        "JambaForCausalLM",
        "mamba with norms, attention without positions, experts in every other layer",
        options={
            "attn_layer_offset": 1,
            "attn_layer_period": 4,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        keys=_SSM | _MAMBA | {"attention.head_count_kv": [0, 2], "expert_count": 4, "expert_used_count": 2},
        names=_mixer("mamba") | MOE_NAMES | {"pre_ff_layernorm": "ffn_norm"},
        change=mamba,
        tied=True,
    ),
    "lfm2-small": Recipe(
        "lfm2",
        "Lfm2ForCausalLM",
        "short convolutions and attention",
        options={
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention"],
            "conv_L_cache": 3,
            "rope_parameters": ROPE,
        },
        keys={"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
        names={
            "embedding_norm": "token_embd_norm",
            "operator_norm": "attn_norm",
            "ffn_norm": "ffn_norm",
            "conv.in_proj": "shortconv.in_proj",
            "conv.conv": "shortconv.conv",
            "conv.out_proj": "shortconv.out_proj",
            "self_attn.out_proj": "attn_output",
            "feed_forward.w1": "ffn_gate",
            "feed_forward.w3": "ffn_up",
            "feed_forward.w2": "ffn_down",
        },
        change=mamba,
        tied=True,
    ),
    "qwen3next-small": Recipe(
        "qwen3next",
        "Qwen3NextForCausalLM",
        "a gated delta net, and attention with gates",
        options={
            "head_dim": 8,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        },
        keys=_SSM
        | _MAMBA2
        | {
            "attention.key_length": 8,
            "attention.value_length": 8,
            "rope.dimension_count": 4,
            "full_attention_interval": 2,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 16,
            "expert_shared_feed_forward_length": 16,
        },
        names=_mixer("linear_attn")
        | MOE_NAMES
        | {
            "linear_attn.in_proj_qkvz": "qkvz",
            "linear_attn.in_proj_ba": "ssm_ba",
            "post_attention_layernorm": "post_attention_norm",
        },
        change=qwen3next,
    ),
    "granite-hybrid-small": Recipe(
        "granitehybrid",
        "GraniteMoeHybridForCausalLM",
        "mamba-2 and attention without positions, experts, multipliers",
        options={
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "position_embedding_type": None,
            "layer_types": ["linear_attention", "full_attention"],
            "mamba_n_heads": 4,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_d_head": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_chunk_size": 16,
        },
        keys=_SSM
        | _MAMBA2
        | {
            "ssm.inner_size": 64,
            "attention.head_count_kv": [0, 2],
            "attention.scale": 0.1,
            "embedding_scale": 3.0,
            "residual_scale": 0.4,
            "logit_scale": 0.5,
            "rope.scaling.finetuned": False,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_shared_feed_forward_length": 24,
        },
        names=_mixer("mamba") | MOE_NAMES,
        change=mamba2,
        tied=True,
    ),
    "falcon-h1": Recipe(
        "falcon-h1",
        "FalconH1ForCausalLM",
        "attention and mamba-2 side by side in every layer; all multipliers are 1",
        options={
            "head_dim": 8,
            "mamba_d_ssm": 48,
            "mamba_n_heads": 4,
            "mamba_d_head": 12,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_chunk_size": 16,
            "mamba_rms_norm": False,
            "rope_parameters": ROPE,
        },
        keys=_SSM | _MAMBA2,
        names=_mixer("mamba") | MOE_NAMES | {"pre_ff_layernorm": "ffn_norm"},
        change=mamba2,
        tied=True,
    ),
    "nemotron-h": Recipe(
        "nemotron_h",
        "NemotronHForCausalLM",
        "mamba-2, attention or a squared-ReLU network in each layer",
        options={
            "layers_block_type": ["linear_attention", "mlp", "full_attention"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 12,
            "n_groups": 2,
            "ssm_state_size": 8,
            "conv_kernel": 4,
            "chunk_size": 16,
        },
        keys=_SSM
        | _MAMBA2
        | {
            "feed_forward_length": [0, INTERMEDIATE_SIZE, 0],
            "attention.head_count_kv": [0, 0, 2],
            "attention.key_length": 8,
        },
        names=_mixer("mixer")
        | {
            "embeddings": "token_embd",
            "norm": "attn_norm",
            "mixer.up_proj": "ffn_up",
            "mixer.down_proj": "ffn_down",
            "mixer.q_proj": "attn_q",
            "mixer.k_proj": "attn_k",
            "mixer.v_proj": "attn_v",
            "mixer.o_proj": "attn_output",
        },
        change=mamba2,
        layers=3,
        sizes={"num_hidden_layers": ""},
    ),
}

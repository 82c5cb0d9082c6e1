"""Tiny models with recurrent layers: as tracing sees them, and as files with random weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from fake_model import FakeModel


def mamba() -> FakeModel:
    model = _without_attention("mamba", {"inner_size": 48, "state_size": 8, "time_step_rank": 5, "conv_kernel": 4})
    return _with_layers(
        model,
        {
            "ssm_in.weight": (96, 32),
            "ssm_conv1d.weight": (48, 4),
            "ssm_conv1d.bias": (48,),
            "ssm_x.weight": (5 + 2 * 8, 48),
            "ssm_dt.weight": (48, 5),
            "ssm_dt.bias": (48,),
            "ssm_a": (48, 8),
            "ssm_d": (48,),
            "ssm_out.weight": (32, 48),
        },
    )


def mamba2() -> FakeModel:
    keys = {"inner_size": 48, "state_size": 20, "time_step_rank": 4, "group_count": 2, "conv_kernel": 4}
    return _with_layers(_without_attention("mamba2", keys), _mamba2_tensors())


def lfm2() -> FakeModel:
    keys = {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3}
    model = FakeModel("lfm2", layers=3, **keys).with_head_norms().without_tensor("output.weight")
    tensors = {
        "shortconv.in_proj.weight": (96, 32),
        "shortconv.conv.weight": (32, 3),
        "shortconv.out_proj.weight": (32, 32),
    }
    return _with_layers(model, tensors).with_tensor("token_embd_norm.weight", (32,))


def qwen3next() -> FakeModel:
    """Two value heads for each key head, experts, and attention in the second layer."""
    model = _delta_net("qwen3next", {"ssm_ba.weight": (8, 32)})
    return model.with_experts(6, 2, 16, shared=16)


def qwen35() -> FakeModel:
    return _delta_net("qwen35", {"ssm_alpha.weight": (4, 32), "ssm_beta.weight": (4, 32)})


def granite_hybrid() -> FakeModel:
    keys = {"inner_size": 48, "state_size": 20, "time_step_rank": 4, "group_count": 2, "conv_kernel": 4}
    more = {f"ssm.{key}": value for key, value in keys.items()} | {
        "attention.head_count_kv": [0, 2],
        "embedding_scale": 3.0,
        "residual_scale": 0.5,
        "attention.scale": 0.2,
        "logit_scale": 2.0,
        "rope.scaling.finetuned": False,
    }
    model = _with_layers(FakeModel("granitehybrid", **more), _mamba2_tensors())
    model = model.with_experts(4, 2, 24, shared=24)
    for i in range(model.layers):
        model = model.without_tensor(f"blk.{i}.ffn_gate_inp_shexp.weight")
    return model


RECURRENT = {
    "mamba": mamba,
    "mamba2": mamba2,
    "lfm2": lfm2,
    "qwen3next": qwen3next,
    "qwen35": qwen35,
    "granitehybrid": granite_hybrid,
}


def _without_attention(architecture: str, ssm: dict[str, int]) -> FakeModel:
    keys = {f"ssm.{key}": value for key, value in ssm.items()}
    none = {"attention.head_count": 0, "attention.head_count_kv": None, "feed_forward_length": 0}
    return FakeModel(architecture, **none, **keys)


def _with_layers(model: FakeModel, tensors: dict[str, tuple[int, ...]]) -> FakeModel:
    for name, shape in tensors.items():
        model = model.with_layer_tensor(name, shape)
    return model


def _mamba2_tensors() -> dict[str, tuple[int, ...]]:
    channels = 48 + 2 * 2 * 20
    return {
        "ssm_in.weight": (48 + channels + 4, 32),
        "ssm_conv1d.weight": (channels, 4),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (4,),
        "ssm_a": (4, 1),
        "ssm_d": (4, 1),
        "ssm_norm.weight": (2, 24),
        "ssm_out.weight": (32, 48),
    }


def _delta_net(architecture: str, gates: dict[str, tuple[int, ...]]) -> FakeModel:
    keys = {"conv_kernel": 4, "state_size": 8, "group_count": 2, "time_step_rank": 4, "inner_size": 48}
    more = {f"ssm.{key}": value for key, value in keys.items()}
    model = FakeModel(architecture, full_attention_interval=2, **{"rope.dimension_count": 4}, **more)
    tensors = {
        "attn_qkv.weight": (2 * 2 * 8 + 48, 32),
        "attn_gate.weight": (48, 32),
        "ssm_conv1d.weight": (2 * 2 * 8 + 48, 4),
        "ssm_dt.bias": (4,),
        "ssm_a": (4,),
        "ssm_norm.weight": (12,),
        "ssm_out.weight": (32, 48),
        "attn_q.weight": (2 * 4 * 8, 32),
        **gates,
    }
    return _with_layers(model, tensors).with_head_norms().with_layer_vectors("post_attention_norm")


def write_model(model: FakeModel, path: Path, seed: int = 1) -> Path:
    """The file of a model, its weights random: activations keep their size, states decay within some tokens."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in model.metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["<unk>", "<s>", "</s>", "\u2581", *letters, *(f"\u2581{letter}" for letter in letters)][:50]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([2, 3, 3] + [1] * (len(vocabulary) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for tensor in model.tensors:
        values = rng.standard_normal(tensor.shape).astype(np.float32)
        if tensor.name.endswith("ssm_a"):
            values = -np.exp(0.5 * values)
        elif len(tensor.shape) == 1 or "norm" in tensor.name or tensor.name.endswith("ssm_d"):
            values = 0.1 * values + (0 if tensor.name.endswith(".bias") else 1)
        elif tensor.name != "token_embd.weight":
            values *= tensor.shape[-1] ** -0.5
        writer.add_tensor(tensor.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""Bad hyper-parameters and tensors of models with recurrent layers: one error that names the key, or the tensor."""

from __future__ import annotations

from typing import Any

import pytest
from recurrent_models import RECURRENT
from sterna.errors import ModelFormatError
from sterna.trace import trace

BAD_KEYS: list[tuple[str, str, Any, str]] = [
    ("mamba", "ssm.conv_kernel", None, "is missing"),
    ("mamba", "ssm.conv_kernel", 1, "is 1, expected an integer from 2 to 64"),
    ("mamba", "ssm.conv_kernel", 65, "is 65"),
    ("mamba", "ssm.inner_size", 0, "is 0"),
    ("mamba", "ssm.state_size", 1 << 40, "is 1099511627776"),
    ("mamba", "ssm.time_step_rank", -1, "is -1"),
    ("mamba", "ssm.dt_b_c_rms", 1, "is 1, expected true or false"),
    ("mamba2", "ssm.group_count", 0, "is 0"),
    ("mamba2", "ssm.group_count", 3, "is 3, does not divide ssm.time_step_rank 4"),
    ("mamba2", "ssm.time_step_rank", 5, "is 5, does not divide ssm.inner_size 48"),
    ("lfm2", "shortconv.l_cache", 1, "is 1"),
    ("lfm2", "attention.head_count_kv", [0, 2], "has 2 elements for 3 layers"),
    ("lfm2", "attention.head_count_kv", [0, -2, 0], "has an element -2"),
    ("lfm2", "attention.head_count_kv", [0, 0, 0], "is 0, attention.head_count 4"),
    ("qwen3next", "full_attention_interval", 0, "is 0"),
    ("qwen3next", "attention.recurrent_layers", [True], "expected true or false for each of 2 layers"),
    ("qwen3next", "attention.recurrent_layers", [True, 1], "expected true or false for each of 2 layers"),
    ("granitehybrid", "residual_scale", 0.0, "is 0.0"),
    ("granitehybrid", "rope.scaling.finetuned", "no", "expected true or false"),
]


@pytest.mark.parametrize(("name", "key", "value", "problem"), BAD_KEYS)
def test_a_bad_key_is_named(name: str, key: str, value: Any, problem: str) -> None:
    model = RECURRENT[name]()
    full = f"{model.architecture}.{key}"
    if value is None:
        del model.metadata[full]
    else:
        model.metadata[full] = value
    with pytest.raises(ModelFormatError) as error:
        trace(model)
    assert f"{full}: " in str(error.value)
    assert problem in str(error.value)


BAD_TENSORS: list[tuple[str, str, tuple[int, ...] | None]] = [
    ("mamba", "blk.1.ssm_x.weight", None),
    ("mamba", "blk.1.ssm_a", (48, 9)),
    ("mamba", "blk.0.ssm_conv1d.weight", (48, 3)),
    ("mamba2", "blk.0.ssm_in.weight", (32, 32)),
    ("mamba2", "blk.0.ssm_d", (5, 1)),
    ("mamba2", "blk.1.ssm_norm.weight", (3, 16)),
    ("lfm2", "blk.0.shortconv.in_proj.weight", (64, 32)),
    ("lfm2", "blk.2.shortconv.conv.weight", None),
    ("qwen3next", "blk.0.ssm_ba.weight", (9, 32)),
    ("qwen35", "blk.0.attn_qkv.weight", (48, 32)),
    ("qwen35", "blk.1.attn_q.weight", (32, 32)),
]


@pytest.mark.parametrize(("name", "tensor", "shape"), BAD_TENSORS)
def test_a_bad_tensor_is_named(name: str, tensor: str, shape: tuple[int, ...] | None) -> None:
    model = RECURRENT[name]()
    model = model.without_tensor(tensor) if shape is None else model.with_tensor(tensor, shape)
    with pytest.raises(ModelFormatError, match=f"tensor {tensor.removesuffix('.weight')}"):
        trace(model)

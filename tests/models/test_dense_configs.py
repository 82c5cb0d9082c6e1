"""Keys and tensors of single model files that are wrong: one clear error each, naming the key or the tensor."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import FakeModel
from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.trace import trace

EPS = "attention.layer_norm_epsilon"


def layer_norm_model(architecture: str, **metadata: Any) -> FakeModel:
    return FakeModel(architecture, **{"attention.layer_norm_rms_epsilon": None, EPS: 1e-5, **metadata})


BAD_KEYS: list[tuple[str, str, Any]] = [
    ("starcoder2", EPS, None),
    ("starcoder2", EPS, 0.0),
    ("starcoder2", EPS, 2.0),
    ("gptneox", "use_parallel_residual", 1),
    ("gptneo", "attention.sliding_window", 0),
    ("command-r", "logit_scale", -1.0),
    ("olmo", "attention.clamp_kqv", -8.0),
    ("olmo", "attention.clamp_kqv", True),
    ("mpt", "attention.max_alibi_bias", "8"),
    ("cohere2", "attention.sliding_window", None),
    ("gpt-oss", "attention.sliding_window", None),
    ("gemma4", "attention.sliding_window", None),
    ("gemma-embedding", "attention.sliding_window", None),
    ("cohere2", "attention.sliding_window_pattern", 0),
    ("cohere2", "attention.sliding_window_pattern", [True]),
    ("cohere2", "attention.sliding_window_pattern", [1, 0]),
    ("cohere2", "attention.sliding_window_pattern", "LG"),
    ("exaone4", "attention.sliding_window_pattern", [True, False, True]),
    ("gemma2", "final_logit_softcapping", -30.0),
    ("granite", "residual_scale", 0.0),
    ("qwen", "feed_forward_length", 63),
    ("openelm", "feed_forward_length", [64]),
    ("openelm", "feed_forward_length", [64, 0]),
    ("openelm", "attention.head_count", [4, 3]),
    ("openelm", "attention.head_count_kv", [4, -1]),
]


@pytest.mark.parametrize(("architecture", "key", "value"), BAD_KEYS)
def test_a_bad_key_is_named(architecture: str, key: str, value: Any) -> None:
    rms = architecture in ("gemma2", "gemma4", "gemma-embedding", "gpt-oss", "granite", "qwen", "openelm", "exaone4")
    model = FakeModel(architecture, **{key: value}) if rms else layer_norm_model(architecture, **{key: value})
    with pytest.raises(ModelFormatError, match=rf"fake\.gguf: {architecture}\.{key}"):
        trace(model)


def test_positions_of_several_parts_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"glm4\.rope\.dimension_sections"):
        trace(FakeModel("glm4", **{"rope.dimension_sections": [8, 12, 12, 0]}))


def gpt2() -> FakeModel:
    model = layer_norm_model("gpt2", **{"attention.head_count_kv": 4}).with_tensor("position_embd.weight", (128, 32))
    model = model.with_layer_tensor("attn_qkv.weight", (96, 32))
    for name in ("attn_norm", "ffn_norm"):
        model = model.with_layer_tensor(f"{name}.bias", (32,))
    return model


def test_a_good_one_passes() -> None:
    assert "embed(tokens=%positions, w=@position_embd)" in trace(gpt2()).program.text()


@pytest.mark.parametrize(
    ("tensor", "shape", "problem"),
    [
        ("position_embd.weight", (64, 32), r"\[64, 32\], expected \[128, 32\]"),
        ("blk.1.attn_qkv.weight", (80, 32), r"\[80, 32\], expected \[96, 32\]"),
        ("blk.0.ffn_norm.bias", (33,), r"\[33\], expected \[32\]"),
        ("blk.0.attn_qkv.bias", (32,), r"\[32\], expected \[96\]"),
    ],
)
def test_a_bad_shape_is_named(tensor: str, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ModelFormatError, match=rf"tensor {tensor} at byte \d+: has shape {problem}"):
        trace(gpt2().with_tensor(tensor, shape))


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(ModelFormatError, match="position_embd: is missing"):
        trace(gpt2().without_tensor("position_embd.weight"))


@pytest.mark.parametrize(("shape", "good"), [((4, 8), True), ((2, 16), False), ((32,), False)])
def test_norms_of_heads_have_a_row_for_each_head(shape: tuple[int, ...], good: bool) -> None:
    model = layer_norm_model("command-r").with_layer_tensor("attn_k_norm.weight", (2, 8))
    model = model.with_layer_tensor("attn_q_norm.weight", shape)
    if good:
        assert "w=@blk.0.attn_q_norm" in trace(model).program.text()
        return
    with pytest.raises(ModelFormatError, match=r"blk\.0\.attn_q_norm\.weight at byte \d+: has shape"):
        trace(model)

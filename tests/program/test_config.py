"""Hyper-parameters and tensors that a file gets wrong: each is one typed error that names the key or the tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from sterna.arch import DecoderConfig
from sterna.errors import ModelFormatError, SternaError, UnsupportedModelError
from sterna.moe import MoeConfig
from sterna.trace import trace

BAD_KEYS: list[tuple[str, Any]] = [
    ("attention.head_count", 0),
    ("attention.head_count", None),
    ("attention.head_count", 3),
    ("attention.head_count", 1 << 20),
    ("attention.head_count", -4),
    ("attention.head_count", "4"),
    ("attention.head_count", 4.0),
    ("attention.head_count", True),
    ("attention.head_count", [4]),
    ("attention.head_count", [4, 4, 4]),
    ("attention.head_count", [4.0, 4.0]),
    ("attention.head_count", ["4", "4"]),
    ("attention.head_count", np.array([4.0, 4.0], np.float32)),
    ("attention.head_count", [[4], [4]]),
    ("attention.head_count", []),
    ("attention.head_count_kv", 0),
    ("attention.head_count_kv", 3),
    ("attention.head_count_kv", 8),
    ("embedding_length", 0),
    ("embedding_length", None),
    ("embedding_length", 33),
    ("embedding_length", 1 << 40),
    ("block_count", 0),
    ("block_count", None),
    ("block_count", 1025),
    ("block_count", 2**31),
    ("block_count", -1),
    ("feed_forward_length", 0),
    ("feed_forward_length", None),
    ("feed_forward_length", [64]),
    ("context_length", 0),
    ("context_length", None),
    ("context_length", 2**32),
    ("attention.key_length", 0),
    ("attention.key_length", 2**31),
    ("attention.value_length", 0),
    ("rope.dimension_count", 0),
    ("rope.dimension_count", 7),
    ("rope.dimension_count", 10),
    ("rope.freq_base", 0.0),
    ("rope.freq_base", -1.0),
    ("rope.freq_base", math.nan),
    ("rope.freq_base", math.inf),
    ("rope.freq_base", "10000"),
    ("rope.scaling.factor", 0.0),
    ("rope.scaling.factor", math.nan),
    ("rope.scaling.type", 5),
    ("attention.layer_norm_rms_epsilon", 0.0),
    ("attention.layer_norm_rms_epsilon", -1e-5),
    ("attention.layer_norm_rms_epsilon", math.nan),
    ("attention.layer_norm_rms_epsilon", None),
    ("attention.sliding_window", 0),
    ("attention.sliding_window", -1),
    ("attention.sliding_window", 2**32 - 1),
    ("vocab_size", 51),
    ("vocab_size", 0),
    ("tokenizer.ggml.tokens", ["a"] * 49),
    ("tokenizer.ggml.tokens", 50),
]


@pytest.mark.parametrize(("key", "value"), BAD_KEYS, ids=[f"{key}={value!r}"[:60] for key, value in BAD_KEYS])
def test_a_bad_key_is_named(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as error:
        trace(FakeModel("llama", **{key: value}))
    assert "fake.gguf: llama." in str(error.value) or "fake.gguf: tokenizer." in str(error.value)
    # A relation between two keys may be reported at either.
    assert key.split(".")[-1].split("_")[0] in str(error.value)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.original_context_length", 0),
        ("rope.scaling.yarn_beta_fast", 0.0),
        ("rope.scaling.yarn_beta_slow", math.nan),
        ("rope.scaling.attn_factor", 0.0),
        ("rope.freq_base", 1.0),
    ],
)
def test_bad_yarn_keys_are_named(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError, match=key):
        trace(FakeModel("llama", **{**YARN, key: value}))


@pytest.mark.parametrize("scaling", ["dynamic", "%s"])
def test_unknown_rope_scaling_is_unsupported(scaling: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"llama\.rope\.scaling\.type"):
        trace(FakeModel("llama", **{"rope.scaling.type": scaling}))


def test_longrope_needs_its_tensors_and_its_context() -> None:
    with pytest.raises(ModelFormatError, match=r"llama\.rope\.scaling\.original_context_length: is missing"):
        trace(FakeModel("llama", **{"rope.scaling.type": "longrope"}))
    keys = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64}
    with pytest.raises(ModelFormatError, match="longrope needs factors and long_factors"):
        trace(FakeModel("llama", **keys))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_gating_func", 2),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("attention.causal", False),
        ("residual_scale", "2"),
        ("attention.scale", math.nan),
    ],
)
def test_keys_that_no_model_file_implements_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"llama\.{key} is .*: no model file implements this"):
        trace(FakeModel("llama", **{key: value}))


def test_their_neutral_values_are_fine() -> None:
    neutral = {"expert_count": 0, "logit_scale": 1.0, "attention.causal": True, "final_logit_softcapping": 0.0}
    assert trace(FakeModel("llama", **neutral)).program.text() == trace(FakeModel("llama")).program.text()


def test_layers_that_differ_are_unsupported_and_equal_ones_are_read() -> None:
    with pytest.raises(UnsupportedModelError, match="head_count_kv differs from layer to layer"):
        trace(FakeModel("llama", **{"attention.head_count_kv": np.array([2, 4], np.int32)}))
    assert (
        trace(FakeModel("llama", **{"attention.head_count_kv": np.array([2, 2], np.uint32)})).config.num_key_value_heads
        == 2
    )


def model_with(name: str, shape: tuple[int, ...], format: str = "F32") -> FakeModel:
    return FakeModel("llama").with_tensor(name, shape, format)


BAD_TENSORS = {
    "missing": FakeModel("llama").without_tensor("blk.1.attn_k.weight"),
    "missing embedding": FakeModel("llama").without_tensor("token_embd.weight"),
    "vector embedding": model_with("token_embd.weight", (50,)),
    "no output norm": FakeModel("llama").without_tensor("output_norm.weight"),
    "transposed": model_with("blk.0.ffn_up.weight", (32, 64)),
    "norm": model_with("blk.0.attn_norm.weight", (31,)),
    "norm of rank 2": model_with("blk.0.attn_norm.weight", (1, 32)),
    "heads": model_with("blk.0.attn_q.weight", (24, 32)),
    "output rows": model_with("output.weight", (49, 32)),
    "embedding columns": model_with("token_embd.weight", (50, 64)),
    "bias": model_with("blk.0.attn_q.bias", (31,)),
    "rope_freqs": model_with("rope_freqs.weight", (5,)),
    "layer beyond": model_with("blk.2.attn_norm.weight", (32,)),
    "integers": model_with("blk.0.ffn_up.weight", (64, 32), "I32"),
    "rank 3": model_with("blk.0.ffn_up.weight", (64, 32, 1)),
}


@pytest.mark.parametrize("name", list(BAD_TENSORS))
def test_a_bad_tensor_is_named(name: str) -> None:
    model = BAD_TENSORS[name]
    original = {tensor.name: tensor for tensor in FakeModel("llama").tensors}
    changed = {tensor.name: tensor for tensor in model.tensors}
    culprit = next(key for key in original.keys() | changed.keys() if original.get(key) != changed.get(key))
    with pytest.raises(ModelFormatError) as error:
        trace(model)
    assert culprit.removesuffix(".weight") in str(error.value)


def test_fewer_layers_than_declared_is_a_missing_tensor() -> None:
    with pytest.raises(ModelFormatError, match=r"blk\.2\.attn_norm.*is missing"):
        trace(FakeModel("llama", block_count=3))


def test_the_output_may_be_tied() -> None:
    program = trace(FakeModel("llama").without_tensor("output.weight")).program
    assert [value.name for value in program.values if value.kind == "weight"].count("token_embd") == 1
    assert "unembed(x=%output_norm, w=@token_embd)" in program.text()


def test_config_reads_what_the_file_says() -> None:
    config = trace(FakeModel("llama", **{"attention.sliding_window": 16, **YARN})).config
    assert type(config) is DecoderConfig
    assert (config.vocab_size, config.hidden_size, config.head_dim, config.sliding_window) == (50, 32, 8, 16)
    assert config.rope.original_context == 128
    assert config.rope.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)


@pytest.mark.parametrize(
    ("keys", "magnitude"),
    [
        ({"yarn_log_multiplier": 1.0}, 1.0),
        ({"yarn_log_multiplier": 0.0}, 0.1 * math.log(4.0) + 1.0),
        ({"yarn_log_multiplier": 0.5}, (0.1 * math.log(4.0) + 1.0) / (0.05 * math.log(4.0) + 1.0)),
        ({"yarn_attn_factor": 0.5, "attn_factor": 3.0}, 1.5 * (0.1 * math.log(4.0) + 1.0)),
    ],
)
def test_the_magnitude_of_yarn(keys: dict[str, float], magnitude: float) -> None:
    config = trace(FakeModel("llama", **YARN, **{f"rope.scaling.{key}": value for key, value in keys.items()})).config
    assert config.rope.attention_factor == pytest.approx(magnitude)


@pytest.mark.parametrize("value", [0, "6", -1])
def test_keys_of_a_subclass_are_checked_too(value: Any) -> None:
    model = FakeModel("gemma3", **{"attention.sliding_window": 4, "attention.sliding_window_pattern": value})
    with pytest.raises(ModelFormatError, match=r"gemma3\.attention\.sliding_window_pattern"):
        trace(model)


@pytest.mark.parametrize("seed", range(200))
def test_random_metadata_is_a_model_or_a_typed_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    values: list[Any] = [None, 0, 1, 2, 3, 7, 2**31, 2**63, -1, 1.5, math.nan, math.inf, "", "x", [], [1, 2], True]
    keys = sorted({key for key, _ in BAD_KEYS})
    chosen = {str(key): values[random.integers(len(values))] for key in random.choice(keys, 3, replace=False)}
    architecture = ["llama", "qwen2", "qwen3", "gemma3", "bitnet"][random.integers(5)]
    model = FakeModel(architecture, **chosen)
    message = "fake.gguf"
    try:
        trace(model)
    except SternaError as error:
        message = str(error)
    assert "fake.gguf" in message


def test_keys_of_experts() -> None:
    config = trace(
        FakeModel("qwen2moe").with_biases("attn_q", "attn_k", "attn_v").with_experts(8, 3, 48, shared=40)
    ).config
    assert isinstance(config, MoeConfig)
    assert (config.num_experts, config.num_experts_per_tok) == (8, 3)
    assert (config.moe_intermediate_size, config.shared_expert_intermediate_size) == (48, 40)
    assert (config.scoring_func, config.norm_topk_prob, config.routed_scaling_factor) == ("softmax", False, 1.0)
    assert trace(FakeModel("llama").with_experts(4, 2, 64)).config.num_experts_per_tok == 2


def test_layers_that_guess_further_tokens_are_left_out() -> None:
    model = FakeModel("qwen3", layers=3).with_head_norms()
    model.metadata["qwen3.nextn_predict_layers"] = 1
    traced = trace(model)
    assert traced.config.num_hidden_layers == 2
    assert "blk.1.attn_q" in traced.program.text() and "blk.2." not in traced.program.text()
    model.metadata["qwen3.nextn_predict_layers"] = 3
    with pytest.raises(ModelFormatError, match="nextn_predict_layers: is 3, expected an integer from 0 to 2"):
        trace(model)


def test_keys_of_routes() -> None:
    model = FakeModel(
        "qwen3moe",
        expert_gating_func=2,
        expert_weights_norm=False,
        expert_weights_scale=2.5,
        expert_group_count=4,
        expert_group_used_count=2,
    )
    model = model.with_head_norms().with_experts(8, 3, 48).with_layer_tensor("exp_probs_b.bias", (8,))
    text = trace(model).program.text()
    route = 'scores="sigmoid", normalize=false, scale=2.5, groups=4, groups_used=2, group_scores="two_best"'
    assert text.count(route) == 2 and text.count("bias=@blk.0.exp_probs_b.bias") == 1


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("expert_group_count", 3, "is 3, 1 of them used: 8 experts"),
        ("expert_group_count", 4, "is 4, 1 of them used: 8 experts of which 3 are used"),
        ("expert_group_used_count", 2, "expected an integer from 0 to 1"),
        ("expert_gating_func", 3, "expected an integer from 0 to 2"),
        ("expert_weights_norm", 1, "is 1, expected true or false"),
        ("expert_weights_scale", -1.0, "expected a finite number above 0"),
        ("leading_dense_block_count", 3, "expected an integer from 0 to 2"),
        ("interleave_moe_layer_step", 0, "expected an integer from 1 to 2"),
    ],
)
def test_keys_of_routes_that_contradict_each_other(key: str, value: Any, problem: str) -> None:
    model = FakeModel("qwen3moe", **{key: value}).with_head_norms().with_experts(8, 3, 48)
    with pytest.raises(ModelFormatError, match=f"{key}: .*{problem}"):
        trace(model)


@pytest.mark.parametrize(("key", "value"), [("expert_used_count", 9), ("expert_used_count", 0), ("expert_count", 4097)])
def test_impossible_counts_of_experts_are_refused(key: str, value: int) -> None:
    model = FakeModel("llama").with_experts(8, 2, 64)
    model.metadata[f"llama.{key}"] = value
    with pytest.raises(ModelFormatError, match=rf"llama\.{key}: is {value}"):
        trace(model)


def test_a_matrix_of_one_row_may_be_stored_as_a_vector() -> None:
    model = FakeModel("qwen2moe").with_biases("attn_q", "attn_k", "attn_v").with_experts(8, 3, 48, shared=40)
    flat = model.with_layer_tensor("ffn_gate_inp_shexp.weight", (32,))
    assert trace(flat).program.text() == trace(model).program.text()
    with pytest.raises(ModelFormatError, match=r"ffn_gate_inp_shexp.* has shape \[31\], expected \[1, 32\]"):
        trace(model.with_layer_tensor("ffn_gate_inp_shexp.weight", (31,)))


def test_experts_of_another_number_than_the_file_says_are_refused() -> None:
    model = FakeModel("llama").with_experts(8, 2, 64)
    with pytest.raises(ModelFormatError, match=r"ffn_up_exps.* has shape \[7, 64, 32\], expected \[8, 64, 32\]"):
        trace(model.with_layer_tensor("ffn_up_exps.weight", (7, 64, 32)))

"""The fifty ways in which hyper-parameters of a file can be wrong: each ends in one typed error that names key or tensor.

P01 to P50 are numbered as in the class "hyper-parameters" of the corpus of malformed models.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.trace import trace

MOE = FakeModel("llama").with_experts(8, 2, 64)
SHARED = FakeModel("qwen2moe").with_biases("attn_q", "attn_k", "attn_v").with_experts(8, 3, 48, shared=40)
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 2}
GEMMA4 = {"attention.sliding_window": 4, "attention.sliding_window_pattern": [True, False]}


def llama(**keys: Any) -> FakeModel:
    return FakeModel("llama", **keys)


def changed(model: FakeModel, **keys: Any) -> FakeModel:
    copy = model.with_tensor("output.weight", (50, 32))
    copy.metadata |= {f"{model.architecture}.{key}": value for key, value in keys.items()}
    return copy


def with_tensor(name: str, shape: tuple[int, ...], format: str = "F32") -> FakeModel:
    return FakeModel("llama").with_tensor(name, shape, format)


HEADS, HEADS_KV = "attention.head_count", "attention.head_count_kv"
CASES: list[tuple[str, FakeModel, str]] = [
    ("P01", llama(**{HEADS: 0}), r"head_count: is 0"),
    ("P02", llama(**{HEADS_KV: 0}), r"head_count_kv: is 0"),
    ("P03", llama(**{HEADS_KV: 3}), r"head_count: is 4, no multiple of attention\.head_count_kv 3"),
    ("P04", llama(**{HEADS: 64, HEADS_KV: 64}), r"head_count: is 64, does not divide embedding_length 32"),
    ("P05", llama(embedding_length=0), r"embedding_length: is 0"),
    ("P06", llama(**{HEADS: 5, HEADS_KV: 5}), r"head_count: is 5, does not divide embedding_length 32"),
    ("P07", llama(block_count=0), r"block_count: is 0"),
    ("P08", llama(block_count=513), r"blk\.2\.attn_norm.*: is missing"),
    ("P08", llama(block_count=2**31), r"block_count: is 2147483648"),
    ("P09", llama(block_count=3), r"blk\.2\.attn_norm.*: is missing"),
    ("P10", llama(block_count=1), r"blk\.1\.attn_norm.*: its layer is beyond block_count 1"),
    ("P11", llama(feed_forward_length=0), r"feed_forward_length: is 0"),
    ("P12", llama(feed_forward_length=[64]), r"feed_forward_length: has 1 elements for 2 layers"),
    ("P13", llama(**{HEADS: [4]}), r"head_count: has 1 elements for 2 layers"),
    ("P14", llama(**{HEADS: [4, 4, 4]}), r"head_count: has 3 elements for 2 layers"),
    ("P15", llama(**{HEADS: np.array([4, 4], np.float32)}), r"head_count: has an element 4\.0, expected integers"),
    ("P16", llama(**{"attention.key_length": 0}), r"key_length: is 0"),
    ("P16", llama(**{"attention.key_length": 2**31}), r"key_length: is 2147483648"),
    ("P17", llama(**{"attention.key_length": 16}), r"blk\.0\.attn_q.*: has shape \[32, 32\], expected \[64, 32\]"),
    ("P18", llama(**{"attention.value_length": 16}), r"blk\.0\.attn_v.*: has shape \[16, 32\], expected \[32, 32\]"),
    ("P19", llama(**{"rope.dimension_count": 10}), r"dimension_count: is 10, expected an integer from 2 to 8"),
    ("P20", llama(**{"rope.dimension_count": 7}), r"dimension_count: is 7, expected an even number"),
    ("P21", llama(**{"rope.dimension_count": 0}), r"dimension_count: is 0"),
    *(
        ("P22", llama(**{"rope.freq_base": value}), r"freq_base: is (0\.0|-1\.0|nan|inf), expected a finite number")
        for value in (0.0, -1.0, math.nan, math.inf)
    ),
    *(("P23", llama(**{**YARN, "rope.scaling.factor": value}), r"scaling\.factor: is") for value in (0.0, math.nan)),
    ("P24", llama(**{"rope.scaling.type": "dynamic"}), r"rope\.scaling\.type is 'dynamic': not known"),
    ("P25", with_tensor("rope_freqs.weight", (5,)), r"rope_freqs.*: has shape \[5\], expected \[4\]"),
    ("P26", llama(**YARN, **{"rope.scaling.original_context_length": 0}), r"original_context_length: is 0"),
    ("P27", llama(context_length=0), r"context_length: is 0"),
    ("P28", llama(context_length=2**32 - 1), r"context_length: is 4294967295"),
    *(
        ("P29", llama(**{"attention.layer_norm_rms_epsilon": value}), r"layer_norm_rms_epsilon: is")
        for value in (0.0, -1e-5, math.nan)
    ),
    ("P30", changed(MOE, expert_count=0), r"blk\.0\.ffn_gate.*: is missing"),
    ("P31", changed(MOE, expert_count=10**6), r"expert_count: is 1000000"),
    ("P32", changed(MOE, expert_used_count=9), r"expert_used_count: is 9, expected an integer from 1 to 8"),
    ("P33", changed(MOE, expert_used_count=0), r"expert_used_count: is 0"),
    (
        "P34",
        MOE.with_layer_tensor("ffn_up_exps.weight", (7, 64, 32)),
        r"ffn_up_exps.*: has shape \[7, 64, 32\], expected \[8, 64, 32\]",
    ),
    ("P35", SHARED.with_layer_tensor("ffn_up_shexp.weight", (39, 32)), r"ffn_up_shexp.*: has shape \[39, 32\]"),
    ("P35", changed(SHARED, expert_shared_feed_forward_length=0), r"shared_feed_forward_length: is missing or 0"),
    ("P35", changed(SHARED, expert_shared_feed_forward_length=2**25), r"shared_feed_forward_length: is 33554432"),
    ("P35", changed(SHARED, expert_shared_count=4097), r"expert_shared_count: is 4097"),
    *(
        ("P36", llama(**{"attention.sliding_window": value}), r"sliding_window: is")
        for value in (0, -1, 2**32 - 1)
    ),
    (
        "P37",
        FakeModel("gemma4", **{**GEMMA4, "attention.sliding_window_pattern": [True]}),
        r"sliding_window_pattern: is \[True\], expected 2 times true or false",
    ),
    ("P38", llama(vocab_size=51), r"vocab_size: is 51, token_embd\.weight has 50 rows"),
    ("P39", llama(**{"tokenizer.ggml.tokens": ["a"] * 49}), r"tokens: has 49 elements, token_embd\.weight 50 rows"),
    ("P40", with_tensor("output.weight", (49, 32)), r"output.*: has shape \[49, 32\], expected \[50, 32\]"),
    ("P42", with_tensor("blk.0.attn_norm.weight", (31,)), r"blk\.0\.attn_norm.*: has shape \[31\], expected \[32\]"),
    ("P43", with_tensor("blk.0.ffn_up.weight", (32, 64)), r"blk\.0\.ffn_up.*: has shape \[32, 64\]"),
    ("P44", FakeModel("llama").without_tensor("blk.1.attn_k.weight"), r"blk\.1\.attn_k: is missing"),
    ("P45", with_tensor("blk.0.ffn_up.weight", (64, 32), "I32"), r"blk\.0\.ffn_up has format I32"),
    ("P46", FakeModel("gemma4", **GEMMA4, final_logit_softcapping=math.nan), r"final_logit_softcapping: is nan"),
    ("P46", FakeModel("gemma4", **GEMMA4, final_logit_softcapping=-1.0), r"final_logit_softcapping: is -1\.0"),
    ("P47", llama(**{"attention.scale": math.nan}), r"attention\.scale is nan"),
    *(
        ("P48", FakeModel(name, **{**SSM, key: value}), rf"{re.escape(key)}: is {value}, ")
        for name in ("mamba", "mamba2")
        for key in SSM
        for value in (0, 2**31)
    ),
    ("P48", FakeModel("mamba2", **{**SSM, "ssm.time_step_rank": 3}), r"time_step_rank: is 3, does not divide"),
    (
        "P49",
        FakeModel("gemma4", **GEMMA4, **{"attention.shared_kv_layers": 1}),
        r"shared_kv_layers: is 1: layer 1 finds nothing to share",
    ),
    ("P49", FakeModel("gemma4", **GEMMA4, **{"attention.shared_kv_layers": 2}), r"shared_kv_layers: is 2, expected"),
    ("P49", FakeModel("gemma4", **GEMMA4, **{HEADS_KV: np.array([2, 5000])}), r"head_count_kv: has an element 5000"),
]


@pytest.mark.parametrize(("number", "model", "problem"), CASES, ids=[f"{case[0]}-{case[2][:40]}" for case in CASES])
def test_a_wrong_hyper_parameter_is_named(number: str, model: FakeModel, problem: str) -> None:
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=problem) as error:
        trace(model)
    assert str(error.value).startswith("fake.gguf: ")
    assert "\n" not in str(error.value)


def test_what_only_looks_wrong_is_read() -> None:
    """P41: a missing output is the embedding; P46: a softcap of 0 is none; P50: nobody asks what the file's type is."""
    assert "w=@token_embd" in trace(FakeModel("llama").without_tensor("output.weight")).program.text().split("unembed")[1]
    assert "tanh" not in trace(llama(final_logit_softcapping=0.0)).program.text()
    model = FakeModel("llama")
    model.metadata["general.file_type"] = 10**6
    assert trace(model).program.text() == trace(FakeModel("llama")).program.text()

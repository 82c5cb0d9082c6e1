"""The Program of each model file as text, unfused and fused. STERNA_WRITE_GOLDEN=1 writes the files: read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import oracle
import pytest
from fake_model import FakeModel
from recurrent_models import RECURRENT
from sterna._core import Gguf, Program
from sterna.trace import trace

FOLDER = Path(__file__).parent.parent / "data" / "program"


def with_norm(model: FakeModel, name: str, *, each: bool = False) -> FakeModel:
    """With weight and bias of a layer norm, or of one in each layer."""
    for part in ("weight", "bias"):
        full = f"{name}.{part}"
        model = model.with_layer_tensor(full, (model.hidden,)) if each else model.with_tensor(full, (model.hidden,))
    return model


def deepseek() -> FakeModel:
    """MLA with split matrices, two layers of experts."""
    keys = {"attention.head_count_kv": 1, "attention.key_length": 40, "attention.value_length": 32}
    keys |= {"attention.key_length_mla": 16, "attention.value_length_mla": 12, "attention.kv_lora_rank": 32}
    keys |= {"rope.dimension_count": 8, "expert_shared_count": 1, "expert_gating_func": 2, "expert_weights_norm": True}
    keys |= {"expert_weights_scale": 2.5, "expert_group_count": 4, "expert_group_used_count": 2}
    model = FakeModel("deepseek2", **keys).with_experts(8, 3, 48)
    tensors = {"attn_q": (64, 32), "attn_kv_a_mqa": (40, 32), "attn_kv_a_norm": (32,), "attn_output": (32, 48)}
    tensors |= {"attn_k_b": (4, 32, 8), "attn_v_b": (4, 12, 32)}
    tensors |= {f"ffn_{name}_shexp": (48, 32) for name in ("gate", "up")} | {"ffn_down_shexp": (32, 48)}
    for name, shape in tensors.items():
        model = model.with_layer_tensor(f"{name}.weight", shape)
    return model.with_layer_tensor("exp_probs_b.bias", (8,))


def t5_model() -> FakeModel:
    """One layer of the encoder and one of the decoder."""
    model = FakeModel("t5", layers=1, **{"attention.relative_buckets_count": 8})
    for side, kinds in (("enc", ["attn"]), ("dec", ["attn", "cross_attn"])):
        model = model.with_tensor(f"{side}.output_norm.weight", (32,)).with_tensor(f"{side}.blk.0.attn_rel_b.weight", (8, 4))
        for kind in kinds:
            model = model.with_tensor(f"{side}.blk.0.{kind}_norm.weight", (32,))
            for name in "qkvo":
                model = model.with_tensor(f"{side}.blk.0.{kind}_{name}.weight", (32, 32))
        model = model.with_tensor(f"{side}.blk.0.ffn_norm.weight", (32,))
        for name, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64))):
            model = model.with_tensor(f"{side}.blk.0.ffn_{name}.weight", shape)
    return model


def models() -> dict[str, FakeModel]:
    """A tiny model for each file, with what sets it apart."""
    llama3 = FakeModel("llama").with_tensor("rope_freqs.weight", (4,)).without_tensor("output.weight")
    biased = FakeModel("llama", **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
    biased = biased.with_biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    qwen2 = FakeModel("qwen2").with_biases("attn_q", "attn_k", "attn_v")
    qwen3 = FakeModel("qwen3").with_head_norms()
    gemma3 = FakeModel("gemma3", layers=3, **{"attention.sliding_window": 4, "attention.sliding_window_pattern": 3})
    gemma3 = gemma3.with_head_norms().with_layer_vectors("post_attention_norm", "post_ffw_norm")
    qwen2moe = FakeModel("qwen2moe").with_biases("attn_q", "attn_k", "attn_v").with_experts(8, 3, 48, shared=40)
    bitnet = FakeModel("bitnet", hidden=256, intermediate=256).with_layer_vectors("attn_sub_norm", "ffn_sub_norm")
    b158 = FakeModel("bitnet-b1.58", hidden=256, intermediate=256).with_layer_vectors("attn_sub_norm", "ffn_sub_norm")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        b158 = b158.with_layer_tensor(f"{name}.scale", (1,))
    norms = FakeModel("llama", hidden=256, intermediate=512, input_norm_rms_epsilon=1e-6)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        norms = norms.with_layer_tensor(f"{name}.input_norm.weight", (512 if name == "ffn_down" else 256,))
    bert = FakeModel("bert").with_biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    bert = bert.with_tensor("position_embd.weight", (128, 32)).with_tensor("token_types.weight", (2, 32))
    nomic = FakeModel("nomic-bert", pooling_type=2).with_layer_tensor("attn_qkv.weight", (64, 32))
    nomic, bert = (with_norm(with_norm(m, "attn_output_norm", each=True), "layer_output_norm", each=True) for m in (nomic, bert))
    modern = FakeModel("modern-bert", layers=3, **{"attention.sliding_window": 4}).with_tensor("token_embd_norm.weight", (32,))
    modern = modern.with_layer_tensor("attn_qkv.weight", (64, 32)).with_layer_tensor("ffn_up.weight", (128, 32))
    embedding = FakeModel("gemma-embedding", layers=2, **{"attention.sliding_window": 4, "attention.sliding_window_pattern": 2})
    embedding = embedding.with_head_norms().with_layer_vectors("post_attention_norm", "post_ffw_norm")
    embedding = embedding.with_tensor("dense_2.weight", (96, 32)).with_tensor("dense_3.weight", (32, 96))
    longrope = {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.2}
    phi3 = FakeModel("phi3", **{**longrope, "attention.sliding_window": 0})
    phi3 = phi3.with_layer_tensor("attn_qkv.weight", (64, 32)).with_layer_tensor("ffn_up.weight", (128, 32))
    for name in ("short", "long"):
        phi3 = phi3.with_tensor(f"rope_factors_{name}.weight", (4,))
    gemma4 = FakeModel(
        "gemma4",
        layers=3,
        **{
            "attention.sliding_window": 4,
            "attention.sliding_window_pattern": [True, False, True],
            "attention.shared_kv_layers": 1,
            "embedding_length_per_layer_input": 8,
            "final_logit_softcapping": 30.0,
        },
    )
    gemma4 = gemma4.with_head_norms().with_layer_vectors("post_attention_norm", "post_ffw_norm", "post_norm")
    gemma4 = gemma4.with_layer_tensor("inp_gate.weight", (8, 32)).with_layer_tensor("proj.weight", (32, 8))
    gemma4 = gemma4.with_tensor("per_layer_token_embd.weight", (50, 24)).with_tensor("rope_freqs.weight", (4,))
    gemma4 = gemma4.with_tensor("per_layer_model_proj.weight", (24, 32)).with_tensor("per_layer_proj_norm.weight", (8,))
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 1.0}
    return {
        "bert": with_norm(bert, "token_embd_norm"),
        "t5": t5_model(),
        "nomic-bert": with_norm(nomic, "token_embd_norm"),
        "modernbert": modern,
        "gemma-embedding": embedding,
        "llama": FakeModel("llama"),
        "phi3": phi3,
        "gemma4": gemma4,
        "mistral3": FakeModel("mistral3", **yarn, **{"attention.temperature_scale": 0.1}),
        "llama-ternary-input-norms": norms.with_layer_format("TQ2_0"),
        "llama-tied-rope-freqs": llama3,
        "llama-yarn-biases": biased,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "gemma3": gemma3,
        "mixtral": FakeModel("llama").with_experts(4, 2, 64),
        "qwen2moe": qwen2moe,
        "deepseek2": deepseek(),
        "qwen3moe": FakeModel("qwen3moe").with_head_norms().with_experts(8, 2, 48),
        "bitnet-ternary": bitnet.with_layer_format("TQ2_0"),
        "bitnet-b1.58-scales": b158.with_layer_format("TQ1_0"),
        **{name: make() for name, make in RECURRENT.items()},
    }


# Reference models that have what those above have not: layer norms, learned positions, clamped and split heads, ALiBi, capped logits.
ORACLES = ["gpt2", "stablelm-12b", "mpt", "persimmon", "gemma2"]


@pytest.mark.parametrize("fused", [False, True], ids=["traced", "fused"])
@pytest.mark.parametrize("name", [*models(), *ORACLES])
def test_golden_text(name: str, fused: bool) -> None:
    file = Gguf(oracle.SUBSET / name / "model.gguf") if name in ORACLES else models()[name]
    program = trace(file).program
    text = (program.fuse() if fused else program).text()
    path = FOLDER / f"{name}.{'fused' if fused else 'traced'}.txt"
    if os.environ.get("STERNA_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert Program.parse(text).text() == text

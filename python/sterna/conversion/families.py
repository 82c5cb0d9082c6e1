"""Which architecture of GGUF a repository becomes, and how its tensors are called there: one row per family."""

from __future__ import annotations

from dataclasses import dataclass, field

from sterna.conversion.repository import JsonFile
from sterna.errors import UnsupportedModelError
from sterna.typed_reads import shown

# The linear layers of a block, which are ternary.
LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_SUB_NORMS = {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}
_SUB_NORMS_OF_1BITLLM = {"self_attn.inner_attn_ln": "attn_sub_norm", "mlp.ffn_layernorm": "ffn_sub_norm"}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True)
class Family:
    """What distinguishes one class of transformers from another."""

    architectures: dict[str, str]  # hidden_act -> general.architecture
    norms: dict[str, str] = field(default_factory=lambda: dict(_NORMS))  # vectors of a block
    rope_theta: float = 10000.0  # where config.json names none
    rope_types: frozenset[str] = frozenset({"default", "linear", "yarn"})
    # GGUF files of this architecture have the rows of q and k in the order that turns neighbours.
    interleaved: bool = False
    biases: bool = False  # whether linear layers may have one
    always_ternary: bool = False  # float weights are masters although no quantization_config says so


FAMILIES = {
    "BitNetForCausalLM": Family(
        {"relu2": "bitnet-b1.58", "silu": "bitnet"}, _NORMS | _SUB_NORMS, rope_theta=500000.0, always_ternary=True
    ),
    "BitnetForCausalLM": Family({"silu": "bitnet"}, _NORMS | _SUB_NORMS_OF_1BITLLM, always_ternary=True),
    "LlamaForCausalLM": Family(
        {"silu": "llama"},
        rope_types=frozenset({"default", "linear", "yarn", "llama3"}),
        interleaved=True,
        biases=True,
    ),
    "Qwen2ForCausalLM": Family({"silu": "qwen2"}, rope_theta=10000.0, biases=True),
    "Qwen3ForCausalLM": Family({"silu": "qwen3"}, _NORMS | _HEAD_NORMS, rope_theta=10000.0),
}


def find_family(config: JsonFile) -> tuple[Family, str]:
    """The family of a config.json and its general.architecture. UnsupportedModelError names the key and the value."""
    names = config.items("architectures")
    if names not in ([name] for name in FAMILIES):
        raise UnsupportedModelError(f"{config.path}: architectures is {shown(names)}; known are {', '.join(FAMILIES)}")
    family = FAMILIES[names[0]]
    default = next(iter(family.architectures)) if len(family.architectures) == 1 else None
    activation = config.text("hidden_act", default)
    if activation not in family.architectures:
        config.unsupported("hidden_act", f"{names[0]} is known with {' or '.join(family.architectures)}")
    return family, family.architectures[activation]

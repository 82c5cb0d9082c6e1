"""Which tensor gets which format: llama.cpp's file types as a table.

The rules are facts of llama.cpp's src/llama-quant.cpp (llama_tensor_get_type_impl, tensor_allows_quantization,
tensor_type_fallback); those for the first Falcon, which sterna does not run, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sterna.errors import ArgumentError


@dataclass(frozen=True)
class Place:
    """Where a tensor stands among those of its role, and what the rules want to know of the model."""

    index: int  # layer, or the how manyth of its role
    count: int
    queries_per_key: int  # query heads that share a key head
    num_experts: int
    has_importance: bool


Condition = Callable[[Place], bool]


@dataclass(frozen=True)
class Rule:
    """Tensors of `role` get `format` where `when` holds."""

    role: str  # "head", "embedding", "value", "key", "attention_output", "down"
    format: str
    when: Condition = lambda place: True


@dataclass(frozen=True)
class Mix:
    """A file type: its number in general.file_type, the format of most matrices, and the first rule that applies."""

    file_type: int
    format: str
    rules: tuple[Rule, ...] = ()


def _first_eighth(place: Place) -> bool:
    return place.index < place.count // 8


def _first_eighth_without_importance(place: Place) -> bool:
    return _first_eighth(place) and not place.has_importance


def _first_eighth_with_importance(place: Place) -> bool:
    return _first_eighth(place) and place.has_importance


def _first_sixteenth(place: Place) -> bool:
    return place.index < place.count // 16


def _more_bits(place: Place) -> bool:
    """The layers that llama.cpp holds for sensitive: the first and the last eighth, and every third between."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def _first(number: int) -> Condition:
    return lambda place: place.index < number


def _shared_keys(place: Place) -> bool:
    return place.queries_per_key >= 4


def _eight_experts(place: Place) -> bool:
    return place.num_experts == 8


_OUTPUT_OF_EIGHT = Rule("attention_output", "Q5_K", _eight_experts)
_IQ4 = (
    Rule("value", "Q5_K", _shared_keys),
    Rule("down", "Q5_K", _first_eighth_without_importance),
    _OUTPUT_OF_EIGHT,
)
_TERNARY = (Rule("embedding", "Q4_K"),)

MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q8_0": Mix(7, "Q8_0", (Rule("head", "Q8_0"),)),
    "Q4_0": Mix(2, "Q4_0", (Rule("down", "Q4_1", _first_eighth_with_importance),)),
    "Q4_1": Mix(3, "Q4_1"),
    "Q5_0": Mix(8, "Q5_0", (Rule("down", "Q5_1", _first_eighth_with_importance),)),
    "Q5_1": Mix(9, "Q5_1"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        (
            Rule("value", "Q4_K", _shared_keys),
            Rule("value", "Q3_K"),
            Rule("down", "Q3_K"),
            _OUTPUT_OF_EIGHT,
            Rule("attention_output", "Q3_K"),
        ),
    ),
    "Q2_K_S": Mix(21, "Q2_K", (Rule("value", "Q4_K", _shared_keys), Rule("down", "Q4_K", _first_eighth))),
    "Q3_K_S": Mix(11, "Q3_K", (_OUTPUT_OF_EIGHT,)),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        (
            Rule("value", "Q5_K", _first(2)),
            Rule("value", "Q4_K"),
            Rule("down", "Q5_K", _first_sixteenth),
            Rule("down", "Q4_K"),
            _OUTPUT_OF_EIGHT,
            Rule("attention_output", "Q4_K"),
        ),
    ),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        (
            Rule("value", "Q5_K"),
            Rule("down", "Q5_K"),
            Rule("attention_output", "Q3_K", _eight_experts),
            Rule("attention_output", "Q5_K"),
        ),
    ),
    "Q4_K_S": Mix(
        14, "Q4_K", (Rule("value", "Q5_K", _first(4)), Rule("down", "Q5_K", _first_eighth), _OUTPUT_OF_EIGHT)
    ),
    "Q4_K_M": Mix(15, "Q4_K", (Rule("value", "Q6_K", _more_bits), Rule("down", "Q6_K", _more_bits), _OUTPUT_OF_EIGHT)),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_K_M": Mix(17, "Q5_K", (Rule("value", "Q6_K", _more_bits), Rule("down", "Q6_K", _more_bits))),
    "Q6_K": Mix(18, "Q6_K"),
    "IQ4_NL": Mix(25, "IQ4_NL", _IQ4),
    "IQ4_XS": Mix(30, "IQ4_XS", _IQ4),
    "TQ1_0": Mix(36, "TQ1_0", _TERNARY),
    "TQ2_0": Mix(37, "TQ2_0", _TERNARY),
    # llama.cpp knows the second only, where everything but the experts is Q8_0.
    "MXFP4": Mix(38, "MXFP4"),
    "MXFP4_MOE": Mix(38, "Q8_0", (Rule("head", "Q8_0"), Rule("expert", "MXFP4"))),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# The rules below hold for every mix of quantised formats.
_PLAIN = {"F32", "F16", "BF16"}
_DEFAULT_HEAD = "Q6_K"

# What a matrix becomes whose rows are no whole blocks; F16 where these do not fit either.
FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "IQ4_XS": "IQ4_NL",
}  # fmt: skip

# Parts of the names of matrices that stay as they are: small, or sensitive, or no factors of a product.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "position_embd.weight", "token_types.weight", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"


def find_mix(name: str) -> tuple[str, Mix]:
    """The mix called `name`, any case, under its own name. ArgumentError."""
    upper = name.upper()
    upper = ALIASES.get(upper, upper)
    if upper not in MIXES:
        raise ArgumentError(f"type: there is no {name!r}; there are {', '.join(MIXES)}")
    return upper, MIXES[upper]


def is_kept(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor keeps its format in every mix; `shape` rows first."""
    if shape[-1] == 0 or all(extent == 1 for extent in shape[:-1]):
        return True
    return not name.endswith("weight") or any(part in name for part in _KEPT)


def role_of(name: str, shape: tuple[int, ...], tied: bool) -> str:
    """The role that rules know a tensor by; `tied`: the embedding is the output's matrix, too."""
    if name == OUTPUT or (tied and name in EMBEDDINGS):
        return "head"
    if name in EMBEDDINGS:
        return "embedding"
    for part, role in (
        ("attn_qkv.weight", "value"), ("attn_kv_b.weight", "value"), ("attn_v.weight", "value"),
        ("attn_k.weight", "key"), ("attn_q.weight", "query"), ("attn_output.weight", "attention_output"),
        ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
    ):  # fmt: skip
        if part in name:
            return role
    return "other"


def choose(mix: Mix, role: str, place: Place, *, is_expert: bool, is_large: bool) -> str:
    """The format that `mix` gives a matrix of `role`; whether its rows fit is not its matter.

    `is_expert`: one of several stacked matrices. `is_large`: a model of 80 layers whose heads share keys, where values
    are an eighth as large as queries.
    """
    if mix.format in _PLAIN:
        return mix.format
    roles = (role, "expert") if is_expert and role != "head" else (role,)
    found = next((rule.format for rule in mix.rules if rule.role in roles and rule.when(place)), None)
    if role == "head":
        return found or _DEFAULT_HEAD
    if any(rule.role == "expert" for rule in mix.rules):
        return found or mix.format
    if place.num_experts == 8 and role in ("value", "key"):
        return "Q8_0"
    chosen = found or mix.format
    return "Q5_K" if role == "value" and is_large and chosen in ("Q3_K", "Q4_K") else chosen

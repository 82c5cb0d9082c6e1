"""The op table's rules: each wrong operand, shape or attribute is refused with the op, the node and the numbers."""

from __future__ import annotations

from typing import Any

import pytest
from sterna._core import ProgramBuilder
from sterna.errors import ArgumentError

ROPE = {"theta": 10000.0, "rotary_dim": 8}
ATTENTION = {"layer": 0, "scale": 0.25}


class Bench:
    """A builder with inputs, some weights and activations at hand, by name."""

    def __init__(self) -> None:
        self.builder = ProgramBuilder()
        self.ids: dict[str, int] = {}
        for name in ("tokens", "positions"):
            self.ids[name] = self.builder.add_input(name, ("T",))
        weights: dict[str, tuple[int, ...]] = {
            "embd": (50, 16),
            "q": (32, 16),
            "kv": (16, 16),
            "odd": (24, 16),
            "bad_k": (16, 24),
            "v16": (16,),
            "v32": (32,),
            "v8": (8,),
            "v4": (4,),
            "v1": (1,),
            "cube": (2, 4, 16),
            "one": (1, 16),
            "router": (2, 16),
            "two8": (2, 8),
            "heads": (2, 4, 8),
            "stack": (2, 8, 16),
            "back": (2, 16, 8),
            "back3": (3, 16, 8),
            "up": (32, 2),
        }
        for name, shape in weights.items():
            self.ids[name] = self.builder.add_weight(name, shape, "F32")
        self.emit("embed", "x", tokens="tokens", w="embd")
        self.emit("linear", "q_rows", x="x", w="q")
        self.emit("linear", "kv_rows", x="x", w="kv")
        self.emit("linear", "odd_rows", x="x", w="odd")
        self.emit("reshape", "q_heads", x="q_rows", attributes={"dims": "4, 8"})
        self.emit("reshape", "k_heads", x="kv_rows", attributes={"dims": "2, 8"})
        self.emit("reshape", "wide", x="kv_rows", attributes={"dims": "1, 16"})
        self.emit("reshape", "odd_heads", x="odd_rows", attributes={"dims": "3, 8"})
        self.emit("take_rows", "x_rows", x="x")
        self.emit("linear", "scores", x="x", w="router")
        self.emit("linear", "share", x="x", w="one")
        self.emit("route", "experts", x="scores", attributes={"used": 2})
        self.emit("route", "best", x="scores", attributes={"used": 1})
        self.emit("reshape", "row_heads", x="x_rows", attributes={"dims": "2, 8"})

    def emit(
        self, op: str, name: str, attributes: dict[str, Any] | None = None, **roles: str | list[str]
    ) -> tuple[Any, ...]:
        inputs = [
            (role, self.ids[value])
            for role, values in roles.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        ids = self.builder.emit(op, name, inputs, attributes or {}, "models/test.py:1")
        self.ids[name] = ids[0]
        return tuple(self.builder.shape(id) for id in ids)


# The weights of a route have the shape of its ids.
EXPERTS = {"x": "x", "experts": "experts", "weights": "experts", "gate": "stack", "up": "stack", "down": "back"}

GOOD: list[tuple[str, dict[str, Any], dict[str, Any], tuple[Any, ...]]] = [
    ("linear", {"x": "x", "w": ["q", "kv"]}, {}, (("T", 32), ("T", 16))),
    ("linear", {"x": "x", "w": ["q", "q"]}, {"glu": "silu"}, (("T", 32),)),
    ("linear", {"x": "x", "w": "kv", "bias": "v16", "norm": "v16", "residual": "x"}, {"eps": 1e-5}, (("T", 16),)),
    ("linear", {"x": "x_rows", "w": "q"}, {"activation": "int8_per_token"}, (("L", 32),)),
    ("unembed", {"x": "x", "w": "embd"}, {}, (("L", 50),)),
    ("unembed", {"x": "x_rows", "w": "embd", "norm": "v16"}, {"eps": 1}, (("L", 50),)),
    ("rms_norm", {"x": "q_heads", "w": "v8"}, {"eps": 1e-5}, (("T", 4, 8),)),
    ("rms_norm", {"x": "x"}, {"eps": 1e-5}, (("T", 16),)),
    ("rms_norm", {"x": "x", "w": "v16", "residual": "x"}, {"eps": 1e-5}, (("T", 16),)),
    ("embed", {"tokens": "positions", "w": "embd"}, {}, (("T", 16),)),
    ("layer_norm", {"x": "x"}, {"eps": 1e-5}, (("T", 16),)),
    ("layer_norm", {"x": "x_rows", "w": "v16", "bias": "v16"}, {"eps": 1e-5}, (("L", 16),)),
    ("layer_norm", {"x": "q_heads", "w": "v8"}, {"eps": 1e-5}, (("T", 4, 8),)),
    ("layer_norm", {"x": "q_heads", "w": "v32", "bias": "v32"}, {"eps": 1e-5}, (("T", 4, 8),)),
    ("rope", {"x": "q_heads", "positions": "positions", "factors": "v4"}, ROPE, (("T", 4, 8),)),
    ("rope", {"x": "q_heads", "positions": "positions", "factors": "v4", "long_factors": "v4"}, {**ROPE, "scaling": "longrope", "original_context": 64}, (("T", 4, 8),)),
    ("attention", {"q": "q_heads", "k": "k_heads", "v": "k_heads"}, ATTENTION, (("T", 32),)),
    ("attention", {"q": "q_heads", "k": "k_heads", "v": "k_heads", "sinks": "v4"}, ATTENTION, (("T", 32),)),
    ("attention", {"q": "q_heads", "k": "k_heads"}, {**ATTENTION, "latent": 5}, (("T", 20),)),
    ("head_linear", {"x": "k_heads", "w": "heads"}, {}, (("T", 2, 4),)),
    ("split", {"x": "x"}, {"sizes": "4,12"}, (("T", 4), ("T", 12))),
    ("concat", {"x": ["x", "q_rows"]}, {}, (("T", 48),)),
    ("mul", {"a": "x", "b": "v16"}, {}, (("T", 16),)),
    ("add", {"a": "x", "b": "v1"}, {}, (("T", 16),)),
    ("take_rows", {"x": "q_heads"}, {}, (("L", 4, 8),)),
    ("send", {"x": "x"}, {}, (("T", 16),)),
    ("send", {"x": ["q_heads", "x", "share"]}, {}, (("T", 49),)),
    ("receive", {}, {"shapes": "16"}, (("T", 16),)),
    ("receive", {}, {"shapes": "4,8; 16;2147483"}, (("T", 4, 8), ("T", 16), ("T", 2147483))),
    ("clamp", {"x": "q_heads"}, {"limit": 8}, (("T", 4, 8),)),
    ("mul", {"a": "x", "b": "share"}, {}, (("T", 16),)),
    ("route", {"x": "scores"}, {"used": 2, "normalize": False}, (("T", 2), ("T", 2))),
    (
        "route",
        {"x": "q_rows", "bias": "v32"},
        {
            "used": 8,
            "scores": "sigmoid",
            "groups": 8,
            "groups_used": 2,
            "group_scores": "two_best",
            "scale": 2,
        },
        (("T", 8), ("T", 8)),
    ),
    ("glu", {"gate": "x", "up": "x"}, {"activation": "clamped_swiglu"}, (("T", 16),)),
    ("expert_glu", EXPERTS, {}, (("T", 16),)),
    (
        "expert_glu",
        {**EXPERTS, "gate_bias": "two8", "up_bias": "two8", "down_bias": "router"},
        {"glu": "clamped_swiglu", "weigh_input": True},
        (("T", 16),),
    ),
    ("expert_glu", {**EXPERTS, "residual": "x"}, {"glu": "gelu_tanh", "activation": "int8_per_token"}, (("T", 16),)),
    ("lora", {"x": "x", "y": "q_rows", "a": "router", "b": "up"}, {"adapter": 65535, "factor": 2}, (("T", 32),)),
]


@pytest.mark.parametrize(("op", "roles", "attributes", "shapes"), GOOD)
def test_shapes(op: str, roles: dict[str, Any], attributes: dict[str, Any], shapes: tuple[Any, ...]) -> None:
    assert Bench().emit(op, "node", attributes, **roles) == shapes


QKV = {"q": "q_heads", "k": "k_heads", "v": "k_heads"}
NORMS = {"q_norm": "v8", "k_norm": "v8"}
TURNED = {"x": "q_heads", "positions": "positions"}
LONGROPE = {**ROPE, "scaling": "longrope", "original_context": 64}
FOLDED = {**ATTENTION, "rope.theta": 1e4, "rope.rotary_dim": 8}
LORA = {"x": "x", "y": "q_rows", "a": "router", "b": "up"}
FIRST = {"adapter": 0, "factor": 1.0}
BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("melt", {"x": "x"}, {}, "there is no such op"),
    ("embed", {"tokens": "x", "w": "embd"}, {}, "tokens must be an input of the batch, x is not"),
    ("embed", {"tokens": "tokens", "w": "v16"}, {}, "weight v16 has shape [16], expected a matrix"),
    ("embed", {"tokens": "tokens"}, {}, "needs w"),
    ("linear", {"x": "x", "w": "bad_k"}, {}, "x has 16 features, weight bad_k expects 24"),
    ("linear", {"x": "q_heads", "w": "q"}, {}, "x has shape [T, 4, 8], expected rows of rank 2"),
    ("linear", {"x": "embd", "w": "q"}, {}, "x must be the result of a node, embd is not"),
    ("linear", {"x": "x", "w": "q_rows"}, {}, "w must be a weight, q_rows is not"),
    ("linear", {"x": "x", "w": "cube"}, {}, "weight cube has shape [2, 4, 16], expected a matrix"),
    ("linear", {"x": "x", "w": "q", "bias": "v16"}, {}, "bias v16 has shape [16], expected [32]"),
    ("linear", {"x": "x", "w": ["q", "kv"], "bias": "v32"}, {}, "1 biases for 2 weights"),
    ("linear", {"x": "x", "w": "q", "norm": "v32"}, {"eps": 1e-5}, "norm v32 has shape [32], expected [16]"),
    ("linear", {"x": "x", "w": "q", "norm": "v16"}, {}, "needs eps"),
    ("linear", {"x": "x", "w": "q"}, {"eps": 1e-5}, "eps without norm"),
    ("linear", {"x": "x", "w": "q", "norm": "v16"}, {"eps": 0.0}, "eps is 0.000000, must be above 0"),
    ("linear", {"x": "x", "w": "q"}, {"glu": "silu"}, "glu needs two weights of equal shape"),
    ("linear", {"x": "x", "w": ["q", "kv"]}, {"glu": "silu"}, "glu needs two weights of equal shape"),
    ("linear", {"x": "x", "w": ["q", "q"], "residual": "q_rows"}, {}, "residual needs exactly one weight"),
    ("linear", {"x": "x", "w": "q", "residual": "x"}, {}, "residual x has shape [T, 16], the result [T, 32]"),
    ("linear", {"x": "x_rows", "w": "kv", "residual": "x"}, {}, "residual x has shape [T, 16], the result [L, 16]"),
    (
        "linear",
        {"x": "x", "w": "q"},
        {"activation": "int4"},
        'activation is "int4", must be one of auto, int8_per_token',
    ),
    ("linear", {"x": "x", "w": "q"}, {"activation": 3}, "activation must be a string"),
    ("linear", {"x": "x", "w": "q"}, {"speed": 3}, "has no attribute speed"),
    ("linear", {"x": "x", "w": "q", "gate": "x"}, {}, "has no role gate"),
    ("linear", {"x": ["x", "x"], "w": "q"}, {}, "takes one x, not 2"),
    ("unembed", {"x": "x", "w": ["embd", "embd"]}, {}, "takes one w, not 2"),
    ("unembed", {"x": "q_rows", "w": "embd"}, {}, "x has 32 features, weight embd expects 16"),
    ("rms_norm", {"x": "x", "w": "v8"}, {"eps": 1e-5}, "w v8 has shape [8], expected [16]"),
    (
        "rms_norm",
        {"x": "x", "residual": "q_rows"},
        {"eps": 1e-5},
        "residual q_rows has shape [T, 32], the result [T, 16]",
    ),
    ("rms_norm", {"x": "x"}, {"eps": float("nan")}, "eps is not finite"),
    ("rms_norm", {"x": "x"}, {"eps": "small"}, "eps must be a number"),
    ("layer_norm", {"x": "x", "w": "v32"}, {"eps": 1e-5}, "w v32 has shape [32], expected [16]"),
    ("layer_norm", {"x": "q_heads", "w": "v16"}, {"eps": 1e-5}, "w v16 has shape [16], expected [8]"),
    ("layer_norm", {"x": "q_heads", "w": "v32", "bias": "v8"}, {"eps": 1e-5}, "bias v8 has shape [8], expected [32]"),
    ("layer_norm", {"x": "x", "bias": "v16"}, {"eps": 1e-5}, "bias without w"),
    ("layer_norm", {"x": "x"}, {"eps": 0.0}, "eps is 0.000000, must be above 0"),
    ("rope", {"x": "x", "positions": "positions"}, ROPE, "x has shape [T, 16], expected a row for every token, of rank 3"),
    ("rope", {"x": "row_heads", "positions": "positions"}, ROPE, "x has shape [L, 2, 8], expected a row for every token"),
    ("rope", {"x": "q_heads", "positions": "positions"}, {**ROPE, "rotary_dim": 7}, "rotary_dim is 7, must be even"),
    ("rope", {"x": "q_heads", "positions": "positions"}, {**ROPE, "rotary_dim": 10}, "from 2 to head_dim 8"),
    ("rope", {"x": "q_heads", "positions": "positions"}, {**ROPE, "theta": -1.0}, "theta is -1.000000"),
    ("rope", {"x": "q_heads", "positions": "positions"}, {**ROPE, "scaling": "yarn"}, "yarn needs original_context"),
    ("rope", {**TURNED, "factors": "v4"}, LONGROPE, "longrope needs factors and long_factors"),
    ("rope", {**TURNED, "factors": "v4", "long_factors": "v8"}, LONGROPE, "long_factors v8 has shape [8], expected [4]"),
    ("rope", {**TURNED, "factors": "v4", "long_factors": "v4"}, ROPE, "long_factors without longrope"),
    ("rope", TURNED, {**LONGROPE, "original_context": 0}, "longrope needs original_context above 0"),
    ("rope", {"x": "q_heads", "positions": "positions"}, {**ROPE, "style": "round"}, 'style is "round"'),
    (
        "rope",
        {"x": "q_heads", "positions": "positions", "factors": "v8"},
        ROPE,
        "factors v8 has shape [8], expected [4]",
    ),
    ("attention", {**QKV, "k": "wide", "v": "wide"}, ATTENTION, "q has head_dim 8, k 16"),
    ("attention", {**QKV, "v": "wide"}, ATTENTION, "k has 2 heads, v 1"),
    ("attention", {**QKV, "q": "odd_heads"}, ATTENTION, "3 query heads are not a multiple of 2 key and value heads"),
    ("attention", QKV, {"layer": 0}, "needs scale"),
    ("attention", QKV, {**ATTENTION, "layer": -1}, "layer is -1"),
    ("attention", QKV, {**ATTENTION, "layer": 2**16}, "layer is 65536, must be from 0 to 65535"),
    ("attention", QKV, {**ATTENTION, "layer": 2**40}, "layer is 1099511627776, must be from 0 to 65535"),
    ("attention", QKV, {**ATTENTION, "window": -1}, "window is -1"),
    ("attention", QKV, {**ATTENTION, "softcap": -1.0}, "softcap is -1"),
    ("attention", QKV, {**ATTENTION, "scale": 0.0}, "scale is 0"),
    ("attention", QKV, {**ATTENTION, "chunk": -1}, "chunk is -1"),
    ("attention", QKV, {**ATTENTION, "chunk": 4, "window": 4}, "has a window and chunks, can have one"),
    ("attention", QKV, {**ATTENTION, "max_alibi_bias": -8.0}, "max_alibi_bias is -8"),
    ("attention", QKV, {**ATTENTION, "temperature.scale": 0.1}, "temperature.scale needs temperature.length above 0"),
    ("attention", QKV, {**ATTENTION, "temperature.offset": -1}, "temperature.offset is -1"),
    ("attention", QKV, {**ATTENTION, "temperature.offset": 2**63 - 1}, "temperature.offset is 9223372036854775807, must be"),
    ("attention", QKV, {**ATTENTION, "temperature.length": 2**31}, "temperature.length is 2147483648, must be from 0 to"),
    ("attention", {**QKV, "sinks": "v8"}, ATTENTION, "sinks v8 has shape [8], expected [4]"),
    ("attention", {"q": "q_heads", "k": "k_heads"}, ATTENTION, "k and v come together"),
    ("attention", {"q": "q_heads"}, ATTENTION, "layer 0 has no KV slot to share"),
    ("attention", {"q": "q_heads", "positions": "positions"}, FOLDED, "positions without k and v"),
    ("attention", QKV, {**ATTENTION, "causal": 1}, "causal must be true or false"),
    ("attention", {**QKV, "q_norm": "v8"}, {**ATTENTION, "eps": 1e-5}, "q_norm and k_norm come together"),
    (
        "attention",
        {**QKV, **NORMS, "k_norm": "v4"},
        {**ATTENTION, "eps": 1e-5},
        "k_norm v4 has shape [4], expected [8]",
    ),
    ("attention", {**QKV, **NORMS}, ATTENTION, "needs eps"),
    ("attention", {**QKV, "positions": "positions"}, ATTENTION, "needs rope.theta"),
    ("attention", {**QKV, "factors": "v4"}, ATTENTION, "factors without positions"),
    ("attention", QKV, FOLDED, "rope.rotary_dim without positions"),
    ("clamp", {"x": "x"}, {"limit": 0.0}, "limit is 0.000000, must be above 0"),
    ("glu", {"gate": "x", "up": "q_rows"}, {}, "gate has shape [T, 16], up [T, 32]"),
    ("activation", {"x": "x"}, {"kind": "sine"}, 'kind is "sine"'),
    ("add", {"a": "x", "b": "x_rows"}, {}, "x has shape [T, 16], x_rows [L, 16]"),
    ("mul", {"a": "x", "b": "v8"}, {}, "a weight must have one element or one for each feature"),
    ("reshape", {"x": "q_rows"}, {"dims": "5, 6"}, "x has 32 features per row, they do not form [5, 6]"),
    ("reshape", {"x": "q_rows"}, {"dims": "2, 2, 8"}, "do not form"),
    ("reshape", {"x": "q_rows"}, {"dims": ""}, "expected positive extents"),
    ("reshape", {"x": "q_rows"}, {"dims": "0, 8"}, "expected positive extents"),
    ("reshape", {"x": "q_rows"}, {"dims": "4;8"}, "expected positive extents"),
    ("reshape", {"x": "q_rows"}, {"dims": "2147483647, 2147483647"}, "do not form"),
    ("split", {"x": "x"}, {"sizes": "4, 4"}, "sizes 4, 4 add up to 8, x has 16 features"),
    ("split", {"x": "x"}, {"sizes": ",".join(["1"] * 65)}, "expected positive extents"),
    ("concat", {"x": ["x", "q_heads"]}, {}, "q_heads has shape [T, 4, 8], the first part [T, 16]"),
    ("concat", {"x": ["x", "x_rows"]}, {}, "x_rows has shape [L, 16]"),
    ("take_rows", {"x": "x_rows"}, {}, "x has shape [L, 16], expected a row for every token, of rank 2"),
    ("send", {}, {}, "needs x"),
    ("send", {"x": ["x", "x_rows"]}, {}, "x_rows has shape [L, 16], expected a row for every token, of rank 2 or 3"),
    ("send", {"x": "v16"}, {}, "x must be the result of a node, v16 is not"),
    ("receive", {"x": "x"}, {"shapes": "16"}, "has no role x"),
    ("receive", {}, {}, "needs shapes"),
    ("receive", {}, {"shapes": ""}, 'shapes is "", expected positive extents'),
    ("receive", {}, {"shapes": "16;"}, 'shapes is "16;", expected positive extents'),
    ("receive", {}, {"shapes": "16;0"}, 'shapes is "16;0", expected positive extents'),
    ("receive", {}, {"shapes": "2,2,4"}, "shapes has [T, 2, 2, 4], of rank 2 or 3 only"),
    ("receive", {}, {"shapes": "2147483647,2147483647"}, "too large"),
    ("receive", {}, {"shapes": "2147483647;1"}, "the results are too large"),
    ("add", {"a": "x", "b": "share"}, {}, "x has shape [T, 16], share [T, 1]"),
    ("route", {"x": "scores"}, {"used": 3}, "used is 3, must be from 1 to the number of experts 2"),
    ("route", {"x": "scores"}, {"used": 0}, "used is 0, must be from 1"),
    ("attention", {"q": "q_heads", "k": "k_heads"}, {**ATTENTION, "latent": 9}, "latent is 9, must be from 1 to head_dim 8"),
    ("attention", QKV, {**ATTENTION, "latent": 8}, "latent needs k and takes no v"),
    ("head_linear", {"x": "q_heads", "w": "heads"}, {}, "expected a matrix for each of 4 heads"),
    ("head_linear", {"x": "wide", "w": "stack"}, {}, "expected a matrix for each of 1 heads"),
    ("head_linear", {"x": "k_heads", "w": "stack"}, {}, "x has 8 features, weight stack expects 16"),
    ("route", {"x": "scores"}, {}, "needs used"),
    ("route", {"x": "scores", "bias": "v16"}, {"used": 1}, "bias v16 has shape [16], expected [2]"),
    ("route", {"x": "scores"}, {"used": 1, "scores": "cosine"}, 'scores is "cosine"'),
    ("route", {"x": "scores"}, {"used": 1, "scale": 0.0}, "scale is 0.000000, must be above 0"),
    ("route", {"x": "q_rows"}, {"used": 1, "groups": 5}, "groups is 5, must divide the number of experts 32"),
    ("route", {"x": "q_rows"}, {"used": 9, "groups": 4}, "groups_used is 1, must be from 1 to groups 4 and hold 9"),
    ("route", {"x": "q_rows"}, {"used": 9, "groups": 4, "groups_used": 5}, "groups_used is 5, must be from 1 to"),
    (
        "route",
        {"x": "q_rows"},
        {"used": 2, "groups": 32, "groups_used": 2, "group_scores": "two_best"},
        "two_best needs groups of 2 experts",
    ),
    ("activation", {"x": "x"}, {"kind": "clamped_swiglu"}, 'kind is "clamped_swiglu"'),
    ("expert_glu", {**EXPERTS, "gate_bias": "v16"}, {}, "gate_bias v16 has shape [16], expected [2, 8]"),
    ("expert_glu", {**EXPERTS, "up_bias": "router"}, {}, "up_bias router has shape [2, 16], expected [2, 8]"),
    ("expert_glu", {**EXPERTS, "down_bias": "two8"}, {}, "down_bias two8 has shape [2, 8], expected [2, 16]"),
    ("expert_glu", {**EXPERTS, "gate": "kv"}, {}, "weight kv has shape [16, 16], expected a matrix for each expert"),
    ("expert_glu", {**EXPERTS, "up": "cube"}, {}, "gate has shape [2, 8, 16], up [2, 4, 16]"),
    ("expert_glu", {**EXPERTS, "down": "stack"}, {}, "gate has shape [2, 8, 16], down [2, 8, 16]"),
    ("expert_glu", {**EXPERTS, "down": "back3"}, {}, "gate has shape [2, 8, 16], down [3, 16, 8]"),
    ("expert_glu", {**EXPERTS, "x": "q_rows"}, {}, "x has 32 features, weight stack expects 16"),
    ("expert_glu", {**EXPERTS, "x": "x_rows"}, {}, "experts have shape [T, 2], weights [T, 2], x [L, 16]"),
    ("expert_glu", {**EXPERTS, "weights": "best"}, {}, "experts have shape [T, 2], weights [T, 1]"),
    ("expert_glu", {**EXPERTS, "experts": "q_rows", "weights": "q_rows"}, {}, "uses 32 of 2 experts"),
    ("expert_glu", {**EXPERTS, "residual": "q_rows"}, {}, "residual q_rows has shape [T, 32], the result [T, 16]"),
    ("lora", {**LORA, "x": "x_rows"}, FIRST, "x has shape [L, 16], y [T, 32]"),
    ("lora", {**LORA, "a": "bad_k"}, FIRST, "x has 16 features, weight bad_k expects 24"),
    ("lora", {**LORA, "b": "q"}, FIRST, "b q has shape [32, 16], expected [32, 2]"),
    ("lora", LORA, {**FIRST, "adapter": -1}, "adapter is -1, must be from 0 to 65535"),
    ("lora", LORA, {**FIRST, "adapter": 2**31 - 1}, "adapter is 2147483647, must be from 0 to 65535"),
]


@pytest.mark.parametrize(
    ("op", "roles", "attributes", "problem"), BAD, ids=[f"{op}: {text}"[:70] for op, _, _, text in BAD]
)
def test_what_does_not_fit_is_refused(op: str, roles: dict[str, Any], attributes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Bench().emit(op, "layers.0/node", attributes, **roles)
    message = str(error.value)
    assert message.startswith(f"{op} layers.0/node: ")
    assert message.endswith(" (models/test.py:1)")
    assert problem in message


def test_two_nodes_of_one_layer_cannot_share_its_kv_slot() -> None:
    bench = Bench()
    bench.emit("attention", "first", ATTENTION, **QKV)
    with pytest.raises(ArgumentError, match="layer 0 has its KV slot already"):
        bench.emit("attention", "second", ATTENTION, **QKV)


def test_rows_are_no_larger_than_32_bits_count() -> None:
    bench = Bench()
    bench.ids["y"] = bench.ids["x"]
    for copies in (64, 64, 64, 64, 4):
        bench.emit("concat", f"rows.{bench.ids['y']}", x=["y"] * copies)
        bench.ids["y"] = max(bench.ids.values())
        if copies == 64 and bench.builder.shape(bench.ids["y"]) == ("T", 2**16):
            with pytest.raises(ArgumentError, match="chooses from 65536 experts, must be at most 4096"):
                bench.emit("route", "many", {"used": 2}, x="y")
    bench.emit("reshape", "heads_of_one", {"dims": f"{2**30}, 1"}, x="y")
    with pytest.raises(ArgumentError, match=r"result of shape \[T, 1073741824, 2\] is too large"):
        bench.emit("concat", "too_large", x=["heads_of_one", "heads_of_one"])


def test_what_store_kv_keeps_is_of_the_encoder_and_for_others() -> None:
    bench = Bench()
    bench.emit("store_kv", "kept", {"layer": 0}, k="k_heads", v="k_heads")
    bench.builder.set_outputs([bench.ids["kept"]])
    with pytest.raises(ArgumentError, match="store_kv kept: only the function encode keeps for others"):
        bench.builder.finish()

    def encoder(*more: str) -> ProgramBuilder:
        builder = ProgramBuilder()
        tokens, w = builder.add_input("tokens", ("T",)), builder.add_weight("w", (8, 16), "F32")
        for function in ("encode", *more):
            builder.begin_function(function)
            x = builder.emit("embed", f"{function}.x", [("tokens", tokens), ("w", w)], {}, "")[0]
            heads = builder.emit("reshape", f"{function}.heads", [("x", x)], {"dims": "2, 8"}, "")[0]
            if function == "encode":
                kept = builder.emit("store_kv", "kept", [("k", heads), ("v", heads)], {"layer": 3}, "")
                builder.set_outputs(kept)
            if function == (*more, "encode")[0]:
                seen = {"layer": 3, "scale": 1.0, "causal": False}
                builder.set_outputs(builder.emit("attention", "seen", [("q", heads)], seen, ""))
        return builder

    with pytest.raises(ArgumentError, match="attention seen: what store_kv keeps is for attention in another function"):
        encoder().finish()
    assert [slot.layer for slot in encoder("logits").finish().kv_slots] == [3]


def test_names_are_unique_and_printable() -> None:
    bench = Bench()
    with pytest.raises(ArgumentError, match="two values are named x"):
        bench.emit("scale", "x", {"factor": 2.0}, x="x")
    for name in ("", "a\nb", "\x1b[31m", "y" * 257):
        with pytest.raises(ArgumentError, match="name is empty, too long or has control characters"):
            bench.emit("scale", name, {"factor": 2.0}, x="x")


@pytest.mark.parametrize(
    ("shape", "format", "problem"),
    [
        ((0, 4), "F32", "not positive"),
        ((2**31,), "F32", "has shape"),
        ((4097, 1, 1), "F32", "which is too large"),
        ((2, 2**30, 1), "F32", "which is too large"),
        ((2**31 - 1, 2**31 - 1), "F32", "which is too large"),
        ((2, 2**10, 2**30), "F32", "which is too large"),
        (("T", 4), "F32", "has shape"),
        ((), "F32", "has rank 0"),
        ((1, 1, 1, 1, 1), "F32", "has rank 5"),
        ((4, 33), "Q4_0", "rows of 33 elements, Q4_0 needs multiples of 32"),
        ((4, 32), "I32", "format I32, which no weight can have"),
        ((4, 32), "Q9_9", "no format Q9_9"),
        (("X", 32), "F32", "no run-time dimension X"),
    ],
)
def test_weights_that_cannot_be_are_refused(shape: tuple[Any, ...], format: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        ProgramBuilder().add_weight("w", shape, format)


def test_a_program_without_output_is_refused() -> None:
    bench = Bench()
    with pytest.raises(ArgumentError, match="function logits has no outputs"):
        bench.builder.finish()


@pytest.mark.parametrize("output", ["tokens", "embd"])
def test_an_output_is_a_result(output: str) -> None:
    bench = Bench()
    bench.builder.set_outputs([bench.ids[output]])
    with pytest.raises(ArgumentError, match="an output of function logits is not computed in it"):
        bench.builder.finish()


@pytest.mark.parametrize("id", [-1, 10**6])
def test_ids_from_nowhere_are_refused(id: int) -> None:
    bench = Bench()
    with pytest.raises(ArgumentError, match="x is not a value of the program"):
        bench.builder.emit("scale", "y", [("x", id)], {"factor": 1.0}, "")
    bench.builder.set_outputs([id])
    with pytest.raises(ArgumentError, match="not computed in it"):
        bench.builder.finish()


def test_experts_are_chosen_by_a_route_among_as_many_as_there_are() -> None:
    bench = Bench()
    bench.emit("route", "others", x="q_rows", attributes={"used": 2})
    bench.emit("expert_glu", "glu", **{**EXPERTS, "experts": "others"})
    bench.builder.set_outputs([bench.ids["glu"]])
    with pytest.raises(ArgumentError, match="experts others are not chosen by a route among 2"):
        bench.builder.finish()
    bench = Bench()
    bench.emit("reshape", "numbers", x="experts", attributes={"dims": "2"})
    bench.emit("expert_glu", "glu", **{**EXPERTS, "experts": "numbers"})
    bench.builder.set_outputs([bench.ids["glu"]])
    with pytest.raises(ArgumentError, match="experts numbers are not chosen by a route among 2"):
        bench.builder.finish()

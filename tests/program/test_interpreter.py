"""The interpreter's own promises: rounding of activations and of the cache, decoding step by step, ops by hand."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
import pytest
from fake_model import FakeModel
from sterna._core import Program, ProgramBuilder, rope_inverse_frequencies
from sterna.errors import ArgumentError
from sterna.interpreter import Interpreter, activate, attend, layer_norm, matmul, rms_norm, rope, route
from sterna.rounding import (
    HALVES,
    activation_group,
    q8_0_ties,
    quantize_activations,
    round_to_halves,
    round_to_q8_0,
    rounding_ties,
)
from sterna.trace import trace

RNG = np.random.default_rng(20261121)


def weights_of(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        value.name: rng.standard_normal(value.shape, np.float32) / np.float32(4)  # type: ignore[arg-type]
        for value in program.values
        if value.kind == "weight"
    }


def test_codes_are_ties_to_even_and_scales_absmax_over_127() -> None:
    x = np.array([[127.0, 0.5, 1.5, -0.5, -2.5, 2.5, 63.49, -127.0]], np.float32)
    codes, scales = quantize_activations(x, 8)
    assert codes.tolist() == [[127, 0, 2, 0, -2, 2, 63, -127]]
    assert scales.tolist() == [[1.0]]


def test_each_group_has_its_own_scale() -> None:
    x = RNG.standard_normal((3, 96), np.float32)
    codes, scales = quantize_activations(x, 32)
    assert scales.shape == (3, 3)
    for row in range(3):
        for group in range(3):
            part = slice(32 * group, 32 * group + 32)
            alone = quantize_activations(x[row : row + 1, part], 32)
            assert codes[row, part].tolist() == alone[0][0].tolist()
            assert scales[row, group] == alone[1][0, 0]
    assert np.abs(codes * np.repeat(scales, 32, axis=1) - x).max() <= scales.max() * 0.5001


def test_rows_are_ties_where_the_last_bits_choose_a_code() -> None:
    x = np.full((4, 64), 0.25, np.float32)
    x[:, 0] = x[:, 32] = 127
    x[1, 40], x[2, 5], x[3, 6] = 63.5, np.nextafter(np.float32(-0.5), np.float32(0)), 2.4
    assert rounding_ties(x, 32).tolist() == [False, True, True, False]


@pytest.mark.parametrize("value", [0.0, 1e-40, 127 * 2.0**-127])
def test_tiny_rows_become_zeros(value: float) -> None:
    codes, scales = quantize_activations(np.full((1, 32), value, np.float32), 32)
    assert not codes.any()
    assert not scales.any()


def test_the_smallest_scale_that_counts() -> None:
    codes, scales = quantize_activations(np.full((1, 32), 127 * 2.0**-126, np.float32), 32)
    assert scales[0, 0] == 2.0**-126
    assert (codes == 127).all()


def test_rows_of_any_magnitude_become_halves() -> None:
    x = np.array([[1.0, 1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, -3.0], [0.0] * 4], np.float32)
    for magnitude in (2.0**-120, 1.0, 2.0**120):
        rounded = round_to_halves(x * np.float32(magnitude))
        assert (rounded == np.array([[1.0, 1.0, 1.0 + 2.0**-9, -3.0], [0.0] * 4]) * magnitude).all()  # ties to even
    w = RNG.standard_normal((5, 4), np.float32)
    assert (matmul(x, w, HALVES) == round_to_halves(x) @ w.astype(np.float64).T).all()


def test_rows_that_have_no_whole_groups_are_refused() -> None:
    with pytest.raises(ArgumentError, match="rows of 48 elements"):
        quantize_activations(np.zeros((1, 48), np.float32), 32)


@pytest.mark.parametrize(
    ("format", "rule", "group"),
    [
        ("F32", "auto", 0),
        ("BF16", "auto", 0),
        ("Q4_1", "auto", 32),
        ("MXFP4", "auto", 32),
        ("Q1_0", "auto", 32),
        ("Q4_K", "auto", 256),
        ("IQ4_XS", "auto", 256),
        ("TQ2_0", "auto", 256),
        ("TQ2_0", "int8_per_token", 512),
        ("F32", "int8_per_token", 0),
    ],
)
def test_the_activation_rule(format: str, rule: str, group: int) -> None:
    assert activation_group(format, rule, 512) == group


def test_a_ternary_matmul_is_an_integer_sum_times_two_scales() -> None:
    x = RNG.standard_normal((4, 256), np.float32)
    ternary = RNG.integers(-1, 2, (8, 256))
    codes, scales = quantize_activations(x, 256)
    sums = codes.astype(np.int64) @ ternary.T
    expected = sums * scales.astype(np.float64) * 0.125
    assert np.array_equal(matmul(x, (ternary * 0.125).astype(np.float32), 256), expected)


def test_rms_norm_by_hand() -> None:
    x = np.array([[3.0, 4.0]], np.float32)
    norm = 1 / math.sqrt(12.5 + 0.5)
    assert rms_norm(x, np.array([2.0, 1.0], np.float32), 0.5)[0] == pytest.approx([6 * norm, 4 * norm], rel=1e-6)
    assert rms_norm(x, None, 0.5)[0] == pytest.approx([3 * norm, 4 * norm], rel=1e-6)


def test_layer_norm_by_hand() -> None:
    x = np.array([[1.0, 3.0, 5.0, 5.0]], np.float32)
    norm = 1 / math.sqrt(2.75 + 0.25)  # the mean is 3.5
    by_hand = [-2.5 * norm, -0.5 * norm, 1.5 * norm, 1.5 * norm]
    assert layer_norm(x, None, None, 0.25)[0] == pytest.approx(by_hand, rel=1e-6)
    w, b = np.array([2.0, 1.0, -1.0, 0.0], np.float32), np.array([0.0, 1.0, 0.0, 7.0], np.float32)
    assert layer_norm(x, w, b, 0.25)[0] == pytest.approx(np.array(by_hand) * w + b, rel=1e-6)
    heads = x.reshape(1, 2, 2)
    norms = [1 / math.sqrt(1 + 0.25), 0.0]
    want = [-2 * norms[0], norms[0], 0.0, 0.0]
    assert layer_norm(heads, w, None, 0.25).reshape(-1) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "softplus"])
def test_activations_by_hand(kind: str) -> None:
    def by_hand(x: float) -> float:
        if kind == "silu":
            return x / (1 + math.exp(-x))
        if kind == "gelu_tanh":
            return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if kind == "gelu":
            return 0.5 * x * math.erfc(-x / math.sqrt(2))
        if kind == "sigmoid":
            return 1 / (1 + math.exp(-x))
        if kind == "tanh":
            return math.tanh(x)
        if kind == "softplus":
            return math.log1p(math.exp(x))
        if kind == "relu":
            return max(x, 0.0)
        return max(x, 0.0) ** 2

    x = np.array([-90.0, -3.0, -0.1, 0.0, 0.5, 4.0, 80.0], np.float32)
    assert activate(x, kind).tolist() == pytest.approx([by_hand(float(v)) for v in x], rel=1e-6, abs=1e-30)
    assert np.isfinite(activate(np.array([-3e38, 3e19], np.float32), "silu")).all()


@pytest.mark.parametrize("style", ["halves", "interleaved"])
def test_rope_turns_pairs_and_leaves_the_rest(style: str) -> None:
    x = RNG.standard_normal((1, 2, 6), np.float32)
    frequencies = np.array([1.0, 0.25], np.float32)
    y = rope(x, np.array([3]), frequencies, style, 1.0)
    pairs = [(0, 2), (1, 3)] if style == "halves" else [(0, 1), (2, 3)]
    for frequency, (i, j) in zip([1.0, 0.25], pairs, strict=True):
        turned = (x[0, :, i] + 1j * x[0, :, j]) * np.exp(3j * frequency)
        assert y[0, :, i] == pytest.approx(turned.real, rel=1e-5)
        assert y[0, :, j] == pytest.approx(turned.imag, rel=1e-5)
    assert np.array_equal(y[..., 4:], x[..., 4:])
    assert rope(x, np.array([3]), frequencies, style, 2.0)[..., :4] == pytest.approx(2 * y[..., :4], rel=1e-6)


def attributes(**changed: Any) -> dict[str, Any]:
    neutral = {"window": 0, "chunk": 0, "causal": True, "softcap": 0.0, "max_alibi_bias": 0.0, "temperature.scale": 0.0}
    return {"scale": 0.5, **neutral, **changed}


def softmax_by_hand(scores: list[float], values: np.ndarray) -> np.ndarray:
    weights = np.exp(np.array(scores) - max(scores))
    return (weights / weights.sum()) @ values


@pytest.mark.parametrize(
    ("changed", "visible"),
    [
        ({}, range(4)),
        ({"window": 2}, range(2, 4)),
        ({"chunk": 3}, range(3, 4)),
        ({"chunk": 4}, range(4)),
        ({"causal": False}, range(6)),
        ({"softcap": 0.7}, range(4)),
    ],
)
def test_attention_by_hand(changed: dict[str, Any], visible: range) -> None:
    q = RNG.standard_normal((1, 4, 8)).astype(np.float32)
    keys, values = RNG.standard_normal((2, 6, 2, 8)).astype(np.float32)
    out = attend(q, keys, values, np.array([3]), attributes(**changed)).reshape(4, 8)
    for head in range(4):
        scores = [0.5 * float(q[0, head] @ keys[key, head // 2]) for key in visible]
        if "softcap" in changed:
            scores = [0.7 * math.tanh(score / 0.7) for score in scores]
        assert out[head] == pytest.approx(softmax_by_hand(scores, values[list(visible), head // 2]), abs=1e-6)


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [7, 1, 1]])
def test_decoding_in_chunks_gives_what_one_prefill_gives(kv_dtype: Any, chunks: list[int]) -> None:
    program = trace(
        FakeModel("gemma3", **{"attention.sliding_window": 3})
        .with_head_norms()
        .with_layer_vectors("post_attention_norm", "post_ffw_norm")
    ).program
    weights = weights_of(program)
    tokens = RNG.integers(0, 50, 9).tolist()
    whole = Interpreter(program, weights.__getitem__, kv_dtype=kv_dtype).run(tokens)
    stepwise = Interpreter(program, weights.__getitem__, kv_dtype=kv_dtype)
    starts = np.cumsum([0, *chunks])
    parts = [stepwise.run(tokens[start : start + count]) for start, count in zip(starts, chunks, strict=False)]
    assert np.concatenate(parts) == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_positions_may_be_run_again() -> None:
    program = trace(FakeModel("llama")).program
    interpreter = Interpreter(program, weights_of(program).__getitem__)
    first = interpreter.run([1, 2, 3, 4])
    assert interpreter.run([3, 4], positions=[2, 3]) == pytest.approx(first[2:], abs=1e-6)
    assert interpreter.run([3, 4], positions=[2, 3], output_rows=[1]).shape == (1, 50)


def test_the_cache_rounds_to_its_type() -> None:
    program = trace(FakeModel("llama")).program
    weights = weights_of(program)
    halves = Interpreter(program, weights.__getitem__, kv_dtype="f16").run([1, 2, 3])
    codes = Interpreter(program, weights.__getitem__, kv_dtype="q8_0").run([1, 2, 3])
    exact = Interpreter(program, weights.__getitem__, kv_dtype="f32").run([1, 2, 3])
    errors = [np.linalg.norm(rounded - exact) for rounded in (halves, codes)]
    assert 0 < errors[0] < errors[1]
    assert halves == pytest.approx(exact, abs=0.02)
    assert codes == pytest.approx(exact, abs=0.2)


def test_q8_0_is_the_format_of_that_name() -> None:
    x = RNG.standard_normal((50, 3, 64)).astype(np.float32) * 10.0 ** RNG.uniform(-9, 6, (50, 3, 1)).astype(np.float32)
    x[3, 1] = 0
    x[4, 0, 1:9] = x[4, 0, 0] / 127 * np.arange(0.5, 8.5, dtype=np.float32)  # halves, or next to them
    kind = gguf.GGMLQuantizationType.Q8_0
    for dim in (64, 40, 33, 32, 7):
        padded = np.zeros_like(x)
        padded[..., :dim] = x[..., :dim]
        want = gguf.quants.dequantize(gguf.quants.quantize(padded, kind), kind)[..., :dim]
        assert np.array_equal(round_to_q8_0(x[..., :dim]), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e7])
def test_q8_0_has_no_number_for_what_it_cannot_store(bad: float) -> None:
    x = np.ones((2, 1, 80), np.float32)
    x[1, 0, 40] = bad
    rounded = round_to_q8_0(x)
    assert np.isnan(rounded[1, 0, 32:64]).all()
    assert np.isfinite(rounded).sum() == 128


def test_ties_of_q8_0_are_found() -> None:
    x = np.full((4, 1, 64), 0.3, np.float32)
    x[:, 0, 0] = 127  # codes are the numbers themselves
    x[1, 0, 5] = np.nextafter(np.float32(7.5), np.float32(0))
    x[2, 0, 40] = 127 * (1 + 2.0**-11)  # a scale in the middle of two halves
    assert q8_0_ties(x).tolist() == [False, True, True, False]


def test_values_are_kept_by_name_and_a_node_can_be_judged_alone() -> None:
    program = trace(FakeModel("llama")).program
    weights = weights_of(program)
    interpreter = Interpreter(program, weights.__getitem__)
    interpreter.run([5, 6, 7])
    node = next(node for node in program.nodes() if node.name == "layers.1/attn_q")
    given = RNG.standard_normal((3, 32)).astype(np.float32)
    (result,) = interpreter.eval_node(node, [given, None])
    assert result == pytest.approx(given @ weights["blk.1.attn_q"].T, abs=1e-5)
    (own,) = interpreter.eval_node(node)
    assert own.tobytes() == interpreter.values["layers.1/attn_q"].tobytes()


def rope_node(**attributes: Any) -> Any:
    builder = ProgramBuilder()
    tokens, positions = builder.add_input("tokens", ("T",)), builder.add_input("positions", ("T",))
    w = builder.add_weight("w", (4, 128), "F32")
    x = builder.emit("embed", "x", [("tokens", tokens), ("w", w)], {}, "")
    x = builder.emit("reshape", "h", [("x", x[0])], {"dims": "2, 64"}, "")
    builder.set_outputs(builder.emit("rope", "r", [("x", x[0]), ("positions", positions)], attributes, ""))
    return builder.finish().nodes()[-1]


def test_inverse_frequencies_plain_linear_and_by_factors() -> None:
    plain = 1.0 / 10000.0 ** (np.arange(0, 64, 2) / 64)
    node = rope_node(theta=10000.0, rotary_dim=64)
    assert np.array_equal(np.float32(rope_inverse_frequencies(node, "", [])), plain.astype(np.float32))
    factors = np.linspace(1, 8, 32).astype(np.float32)
    divided = (plain / factors.astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.float32(rope_inverse_frequencies(node, "", factors.tolist())), divided)
    node = rope_node(theta=10000.0, rotary_dim=64, scaling="linear", factor=8.0)
    assert np.array_equal(np.float32(rope_inverse_frequencies(node, "", [])), (plain / 8).astype(np.float32))
    with pytest.raises(ArgumentError, match="3 factors"):
        rope_inverse_frequencies(node, "", [1.0, 2.0, 3.0])


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramps_between_two_pairs(truncate: bool) -> None:
    """As transformers' _compute_yarn_parameters has it; gpt-oss does not round the ends of the ramp."""
    plain = 10000.0 ** (-np.arange(32) / 32)
    node = rope_node(theta=1e4, rotary_dim=64, scaling="yarn", factor=4.0, original_context=2048, truncate=truncate)
    low, high = (64 * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(1e4)) for turns in (32.0, 1.0))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    ramp = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    want = plain / 4 * ramp + plain * (1 - ramp)
    assert np.array(rope_inverse_frequencies(node, "", [])) == pytest.approx(want, rel=1e-6)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain = 1.0 / 10000.0 ** (np.arange(0, 64, 2) / 64)
    node = rope_node(theta=10000.0, rotary_dim=64, scaling="yarn", factor=4.0, original_context=2048)
    ratios = np.array(rope_inverse_frequencies(node, "", [])) / plain
    rotations = 2048 * plain / (2 * math.pi)
    assert ratios[rotations > 40] == pytest.approx(1.0)
    assert ratios[rotations < 0.8] == pytest.approx(0.25)
    assert (np.diff(ratios) <= 1e-6).all()
    assert ((ratios > 0.26) & (ratios < 0.99)).any()


PLAIN_ROUTE = {
    "scores": "softmax",
    "normalize": True,
    "scale": 1.0,
    "groups": 1,
    "groups_used": 1,
    "group_scores": "best",
}


def test_routes_by_hand() -> None:
    logits = np.log(np.array([[1, 4, 2, 3], [2, 5, 5, 8], [1, 1, 1, 1]], np.float32))
    experts, weights = route(logits, None, {**PLAIN_ROUTE, "used": 2})
    assert experts.tolist() == [[1, 3], [3, 1], [0, 1]]  # ties to the lower id
    np.testing.assert_allclose(weights, [[4 / 7, 3 / 7], [8 / 13, 5 / 13], [0.5, 0.5]], rtol=1e-6)
    experts, weights = route(logits + np.float32(300), None, {**PLAIN_ROUTE, "used": 3, "normalize": False})
    assert experts.tolist() == [[1, 3, 2], [3, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(weights, [[0.4, 0.3, 0.2], [0.4, 0.25, 0.25], [0.25, 0.25, 0.25]], rtol=1e-4)


def test_routes_with_bias_and_groups_by_hand() -> None:
    logits = np.log(np.array([[1, 4, 2, 3], [3, 1, 1, 9]], np.float32))
    scores = np.exp(logits) / (1 + np.exp(logits))  # 1/2, 4/5, 2/3, 3/4 and 3/4, 1/2, 1/2, 9/10
    attributes = {**PLAIN_ROUTE, "used": 2, "scores": "sigmoid", "normalize": False}
    experts, weights = route(logits, None, {**attributes, "scale": 2.0})
    assert experts.tolist() == [[1, 3], [3, 0]]
    np.testing.assert_allclose(weights, 2 * np.take_along_axis(scores, experts.astype(int), 1), rtol=1e-6)
    # A bias moves the choice, not the weights.
    experts, weights = route(logits, np.array([0.4, 0, 0, 0], np.float32), {**attributes, "normalize": True})
    assert experts.tolist() == [[0, 1], [0, 3]]
    np.testing.assert_allclose(weights, [[5 / 13, 8 / 13], [15 / 33, 18 / 33]], rtol=1e-6)
    # Groups 0, 1 and 2, 3: the best is in one, the larger sum of two in the other.
    groups = {**attributes, "groups": 2, "groups_used": 1}
    assert route(logits, None, groups)[0].tolist() == [[1, 0], [3, 2]]
    assert route(logits, None, {**groups, "group_scores": "two_best"})[0].tolist() == [[3, 2], [3, 2]]


@pytest.mark.parametrize("with_residual", [False, True])
def test_experts_by_hand(with_residual: bool) -> None:
    builder = ProgramBuilder()
    tokens = builder.add_input("tokens", ("T",))
    shapes = {"table": (5, 8), "router": (3, 8), "gate": (3, 4, 8), "up": (3, 4, 8), "down": (3, 8, 4)}
    ids = {name: builder.add_weight(name, shape, "F32") for name, shape in shapes.items()}
    x = builder.emit("embed", "x", [("tokens", tokens), ("w", ids["table"])], {}, "")[0]
    scores = builder.emit("linear", "scores", [("x", x), ("w", ids["router"])], {}, "")[0]
    experts, weights = builder.emit("route", "experts", [("x", scores)], {"used": 2}, "")
    operands = [("x", x), ("experts", experts), ("weights", weights)] + [(n, ids[n]) for n in ("gate", "up", "down")]
    y = builder.emit("expert_glu", "y", [*operands, ("residual", x)] if with_residual else operands, {}, "")
    builder.set_outputs(y)
    program = builder.finish()
    arrays = weights_of(program)
    interpreter = Interpreter(program, arrays.__getitem__)
    got = interpreter.run([4, 0, 1])
    for row, token in enumerate([4, 0, 1]):
        v = arrays["table"][token].astype(np.float64)
        scores_of_row = arrays["router"] @ v
        chosen = np.argsort(-scores_of_row)[:2]
        shares = np.exp(scores_of_row[chosen]) / np.exp(scores_of_row[chosen]).sum()
        want = v * with_residual
        for share, expert in zip(shares, chosen, strict=True):
            gate = arrays["gate"][expert] @ v
            want = want + share * (arrays["down"][expert] @ (gate / (1 + np.exp(-gate)) * (arrays["up"][expert] @ v)))
        np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-6)
        assert interpreter.values["experts"][row].tolist() == chosen.tolist()

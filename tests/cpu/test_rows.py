"""Row-wise kernels: equal on every level at sizes around the vector width, and close to float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sterna
from kernel_cases import LEVELS, Array, Floats, Net, assert_same_bits, compiled, fma, run_rows, value
from sterna import _core

SEED = 31
SIZES = [1, 15, 16, 17, 31, 64, 100]
KINDS = ["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "softplus"]
EPS = 2.0**-24


def every_level(net: Net, last: int, names: list[str], rows: int, **options: object) -> dict[str, Floats]:
    """The named values of a run of the first rows, after a check that all levels give the same bits."""
    program = net.finish(last)
    results: list[dict[str, Floats]] = []
    for level in LEVELS:
        plan = compiled(program, net.source, isa=level, **options)
        run_rows(plan, range(rows))
        results.append({name: value(plan, name, rows) for name in names})
    for level, other in zip(LEVELS, results, strict=True):
        for name in names:
            assert_same_bits(other[name], results[0][name], f"{level}, {name}")
    return results[0]


def numbers(m: int, n: int) -> Floats:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED + n)
    return (rng.standard_normal((m, n)) * 2.0 ** rng.integers(-8, 9, (m, 1))).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int) -> None:
    x = numbers(6, size)
    x[4] = 0
    x[5] *= 1e30
    weight = np.random.default_rng(SEED).standard_normal(size).astype(np.float32)
    net = Net()
    rows = net.rows(x)
    w = net.weight(weight)
    net.node("rms_norm", "weighted", [("x", rows), ("w", w)], eps=1e-5)
    last = net.node("rms_norm", "plain", [("x", rows)], eps=1e-6)[0]
    got = every_level(net, last, ["weighted", "plain"], 6)
    for name, eps, factor in (("weighted", 1e-5, weight.astype(np.float64)), ("plain", 1e-6, 1.0)):
        wide = x[:5].astype(np.float64)
        want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + float(np.float32(eps))) * factor
        # 16 lanes of n / 16 terms, then the tree; a square root, a division, two products.
        assert (np.abs(got[name][:5] - want) <= (size / 32 + 6) * EPS * np.abs(want)).all(), name


def test_rms_norm_by_definition() -> None:
    """The order of the sum: 16 lanes by fma, then halves onto halves; one operation after the other in float32."""
    size = 100
    x = numbers(3, size)
    net = Net()
    last = net.node("rms_norm", "y", [("x", net.rows(x))], eps=1e-5)[0]
    got = every_level(net, last, ["y"], 3)["y"]
    lanes = np.zeros((3, 16), np.float32)
    padded = np.pad(x, ((0, 0), (0, 112 - size)))
    for i in range(0, 112, 16):
        part = padded[:, i : i + 16]
        lanes = fma(part, part, lanes)
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    inverse = np.float32(1) / np.sqrt(lanes / np.float32(size) + np.float32(1e-5))
    assert_same_bits(got, x * inverse)


def test_rms_norm_of_heads() -> None:
    """Each head of [T, heads, head_dim] is a row of its own."""
    heads, dim = 3, 40
    x = numbers(5, heads * dim)
    weight = np.random.default_rng(SEED).standard_normal(dim).astype(np.float32)
    net = Net()
    rows, w = net.rows(x), net.weight(weight)
    shaped = net.node("reshape", "heads", [("x", rows)], dims=f"{heads}, {dim}")[0]
    normed = net.node("rms_norm", "normed", [("x", shaped), ("w", w)], eps=1e-5)[0]
    flat = net.node("reshape", "flat", [("x", normed)], dims=f"{heads * dim}")[0]
    got = every_level(net, flat, ["normed"], 5)["normed"]
    alone = Net()
    rows, w = alone.rows(x.reshape(-1, dim)), alone.weight(weight)
    last = alone.node("rms_norm", "normed", [("x", rows), ("w", w)], eps=1e-5)[0]
    want = every_level(alone, last, ["normed"], 5 * heads)["normed"]
    assert_same_bits(got.reshape(want.shape), want)


LAYER_NORMS = [(False, False), (True, False), (True, True)]


def layer_norm_net(x: Floats, shape: tuple[int, ...], weight: Floats | None, bias: Floats | None) -> dict[str, Floats]:
    """Value "y": the layer norm of x, whose rows have that shape, on every level."""
    net = Net()
    rows = net.rows(x)
    if len(shape) == 2:
        rows = net.node("reshape", "heads", [("x", rows)], dims=f"{shape[0]}, {shape[1]}")[0]
    operands = [("x", rows)]
    for role, vector in (("w", weight), ("bias", bias)):
        operands += [] if vector is None else [(role, net.weight(vector))]
    last = net.node("layer_norm", "y", operands, eps=1e-5)[0]
    return every_level(net, net.node("reshape", "flat", [("x", last)], dims=f"{x.shape[1]}")[0], ["y"], len(x))


@pytest.mark.parametrize(("weighted", "biased"), LAYER_NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_layer_norm(size: int, weighted: bool, biased: bool) -> None:
    x = numbers(7, size) + np.float32(0.5)
    x[4] = 3.0  # no variance: the result is the bias
    x[5] += 1000 * np.abs(x[5]).max()
    x[6] *= 1e30
    weight, bias = np.random.default_rng(SEED).standard_normal((2, size)).astype(np.float32)
    got = layer_norm_net(x, (size,), weight if weighted else None, bias if biased else None)["y"][:6]
    wide = x[:6].astype(np.float64)
    # The mean of 16 lanes and the tree is off by as many roundings, each of its own or of x's size.
    off = (size / 32 + 6) * EPS * np.abs(wide).max(axis=1, keepdims=True)
    centred = wide - wide.mean(axis=1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + float(np.float32(1e-5)))
    factor = weight.astype(np.float64) if weighted else np.ones(size)
    want = centred * inverse * factor + (bias if biased else 0)
    bound = (off * inverse * 2 + (size / 32 + 8) * EPS * np.abs(centred * inverse)) * np.abs(factor) + EPS * np.abs(want)
    assert (np.abs(got - want) <= bound).all()


def test_layer_norm_by_definition() -> None:
    """The order of both sums: 16 lanes, then halves onto halves; one operation after the other in float32."""
    size = 100
    x = numbers(3, size)
    weight, bias = np.random.default_rng(SEED).standard_normal((2, size)).astype(np.float32)
    got = layer_norm_net(x, (size,), weight, bias)["y"]

    def tree(lanes: Floats) -> Floats:
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
        return lanes

    pad = ((0, 0), (0, 112 - size))
    total, squares = np.zeros((2, 3, 16), np.float32)
    for i in range(0, 112, 16):
        total = total + np.pad(x, pad)[:, i : i + 16]
    centred = x - tree(total) / np.float32(size)
    for i in range(0, 112, 16):
        part = np.pad(centred, pad)[:, i : i + 16]
        squares = fma(part, part, squares)
    inverse = np.float32(1) / np.sqrt(tree(squares) / np.float32(size) + np.float32(1e-5))
    assert_same_bits(got, fma(centred * inverse, np.broadcast_to(weight, x.shape), np.broadcast_to(bias, x.shape)))


@pytest.mark.parametrize("per_head", [False, True])
def test_layer_norm_of_heads(per_head: bool) -> None:
    """Each head is a row of its own, with the weight of all heads or one of its own."""
    heads, dim = 3, 40
    x = numbers(5, heads * dim)
    weight, bias = np.random.default_rng(SEED).standard_normal((2, heads, dim)).astype(np.float32)
    if not per_head:
        weight, bias = (np.repeat(vector[:1], heads, axis=0) for vector in (weight, bias))
    given = (weight.reshape(-1), bias.reshape(-1)) if per_head else (weight[0], bias[0])
    got = layer_norm_net(x, (heads, dim), *given)["y"].reshape(5, heads, dim)
    for head in range(heads):
        part = np.ascontiguousarray(x.reshape(5, heads, dim)[:, head])
        want = layer_norm_net(part, (dim,), weight[head], bias[head])["y"]
        assert_same_bits(np.ascontiguousarray(got[:, head]), want)


def test_learned_positions() -> None:
    """embed gathers the rows of a table by position as well as by token."""
    table = numbers(80, 24)
    net = Net()
    rows = net.rows(numbers(16, 24))
    w = net.weight(table)
    learned = net.node("embed", "learned", [("tokens", net.positions), ("w", w)])[0]
    program = net.finish(net.node("add", "sum", [("a", rows), ("b", learned)])[0])
    for level in LEVELS:
        plan = compiled(program, net.source, isa=level)
        run_rows(plan, [3, 1, 4], first=61)
        assert_same_bits(value(plan, "learned", 3), table[61:64])
        with pytest.raises(sterna.ArgumentError, match="position 80 is beyond the 80 that the model has learned"):
            run_rows(plan, [3, 1, 4], first=78)


@pytest.mark.parametrize("size", SIZES)
def test_add_mul_scale(size: int) -> None:
    """Plain float32 arithmetic: numpy's, bit for bit."""
    a, b = numbers(7, size), numbers(7, size)[::-1].copy()
    a[0, 0], b[0, 0] = np.inf, -np.inf
    a[1] = 1e-42
    b[2] = np.float32(3e38)
    a[2] = b[2]
    weight, single = numbers(1, size)[0], np.array([0.37], np.float32)
    net = Net()
    x, y = net.any_rows(a), net.any_rows(b, "y")
    w, s = net.weight(weight), net.weight(single, shape=(1,))
    names = []
    for op in ("add", "mul"):
        for role, operand in (("rows", y), ("weight", w), ("single", s)):
            names.append(f"{op}.{role}")
            last = net.node(op, names[-1], [("a", x), ("b", operand)])[0]
    column = net.any_rows(b[:, :1], "column")
    net.node("mul", "mul.column", [("a", x), ("b", column)])
    names += ["mul.column", "scale"]
    net.node("scale", "scale", [("x", x)], factor=-1.7)
    net.node("clamp", "clamp", [("x", x)], limit=0.7)
    names.append("clamp")
    got = every_level(net, last, names, 7)
    assert_same_bits(got["clamp"], np.clip(a, -np.float32(0.7), np.float32(0.7)))
    with np.errstate(all="ignore"):
        for role, operand in (("rows", b), ("weight", weight), ("single", single)):
            assert_same_bits(got[f"add.{role}"], a + operand, role)
            assert_same_bits(got[f"mul.{role}"], a * operand, role)
        assert_same_bits(got["mul.column"], a * b[:, :1], "one element per row")
        assert_same_bits(got["scale"], a * np.float32(-1.7))


def reference_activation(x: Array, kind: str) -> Array:
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        if kind == "silu":
            return x / (1 + np.exp(-x))
        if kind == "sigmoid":
            return 1 / (1 + np.exp(-x))
        if kind == "gelu":
            return 0.5 * x * np.vectorize(math.erfc)(-x / np.sqrt(2))
        if kind == "tanh":
            return np.tanh(x)
        if kind == "softplus":
            return np.logaddexp(0, x)
        if kind == "relu":
            return np.maximum(x, 0)
        if kind == "gelu_tanh":
            # 1 + tanh(u) written as 2 / (1 + e^-2u), which loses nothing where the tanh is close to -1.
            return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) ** 2


def wide_range() -> Floats:
    positive = np.concatenate([2.0 ** np.linspace(-120, 14, 3000), np.linspace(0, 100, 3001), [1e4, 88.0, 87.3, 87.4]])
    return np.concatenate([positive, -positive]).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_against_float64(kind: str) -> None:
    x = wide_range()
    x = np.resize(x, (len(x) // 100 + 1, 100))
    net = Net()
    last = net.node("activation", "y", [("x", net.rows(x))], kind=kind)[0]
    got = every_level(net, last, ["y"], len(x), max_tokens=len(x))["y"]
    want = reference_activation(x, kind)
    assert np.isfinite(got).all()
    # An error in the argument of the exponential is one in its result as often as the argument is large; beyond
    # e^-88 the exponential stays where it is, which leaves 1e-35 of what should be nothing.
    wide = x.astype(np.float64)
    arguments = {"gelu": wide**2 / 2, "gelu_tanh": 4 * np.abs(1.6 * (wide + 0.0447 * wide**3))}
    argument = np.minimum(arguments.get(kind, np.abs(wide) / 2), 360)
    roundings = 1 if kind in ("relu", "relu2") else 4 + np.where(x < 0, argument, 0)
    if kind == "gelu":  # the polynomial's own
        roundings = roundings + 8
    error = np.abs(got - want)
    print("largest error in ulp where the result is no tail:", (error / np.maximum(np.abs(want), 1e-30) / EPS)[x > -5].max())
    assert (error <= roundings * EPS * np.abs(want) + 1e-33).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_glu_is_activation_times_up(kind: str, size: int) -> None:
    gate, up = numbers(9, size), numbers(9, size)[::-1].copy()
    gate[0, 0], gate[1, 0], gate[2, 0], up[3, 0] = np.inf, -np.inf, np.nan, np.nan
    gate[4], gate[5] = 1e4, -1e4
    net = Net()
    g, u = net.any_rows(gate, "gate"), net.any_rows(up, "up")
    last = net.node("glu", "glu", [("gate", g), ("up", u)], activation=kind)[0]
    net.node("activation", "activation", [("x", g)], kind=kind)
    got = every_level(net, last, ["glu", "activation"], 9)
    activated = got["activation"]
    with np.errstate(all="ignore"):
        assert_same_bits(got["glu"], activated * up)
    assert activated[0, 0] == (1 if kind in ("sigmoid", "tanh") else np.inf)
    # -inf * e^-inf has no value; a number there would hide that something overflowed. relu cuts it off, sigmoid and softplus
    # end where the exponential does.
    if kind == "tanh":
        assert activated[1, 0] == -1 and (activated[5] == -1).all()
    else:
        ends = kind in ("relu", "relu2", "sigmoid", "softplus")
        assert 0 <= activated[1, 0] < 2e-38 if ends else not np.isfinite(activated[1, 0])
        assert (np.abs(activated[5]) <= 1e-30).all()
    assert np.isnan(activated[2, 0]) and np.isnan(got["glu"][3, 0])
    assert np.isfinite(np.delete(activated, [0, 1, 2], axis=0)).all()


ROPES = [
    {"theta": 10000.0},
    {"theta": 500000.0, "scaling": "linear", "factor": 4.0},
    {"theta": 10000.0, "scaling": "yarn", "factor": 8.0, "original_context": 2048, "attention_factor": 1.2},
]


@pytest.mark.parametrize("style", ["halves", "interleaved"])
@pytest.mark.parametrize(("heads", "dim", "rotary"), [(1, 2, 2), (3, 30, 30), (2, 32, 20), (2, 64, 64), (1, 100, 66)])
@pytest.mark.parametrize("spec", range(len(ROPES)))
def test_rope(style: str, heads: int, dim: int, rotary: int, spec: int) -> None:
    positions = np.array([0, 1, 2, 63, 1000, 4095, 131071, 1_000_003, 16_000_001], np.int32)
    x = numbers(len(positions), heads * dim)
    factors = np.random.default_rng(SEED).uniform(0.5, 8, rotary // 2).astype(np.float32)
    net = Net()
    shaped = net.node("reshape", "heads", [("x", net.rows(x))], dims=f"{heads}, {dim}")[0]
    attributes = {"rotary_dim": rotary, "style": style, **ROPES[spec]}
    names = ["plain", "factors"] if spec == 0 else ["plain"]
    turned = net.node("rope", "plain", [("x", shaped), ("positions", net.positions)], **attributes)[0]
    if spec == 0:
        operands = [("x", shaped), ("positions", net.positions), ("factors", net.weight(factors))]
        net.node("rope", "factors", operands, **attributes)
    program = net.finish(net.node("reshape", "flat", [("x", turned)], dims=f"{heads * dim}")[0])
    nodes = {node.name: node for node in program.nodes()}
    results = []
    for level in LEVELS:
        plan = compiled(program, net.source, isa=level)
        tables = [[0] * (int(positions.max()) // 64 + 1)]
        plan.reserve_pages(1)
        tokens = np.arange(len(positions), dtype=np.int32)
        plan.run(tokens, positions, np.zeros(len(positions), np.int32), tables, np.zeros(0, np.int32))
        results.append({name: value(plan, name, len(positions)) for name in names})
    for name in names:
        for other in results[1:]:
            assert_same_bits(other[name], results[0][name], name)
        divisors = factors.tolist() if name == "factors" else []
        frequencies = np.array(_core.rope_inverse_frequencies(nodes[name], "", divisors), np.float32)
        angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
        magnitude = ROPES[spec].get("attention_factor", 1.0)
        cosines, sines = np.cos(angles)[:, None] * magnitude, np.sin(angles)[:, None] * magnitude
        want = x.astype(np.float64).reshape(-1, heads, dim).copy()
        half = rotary // 2
        first, second = (slice(0, half), slice(half, rotary)) if style == "halves" else (slice(0, rotary, 2), slice(1, rotary, 2))
        a, b = want[..., first].copy(), want[..., second].copy()
        want[..., first], want[..., second] = a * cosines - b * sines, b * cosines + a * sines
        got = results[0][name].reshape(want.shape)
        bound = np.zeros_like(want)
        bound[..., first] = bound[..., second] = 5 * EPS * magnitude * (np.abs(a) + np.abs(b))
        assert (np.abs(got - want) <= bound).all(), name


def test_views_and_copies() -> None:
    """split, concat and reshape move nothing but names; odd offsets meet kernels that read 16 at a time."""
    x = numbers(4, 50)
    net = Net()
    rows = net.rows(x)
    parts = net.node("split", "parts", [("x", rows)], sizes="7, 30, 13")
    joined = net.node("concat", "joined", [("x", parts[2]), ("x", parts[0]), ("x", parts[1])])[0]
    doubled = net.node("scale", "doubled", [("x", parts[1])], factor=2.0)[0]
    weight = net.weight(numbers(8, 30))
    product = net.node("linear", "product", [("x", parts[1]), ("w", weight)])[0]
    got = every_level(net, joined, ["parts", "parts.1", "parts.2", "joined", "doubled", "product"], 4)
    assert_same_bits(got["parts"], x[:, :7].copy())
    assert_same_bits(got["parts.1"], x[:, 7:37].copy())
    assert_same_bits(got["parts.2"], x[:, 37:].copy())
    assert_same_bits(got["joined"], np.concatenate([x[:, 37:], x[:, :37]], axis=1))
    assert_same_bits(got["doubled"], 2 * x[:, 7:37])
    assert (doubled, product) != (-1, -1)
    want = x[:, 7:37].astype(np.float64) @ numbers(8, 30).astype(np.float64).T
    assert np.abs(got["product"] - want).max() <= 30 * EPS * np.abs(x).max() * np.abs(numbers(8, 30)).max() * 30


def test_parts_of_heads() -> None:
    """split and concat of rank 3 take their part of every head."""
    x = numbers(4, 60)
    net = Net()
    heads = net.node("reshape", "heads", [("x", net.rows(x))], dims="3, 20")[0]
    parts = net.node("split", "parts", [("x", heads)], sizes="5, 11, 4")
    joined = net.node("concat", "joined", [("x", parts[1]), ("x", parts[2]), ("x", parts[1])])[0]
    flat = net.node("reshape", "flat", [("x", joined)], dims="78")[0]
    got = every_level(net, flat, ["parts", "parts.1", "parts.2", "joined"], 4)
    cubes = x.reshape(4, 3, 20)
    assert_same_bits(got["parts"].reshape(4, 3, 5), cubes[..., :5].copy())
    assert_same_bits(got["parts.2"].reshape(4, 3, 4), cubes[..., 16:].copy())
    assert_same_bits(got["joined"].reshape(4, 3, 26), np.concatenate([cubes[..., 5:], cubes[..., 5:16]], axis=2))

"""Linear layers: every format on every level is the contract of csrc/cpu/kernels/matmul.h, bit for bit, whatever the company."""

from __future__ import annotations

from functools import cache

import matmul_contract
import numpy as np
import pytest
from kernel_cases import (
    DENSE,
    FORMATS,
    LEVELS,
    WEIGHT_FORMATS,
    Bytes,
    Floats,
    Net,
    as_bytes,
    assert_same_bits,
    compiled,
    dequantized,
    random_weights,
    run_rows,
    value,
)
from sterna import _core

SEED = 21
FEATURES = [1, 15, 16, 17, 33, 48]
NUM_ROWS = [1, 2, 3, 7, 8, 9, 17, 40]
RULES = ["auto", "int8_per_token"]
TERNARY = ["TQ1_0", "TQ2_0"]


def k_of(format: str, blocks: int) -> int:
    return blocks * max(FORMATS[format].block_size, 32)


def random_rows(m: int, k: int, rng: np.random.Generator) -> Floats:
    """Normal numbers, each row and column of its own magnitude."""
    x = rng.standard_normal((m, k)) * 2.0 ** rng.integers(-6, 7, (m, 1)) * 2.0 ** rng.integers(-3, 4, (1, k))
    return x.astype(np.float32)


def uniform_ternary(format: str, n: int, k: int, scale: float, rng: np.random.Generator) -> Bytes:
    """A ternary tensor with the same scale in every block."""
    data = random_weights(format, n, k, rng).reshape(-1, FORMATS[format].block_bytes)
    data[:, -2:] = np.array([scale], np.float16).view(np.uint8)
    return data.reshape(-1)


class Layers:
    """Linear layers of one format, k and several numbers of features over the same rows."""

    def __init__(self, format: str, x: Floats, weights: dict[int, Bytes]) -> None:
        net = Net()
        rows = net.any_rows(x)
        last = -1
        for n, data in weights.items():
            w = net.weight(data, format, (n, x.shape[1]))
            for rule in RULES:
                last = net.node("linear", f"{rule}.{n}", [("x", rows), ("w", w)], activation=rule)[0]
        self.program = net.finish(last)
        self.source = net.source

    def results(self, plan: _core.CpuPlan, tokens: list[int]) -> dict[str, Floats]:
        run_rows(plan, tokens)
        return {name: value(plan, name, len(tokens)) for name in plan.value_names if name.split(".")[0] in RULES}


@cache
def case(format: str) -> tuple[Floats, dict[int, Bytes], Layers]:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    k = k_of(format, 3)
    x = random_rows(max(NUM_ROWS), k, rng)
    weights = {n: random_weights(format, n, k, rng) for n in FEATURES}
    return x, weights, Layers(format, x, weights)


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_contract(format: str, level: str) -> None:
    x, weights, layers = case(format)
    plan = compiled(layers.program, layers.source, isa=level)
    results = layers.results(plan, list(range(len(x))))
    for n, data in weights.items():
        for rule in RULES:
            want = matmul_contract.linear(x, data, format, n, rule)
            assert_same_bits(results[f"{rule}.{n}"], want, f"{rule}, n = {n}")


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_rows_do_not_depend_on_their_company(format: str, level: str) -> None:
    x, _, layers = case(format)
    plan = compiled(layers.program, layers.source, isa=level, threads=2)
    together = layers.results(plan, list(range(len(x))))
    for m in NUM_ROWS[:-1]:
        first = min(2 * m, len(x) - m)
        for name, got in layers.results(plan, list(range(first, first + m))).items():
            assert_same_bits(got, together[name][first : first + m], f"{name}, {m} rows")


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_error_against_float64(format: str) -> None:
    """A guard for the contract itself: the sum of rounded activations times weights, up to the rounding of its terms."""
    x, weights, layers = case(format)
    plan = compiled(layers.program, layers.source)
    results = layers.results(plan, list(range(len(x))))
    k = x.shape[1]
    for n, data in weights.items():
        w = dequantized(data, format, n, k).astype(np.float64)
        for rule in RULES:
            rounded = x.astype(np.float64)
            block = matmul_contract.activation_block(format, rule, k)
            if block:
                codes, scales = matmul_contract.quantize(x, block)
                rounded = codes * np.repeat(scales.astype(np.float64), block, axis=1)
                # Half a step, and the rounding of x * (127 / largest).
                step = np.repeat(scales, block, axis=1)
                assert (np.abs(rounded - x) <= step * 0.50001).all()
            # Minimums are a term of their own, which may be larger than the sum with the codes.
            terms = np.abs(rounded) @ np.abs(w).T + np.abs(rounded).sum(axis=1)[:, None] * np.abs(w).max()
            roundings = 3 * k if block == 0 else 3 * (k // min(block, FORMATS[format].group_size, 32)) + 8
            error = np.abs(results[f"{rule}.{n}"] - rounded @ w.T)
            assert (error <= roundings * 2.0**-24 * terms).all(), f"{rule}, n = {n}"


@pytest.mark.parametrize("format", TERNARY)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [1.0, -0.37])
def test_bit_linear(format: str, level: str, scale: float) -> None:
    """One scale for the weights and one for each row: an integer sum and two multiplications, nothing else."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    n, k, m = 33, 768, 10
    x = random_rows(m, k, rng)
    data = uniform_ternary(format, n, k, scale, rng)
    layers = Layers(format, x, {n: data})
    plan = compiled(layers.program, layers.source, isa=level)
    got = layers.results(plan, list(range(m)))[f"int8_per_token.{n}"]
    ternary = (dequantized(data, format, n, k) / np.float32(np.float16(scale))).astype(np.int64)
    largest = np.abs(x).max(axis=1, keepdims=True)
    codes = np.rint(x * (np.float32(127) / largest)).astype(np.int64)
    want = (codes @ ternary.T).astype(np.float32) * (np.float32(np.float16(scale)) * (largest / np.float32(127)))
    assert_same_bits(got, want)


def test_ternary_formats_agree() -> None:
    """The same ternary numbers at 1.6 and at 2 bits give the same sums."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    n, k, m = 17, 512, 9
    x = random_rows(m, k, rng)
    one = uniform_ternary("TQ1_0", n, k, 0.5, rng)
    numbers = dequantized(one, "TQ1_0", n, k) / np.float32(0.5)
    # TQ2_0: byte 32 h + i of a block holds the elements 128 h + 32 l + i in its bits 2 l, 2 l + 1.
    codes = (numbers + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    packed = sum(codes[:, :, shift] << (2 * shift) for shift in range(4)).reshape(-1, 64)
    scales = np.broadcast_to(np.array([0.5], np.float16).view(np.uint8), (len(packed), 2))
    two = np.concatenate([packed, scales], axis=1).astype(np.uint8).reshape(-1)
    assert_same_bits(dequantized(two, "TQ2_0", n, k), dequantized(one, "TQ1_0", n, k))
    results = []
    for format, data in (("TQ1_0", one), ("TQ2_0", two)):
        layers = Layers(format, x, {n: data})
        results.append(layers.results(compiled(layers.program, layers.source), list(range(m))))
    for name, first in results[0].items():
        assert_same_bits(first, results[1][name], name)


def unusual_rows(k: int, rng: np.random.Generator) -> Floats:
    x = rng.standard_normal((12, k)).astype(np.float32)
    x[0] = 0
    x[1] = 1e-41  # subnormal
    x[2] *= 1e30
    x[3, 5] = np.nan
    x[4, k - 1] = np.inf
    x[5, 0] = -np.inf
    x[6] = 0.0
    x[6, 3] = -1e-38
    x[7] = np.float32(3.4e38) * np.sign(x[7])
    x[8] *= 1e-30
    x[9, : k // 2] = 0
    x[10] = -0.0
    x[11, [2, k - 3]] = np.nan, np.inf
    return x


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_unusual_activations(format: str) -> None:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    n, k = 17, k_of(format, 2)
    x = unusual_rows(k, rng)
    data = random_weights(format, n, k, rng)
    layers = Layers(format, x, {n: data})
    for level in LEVELS:
        got = layers.results(compiled(layers.program, layers.source, isa=level), list(range(len(x))))
        for rule in RULES:
            y = got[f"{rule}.{n}"]
            assert_same_bits(y, matmul_contract.linear(x, data, format, n, rule), f"{level}, {rule}")
            assert np.isnan(y[3]).all() and np.isnan(y[11]).all()
            assert not np.isfinite(y[4]).any() and not np.isfinite(y[5]).any()
            assert (y[0] == 0).all() and (y[10] == 0).all()
            ordinary = y[[2, 8, 9]]
            assert np.isfinite(ordinary).all()


@pytest.mark.parametrize("level", LEVELS)
def test_folded_forms_are_their_parts(level: str) -> None:
    """norm, bias, glu, residual and merged weights inside a linear node: the same bits as the nodes one by one."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    k, n, m = 256, 40, 19
    net = Net()
    x = net.rows(random_rows(m, k, rng))
    residual = net.rows(random_rows(m, n, rng), "residual")
    norm = net.weight(rng.standard_normal(k))
    a, b, c = (net.weight(random_weights(f, n, k, rng), f, (n, k)) for f in ("Q4_K", "Q6_K", "Q4_0"))
    native, dense = (net.weight(random_weights(f, n, k, rng), f, (n, k)) for f in ("IQ2_S", "BF16"))
    biases = [net.weight(rng.standard_normal(n)) for _ in range(3)]

    def emit(op: str, name: str, *inputs: tuple[str, int], **attributes: object) -> int:
        return net.node(op, name, list(inputs), **attributes)[0]

    def linear(name: str, source: int, w: int, bias: int | None = None, **attributes: object) -> int:
        operands = [("x", source), ("w", w)] + ([] if bias is None else [("bias", bias)])
        return emit("linear", name, *operands, **attributes)

    normed = emit("rms_norm", "normed", ("x", x), ("w", norm), eps=1e-5)
    pairs = []
    folded = [("x", x), ("norm", norm)]
    for name, w in (("a", a), ("c", c), ("native", native), ("dense", dense)):
        linear(f"{name}.alone", normed, w)
        emit("linear", f"{name}.folded", *folded, ("w", w), eps=1e-5)
        pairs.append((f"{name}.folded", f"{name}.alone"))
    # Weights of three activation rules behind one norm, with biases.
    for i, w in enumerate((a, c, dense)):
        linear(f"merged.part{i}", normed, w, biases[i])
    operands = [("w", w) for w in (a, c, dense)] + [("bias", bias) for bias in biases]
    net.node("linear", "merged", [*folded, *operands], eps=1e-5)
    pairs += [("merged", "merged.part0"), ("merged.1", "merged.part1"), ("merged.2", "merged.part2")]
    for kind in ("silu", "gelu_tanh", "relu2"):
        for name, gate, up in (("k", a, b), ("native", native, b), ("natives", native, native)):
            parts = [linear(f"{kind}.{name}.{role}", normed, w, bias) for role, w, bias in
                     (("gate", gate, biases[0]), ("up", up, biases[1]))]  # fmt: skip
            emit("glu", f"{kind}.{name}.alone", ("gate", parts[0]), ("up", parts[1]), activation=kind)
            operands = [("w", gate), ("w", up), ("bias", biases[0]), ("bias", biases[1])]
            emit("linear", f"{kind}.{name}.folded", *folded, *operands, eps=1e-5, glu=kind)
            pairs.append((f"{kind}.{name}.folded", f"{kind}.{name}.alone"))
    for name, bias in (("biased", biases[2]), ("plain", None)):
        y = linear(f"{name}.linear", x, b, bias, activation="int8_per_token")
        last = emit("add", f"{name}.alone", ("a", residual), ("b", y))
        operands = [("x", x), ("w", b), ("residual", residual)] + ([] if bias is None else [("bias", bias)])
        emit("linear", f"{name}.folded", *operands, activation="int8_per_token")
        pairs.append((f"{name}.folded", f"{name}.alone"))
    program = net.finish(last)
    for m_now in (1, m):
        plan = compiled(program, net.source, isa=level, threads=2)
        run_rows(plan, range(m_now))
        for got, want in pairs:
            assert_same_bits(value(plan, got, m_now), value(plan, want, m_now), f"{got}, {m_now} rows")


@pytest.mark.parametrize("format", ["F32", "Q4_0", "Q6_K", "TQ1_0"])
def test_large_k(format: str) -> None:
    """Sums over a long row stay exact: all codes at their largest, all of one sign."""
    n, k, m = 16, 2048 if format == "F32" else 32768, 2
    info = FORMATS[format]
    largest = {"F32": b"\x00\x00\x80\x3f", "Q4_0": b"\x00\x3c" + b"\x00" * 16, "TQ1_0": b"\xff" * 52 + b"\x00\x3c",
               "Q6_K": b"\x00" * 192 + b"\x80" * 16 + b"\x00\x3c"}[format]  # fmt: skip
    assert len(largest) == info.block_bytes
    data = np.tile(np.frombuffer(largest, np.uint8), n * k // info.block_size)
    x = np.full((m, k), 127, np.float32)
    layers = Layers(format, x, {n: data})
    for level in LEVELS:
        got = layers.results(compiled(layers.program, layers.source, isa=level), list(range(m)))
        for rule in RULES:
            assert_same_bits(got[f"{rule}.{n}"], matmul_contract.linear(x, data, format, n, rule), f"{level}, {rule}")


def test_dense_formats_are_read_as_they_are() -> None:
    """One row with a single 1 picks a column of the weights, subnormal halves included."""
    k, n = 64, 16
    rng = np.random.default_rng(SEED)
    halves = rng.integers(0, 0x7C00, (n, k), dtype=np.uint16)
    halves[:, 1] = np.arange(n)
    weights = {"F16": as_bytes(halves), "BF16": as_bytes(halves), "F32": as_bytes(rng.standard_normal((n, k)).astype(np.float32))}
    for format in DENSE:
        x = np.eye(k, dtype=np.float32)
        layers = Layers(format, x, {n: weights[format]})
        for level in LEVELS:
            got = layers.results(compiled(layers.program, layers.source, isa=level), list(range(k)))[f"auto.{n}"]
            assert_same_bits(got, np.ascontiguousarray(dequantized(weights[format], format, n, k).T), level)

"""Matrices of every format on a GPU, against their definition in float64; a row has the same bits in any company."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_plans import needs_cuda
from kernel_cases import (
    FORMATS,
    WEIGHT_FORMATS,
    Floats,
    Net,
    assert_same_bits,
    dequantized,
    random_weights,
    run_rows,
    value,
)
from sterna import _core

pytestmark = needs_cuda

SEED = 33
FEATURES = [1, 33, 48]
ROWS = 19
TERNARY = ["TQ1_0", "TQ2_0"]
# Of the sum of the products' magnitudes: half floats have 11 bits, float sums 24.
HALF_ERROR, FLOAT_ERROR = 2.0**-10, 1e-5


def rounded_to_int8(x: Floats) -> np.ndarray:
    """What BitNet multiplies: each row as codes from -127 to 127 times one scale, in float64."""
    scale = (np.abs(x).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    return np.rint(x / scale).astype(np.float64) * scale


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_matrices(format: str) -> None:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    k = 3 * max(FORMATS[format].block_size, 32)
    x = (rng.standard_normal((ROWS, k)) * 2.0 ** rng.integers(-6, 7, (ROWS, 1))).astype(np.float32)
    net = Net()
    rows = net.rows(x)
    rules = ["auto", "int8_per_token"] if format in TERNARY else ["auto"]
    data = {n: random_weights(format, n, k, rng) for n in FEATURES}
    last = -1
    for n in FEATURES:
        w = net.weight(data[n], format, (n, k))
        for rule in rules:
            last = net.node("linear", f"{rule}.{n}", [("x", rows), ("w", w)], activation=rule)[0]
    program = net.finish(last)
    plan = _core.compile_cuda(program, net.source, max_tokens=32, max_outputs=1, keep_values=True, threads=1)
    run_rows(plan, range(ROWS))
    found = {(rule, n): value(plan, f"{rule}.{n}", ROWS) for rule in rules for n in FEATURES}
    for (rule, n), y in found.items():
        w = dequantized(data[n], format, n, k).astype(np.float64)
        operand, error = (x.astype(np.float64), HALF_ERROR) if rule == "auto" else (rounded_to_int8(x), FLOAT_ERROR)
        bound = error * (np.abs(operand) @ np.abs(w).T)
        assert (np.abs(y - operand @ w.T) <= bound).all(), f"{rule}, n = {n}"
    for few in ([4], [18, 0, 4]):
        run_rows(plan, few)
        for (rule, n), y in found.items():
            assert_same_bits(value(plan, f"{rule}.{n}", len(few)), y[few], f"{rule}, n = {n}, rows {few}")

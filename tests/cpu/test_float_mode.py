"""Results do not depend on the floating-point mode of the thread that calls, and that mode is left alone."""

from __future__ import annotations

import float_control
import numpy as np
import pytest
from float_control import FLUSH_TO_ZERO, ROUND_UP, SUBNORMALS_ARE_ZERO
from kernel_cases import LEVELS, Floats, Net, assert_same_bits, compiled, random_weights, run_rows, value
from sterna import _core

SEED = 61

pytestmark = pytest.mark.skipif(not float_control.available, reason="sets MXCSR through glibc")

MODES = {
    "flush-to-zero": FLUSH_TO_ZERO | SUBNORMALS_ARE_ZERO,
    "round-up": ROUND_UP,
}


def sensitive_program() -> tuple[_core.Program, dict[str, np.ndarray], list[str]]:
    """Every kind of step on numbers of which many are subnormal, or become so."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    k, m = 64, 5
    net = Net()
    x = net.rows(rng.standard_normal((m, k)) * 1e-38)
    names = []

    def emit(op: str, name: str, *inputs: tuple[str, int], **attributes: object) -> int:
        names.append(name)
        return net.node(op, name, list(inputs), **attributes)[0]

    tiny = net.weight(rng.standard_normal(k) * 1e-2)
    small = emit("mul", "product", ("a", x), ("b", tiny))
    emit("add", "sum", ("a", x), ("b", small))
    emit("scale", "scaled", ("x", x), factor=0.01)
    emit("activation", "silu", ("x", x), kind="silu")
    emit("glu", "glu", ("gate", x), ("up", x), activation="gelu_tanh")
    norm = net.weight(np.linspace(1e-41, 1e-38, k))
    ordinary = net.rows(rng.standard_normal((m, k)), "ordinary")
    normed = emit("rms_norm", "normed", ("x", ordinary), ("w", norm), eps=1e-6)
    last = emit("linear", "dense", ("x", x), ("w", net.weight(rng.standard_normal((24, k)))))
    for format in ("Q4_0", "Q8_0", "MXFP4", "F16"):
        weights = random_weights(format, 24, k, rng).copy()
        if format == "MXFP4":
            weights.reshape(-1, 17)[:, 0] = np.arange(len(weights) // 17) % 3  # 2^-128, 2^-127, 2^-126
        w = net.weight(weights, format, (24, k))
        emit("linear", f"{format}.ordinary", ("x", ordinary), ("w", w))
        emit("linear", f"{format}.subnormal", ("x", normed), ("w", w))
    heads = [("q", ordinary), ("k", ordinary), ("v", x)]
    shaped = [(role, net.node("reshape", f"{role}.heads", [("x", rows)], dims="4, 16")[0]) for role, rows in heads]
    turned = [
        (role, net.node("rope", f"{role}.rope", [("x", y), ("positions", net.positions)], theta=1e4, rotary_dim=16)[0])
        for role, y in shaped[:2]
    ]
    emit("attention", "attention", *turned, shaped[2], layer=0, scale=0.25)
    return net.finish(last), net.source, names


def results(plan: _core.CpuPlan, names: list[str]) -> dict[str, Floats]:
    run_rows(plan, range(5))
    return {name: value(plan, name, 5) for name in names}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [1, 3])
def test_callers_mode_changes_nothing(mode: str, threads: int) -> None:
    program, source, names = sensitive_program()
    tiny = np.full(1, 1e-40, np.float32)
    for level in LEVELS:
        for kv_dtype in ("f16", "f32"):
            options = {"isa": level, "threads": threads, "kv_dtype": kv_dtype}
            plan = compiled(program, source, **options)
            want = results(plan, names)
            with float_control.float_control(MODES[mode]):
                before = float_control.control()
                if mode == "flush-to-zero":
                    assert (tiny * np.float32(1.0) == 0).all(), "the mode is not set"
                got = results(plan, names)
                own = results(compiled(program, source, **options), names)
                after = float_control.control()
            assert before == after != float_control.control()
            for name in names:
                assert_same_bits(got[name], want[name], f"{level}, {name}")
                assert_same_bits(own[name], want[name], f"{level}, {name}, compiled in this mode")


def test_numbers_are_sensitive() -> None:
    """The case above would be none if nothing were subnormal."""
    program, source, names = sensitive_program()
    values = results(compiled(program, source, kv_dtype="f32"), names)
    least = np.finfo(np.float32).smallest_normal
    for name in ("product", "sum", "scaled", "silu", "dense", "normed", "MXFP4.ordinary", "attention"):
        assert ((values[name] != 0) & (np.abs(values[name]) < least)).any(), name

"""Recurrent layers: against the interpreter, and the same bits on every level, in every chunk, in any company."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_cases import LEVELS, Floats, Net, as_bytes, assert_same_bits, compiled, value
from sterna import _core
from sterna.errors import ArgumentError
from sterna.interpreter import Interpreter

TOKENS = 150
# Sums of a few hundred terms in float32, in another order than the interpreter's.
TOLERANCE = 2e-6


def conv_net(
    table: Floats, rng: np.random.Generator, channels: int, kernel: int, biased: bool
) -> tuple[_core.Program, Net]:
    net = Net()
    x = net.rows(table)
    operands = [("x", x), ("w", net.weight(rng.standard_normal((channels, kernel))))]
    if biased:
        operands.append(("bias", net.weight(rng.standard_normal(channels))))
    return net.finish(net.node("short_conv", "y", operands, layer=0)[0]), net


def heads(net: Net, name: str, x: int, dims: str) -> int:
    return net.node("reshape", name, [("x", x)], dims=dims)[0]


def scan_net(
    table: Floats, rng: np.random.Generator, num_heads: int, head_dim: int, groups: int, n: int, per_channel: bool
) -> tuple[_core.Program, Net]:
    net = Net()
    sizes = [num_heads * head_dim, num_heads, groups * n, groups * n]
    x, dt, b, c = net.node("split", "parts", [("x", net.rows(table))], sizes=", ".join(map(str, sizes)))
    dt = net.node("activation", "step", [("x", dt)], kind="softplus")[0]
    operands = [("x", heads(net, "xh", x, f"{num_heads}, {head_dim}")), ("dt", dt)]
    operands += [("b", heads(net, "bh", b, f"{groups}, {n}")), ("c", heads(net, "ch", c, f"{groups}, {n}"))]
    rates = -np.exp(rng.standard_normal((num_heads, n) if per_channel else num_heads))
    operands += [("a", net.weight(rates)), ("d", net.weight(rng.standard_normal((num_heads, 1))))]
    return net.finish(net.node("ssm_scan", "y", operands, layer=0)[0]), net


def delta_net(
    table: Floats, rng: np.random.Generator, key_heads: int, value_heads: int, key_dim: int, value_dim: int
) -> tuple[_core.Program, Net]:
    net = Net()
    sizes = [key_heads * key_dim, key_heads * key_dim, value_heads * value_dim, value_heads, value_heads]
    q, k, v, g, beta = net.node("split", "parts", [("x", net.rows(table))], sizes=", ".join(map(str, sizes)))
    q, k = (heads(net, name, part, f"{key_heads}, {key_dim}") for name, part in (("qh", q), ("kh", k)))
    k = net.node("rms_norm", "unit", [("x", k)], eps=1e-6)[0]
    k = net.node("scale", "short", [("x", k)], factor=key_dim**-0.5)[0]
    g = net.node("activation", "rate", [("x", g)], kind="softplus")[0]
    g = net.node("scale", "decay", [("x", g)], factor=-1.0)[0]
    beta = net.node("activation", "share", [("x", beta)], kind="sigmoid")[0]
    operands = [("q", q), ("k", k), ("v", heads(net, "vh", v, f"{value_heads}, {value_dim}")), ("g", g), ("beta", beta)]
    return net.finish(net.node("delta_rule", "y", operands, layer=0)[0]), net


NETS: dict[str, tuple[int, Callable[[Floats, np.random.Generator], tuple[_core.Program, Net]]]] = {
    "conv 4": (200, lambda table, rng: conv_net(table, rng, 200, 4, True)),
    "conv 3, wide": (1100, lambda table, rng: conv_net(table, rng, 1100, 3, False)),
    "mamba 2": (4 * 10 + 4 + 2 * 2 * 20, lambda table, rng: scan_net(table, rng, 4, 10, 2, 20, False)),
    "mamba 2, wide": (3 * 64 + 3 + 2 * 128, lambda table, rng: scan_net(table, rng, 3, 64, 1, 128, False)),
    "mamba": (70 + 70 + 2 * 16, lambda table, rng: scan_net(table, rng, 70, 1, 1, 16, True)),
    "delta": (2 * 2 * 20 + 4 * 70 + 8, lambda table, rng: delta_net(table, rng, 2, 4, 20, 70)),
}


def program_of(name: str) -> tuple[_core.Program, Net]:
    columns, make = NETS[name]
    rng = np.random.default_rng(17)
    return make(rng.standard_normal((TOKENS, columns)).astype(np.float32), rng)


def plan_of(program: _core.Program, net: Net, isa: str = "", threads: int = 1) -> _core.CpuPlan:
    plan = compiled(program, net.source, isa=isa, threads=threads, kv_dtype="f32", max_tokens=2 * TOKENS)
    plan.reserve_pages(8)
    return plan


def run(plan: _core.CpuPlan, first: int, last: int, pages: list[int]) -> Floats:
    """What the layer makes of tokens first .. last - 1, at their positions."""
    rows = np.arange(last - first)
    plan.run(rows + first, rows + first, np.zeros_like(rows), [pages], [])
    return value(plan, "y", len(rows))


def interpreter_of(program: _core.Program, net: Net) -> Interpreter:
    shapes = {value.name: value.shape for value in program.values}
    return Interpreter(program, lambda key: net.source[key].view(np.float32).reshape(shapes[key]), kv_dtype="f32")


def interpreted(interpreter: Interpreter, first: int, last: int) -> Floats:
    interpreter.run(range(first, last))
    return interpreter.values["y"]


@pytest.mark.parametrize("name", list(NETS))
def test_every_level_and_chunk_gives_the_bits_of_one_prefill(name: str) -> None:
    program, net = program_of(name)
    want = interpreted(interpreter_of(program, net), 0, TOKENS)
    base = run(plan_of(program, net, "scalar"), 0, TOKENS, [0, 1, 2])
    assert np.abs(base - want).max() <= TOLERANCE * np.abs(want).max()
    for level in LEVELS:
        for threads in (1, 3):
            plan = plan_of(program, net, level, threads)
            assert_same_bits(run(plan, 0, TOKENS, [0, 1, 2]), base, level)
            for chunk in (1, 64, 70):
                parts = [run(plan, at, min(at + chunk, TOKENS), [4, 3, 5]) for at in range(0, TOKENS, chunk)]
                assert_same_bits(np.concatenate(parts), base, f"{level}, {threads} threads, chunks of {chunk}")


@pytest.mark.parametrize("name", list(NETS))
def test_the_interpreter_goes_on_from_its_state(name: str) -> None:
    program, net = program_of(name)
    parts = interpreter_of(program, net)
    got = np.concatenate([interpreted(parts, *ends) for ends in ((0, 40), (40, 41), (41, 60))])
    assert np.array_equal(got, interpreted(interpreter_of(program, net), 0, 60))
    with pytest.raises(ArgumentError, match="has no state after 20 tokens"):
        parts.run(range(5), positions=range(20, 25))


def test_sequences_do_not_see_each_other_and_a_batch_can_run_again() -> None:
    program, net = program_of("mamba 2")
    plan = plan_of(program, net)
    whole = run(plan, 0, TOKENS, [0, 1, 2])
    run(plan, 0, 40, [0, 1, 2])
    run(plan, 0, 70, [3, 4, 5])
    tokens = np.concatenate([np.arange(40, 60), np.arange(70, 130), np.arange(5)])
    sequences = np.repeat([0, 1, 2], [20, 60, 5])
    positions = tokens
    tables = [[0, 1, 2], [3, 4, 5], [6, 7]]
    want = np.concatenate([whole[40:60], whole[70:130], whole[:5]])
    for _ in range(3):  # the state that it began with is still there
        plan.run(tokens, positions, sequences, tables, [])
        assert_same_bits(value(plan, "y", len(tokens)), want)
    assert_same_bits(run(plan, 60, 100, [0, 1, 2]), whole[60:100])


def test_pages_in_between_may_be_missing() -> None:
    program, net = program_of("delta")
    plan = plan_of(program, net)
    whole = run(plan, 0, TOKENS, [0, 1, 2])
    assert_same_bits(run(plan, 0, 140, [-1, -1, 4]), whole[:140])
    assert_same_bits(run(plan, 140, 150, [-1, -1, 4]), whole[140:])
    run(plan, 0, 128, [-1, 5, 6])
    assert_same_bits(run(plan, 128, 150, [-1, 5, 6]), whole[128:])
    with pytest.raises(ArgumentError, match="page 2 is missing"):
        run(plan, 0, 140, [0, 1, -1])
    with pytest.raises(ArgumentError, match="page 1 is missing"):
        run(plan, 128, 140, [0, -1, 1])


def test_a_state_of_other_tokens_is_an_error() -> None:
    program, net = program_of("conv 4")
    plan = plan_of(program, net)
    run(plan, 0, 70, [0, 1])
    with pytest.raises(ArgumentError, match="page 1 does not hold the state after 69 tokens"):
        run(plan, 69, 75, [0, 1])
    run(plan, 70, 75, [0, 1])
    run(plan, 0, 5, [2])
    with pytest.raises(ArgumentError, match="page 2 does not hold the state after 75 tokens"):
        run(plan, 75, 76, [2, 2])
    with pytest.raises(ArgumentError, match="one after the other, not 75 to 80 in 2 rows"):
        plan.run([1, 2], [75, 80], [0, 0], [[0, 1]], [])


def test_pages_of_states_are_their_own_pool() -> None:
    program, net = program_of("mamba 2")
    plan = plan_of(program, net)
    floats = 4 * 10 * 20
    assert plan.kv_pools == [(-1, 64 + 2 * 4 * floats)]
    assert plan.kv_layout.endswith(" 0:ssm_scan:40x20")
    slot = program.state_slots[0]
    assert (slot.layer, slot.op, slot.rows, slot.columns) == (0, "ssm_scan", 40, 20)
    assert program.kv_slots == []


def test_weights_that_no_number_is_are_refused() -> None:
    program, net = program_of("conv 4")
    name = next(value.name for value in program.values if value.shape == (200, 4))
    bad = net.source[name].view(np.float32).copy()
    bad[7] = np.nan
    with pytest.raises(Exception, match=f"tensor {name} holds a NaN"):
        _core.compile_cpu(program, net.source | {name: as_bytes(bad)})

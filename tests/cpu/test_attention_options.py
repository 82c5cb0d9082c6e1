"""Options of attention: chunks, sinks, ALiBi, a temperature by position, keys and values of another layer."""

from __future__ import annotations

import numpy as np
import pytest
from attention_layer import KV_TYPES, SEED, Attention, Shape, run
from kernel_cases import LEVELS, Net, assert_same_bits, compiled, value
from sterna import _core
from sterna.errors import ArgumentError
from sterna.interpreter import Interpreter

OPTIONS = {
    "chunk 16": Shape(4, 2, 16, 16, chunk=16),
    "chunk 70": Shape(4, 2, 16, 16, chunk=70),
    "chunk 1": Shape(2, 1, 16, 16, chunk=1),
    "sinks": Shape(6, 2, 20, 17, has_sinks=True),
    "sinks in a window": Shape(4, 2, 16, 16, window=20, has_sinks=True),
    "ALiBi": Shape(8, 2, 16, 16, max_alibi_bias=8.0),
    "ALiBi of 6 heads": Shape(6, 3, 16, 20, max_alibi_bias=4.0),
    "temperature": Shape(4, 2, 16, 16, temperature=(0.1, 16, 1)),
    "all": Shape(6, 2, 32, 32, chunk=90, softcap=20.0, has_sinks=True, max_alibi_bias=8.0, temperature=(0.5, 30, 0)),
}


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_against_float64(name: str, kv_dtype: str) -> None:
    """The levels, threads and chunks agree bit for bit."""
    length = 150
    attention = Attention(OPTIONS[name], length)
    got = run(attention.plan(isa="scalar", kv_dtype=kv_dtype), length)
    want = attention.expected(range(length), kv_dtype)
    error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    print("largest relative error of a row:", error.max())
    assert error.max() <= (2e-5 if name == "all" else 4e-6)
    for level in LEVELS:
        for threads, chunk in ((1, 64), (2, 0), (3, 7)):
            plan = attention.plan(isa=level, kv_dtype=kv_dtype, threads=threads)
            assert_same_bits(run(plan, length, chunk, pages=[2, 0, 1]), got, f"{level}, {threads}, {chunk}")
    interpreter = Interpreter(attention.program, lambda weight: floats(attention, weight), kv_dtype=kv_dtype)  # type: ignore[arg-type]
    interpreter.run(range(length))
    assert np.linalg.norm(interpreter.values["y"] - want) <= 1e-6 * np.linalg.norm(want)


def floats(attention: Attention, name: str) -> np.ndarray:
    shape = next(value.shape for value in attention.program.values if value.name == name and value.kind == "weight")
    return attention.source[name].view(np.float32).reshape(shape)


@pytest.mark.parametrize("name", ["sinks", "ALiBi", "all"])
def test_across_spans(name: str) -> None:
    length = 1100
    shape = OPTIONS[name]
    if shape.chunk:
        shape = Shape(6, 2, 32, 32, chunk=1050, has_sinks=True, max_alibi_bias=8.0, temperature=(0.5, 30, 0))
    attention = Attention(shape, length)
    got = run(attention.plan(threads=2, kv_dtype="f32"), length)
    rows = [0, 1023, 1024, 1049, 1050, length - 1]
    want = attention.expected(rows, "f32")
    assert (np.linalg.norm(got[rows] - want, axis=1) / np.linalg.norm(want, axis=1)).max() <= 1e-5
    for level in LEVELS:
        rest = run(attention.plan(isa=level, kv_dtype="f32"), length, 700)
        assert_same_bits(rest, got, level)


def test_a_sink_far_above_and_far_below_the_scores() -> None:
    for sink, share in ((60.0, 0.0), (-1e30, 1.0)):
        attention = Attention(Shape(2, 1, 16, 16, has_sinks=True), 70)
        plain = Attention(Shape(2, 1, 16, 16), 70)
        weight = next(name for name in attention.source if name.startswith("w"))
        attention.source[weight] = np.full(2, sink, np.float32).view(np.uint8)
        got = run(attention.plan(), 70)
        want = run(plain.plan(), 70) * np.float32(share)
        assert np.abs(got - want).max() <= 1e-12


def test_pages_before_a_chunk_may_be_gone() -> None:
    """A pool of chunked layers remembers as much as a window of that length."""
    attention = Attention(Shape(4, 2, 16, 16, chunk=64), 200)
    plan = attention.plan()
    assert [window for window, _ in plan.kv_pools] == [64]
    want = run(attention.plan(), 200)
    first = run(plan, 128)
    assert_same_bits(first, want[:128])
    rows = np.arange(128, 200, dtype=np.int32)
    plan.run(rows, rows, np.zeros(72, np.int32), [[-1, 1, 2, 3]], np.zeros(0, np.int32))
    assert_same_bits(value(plan, "y", 72), want[128:])


def shared_program() -> tuple[_core.Program, dict[str, np.ndarray]]:
    """Two nodes with queries of their own over the keys and values of layer 3; the second sees a window of them."""
    rng = np.random.default_rng(SEED)
    net = Net()
    shaped = {}
    for name, heads in (("q", 4), ("k", 2), ("v", 2), ("q2", 4)):
        rows = net.rows(rng.standard_normal((100, heads * 16)).astype(np.float32), name)
        shaped[name] = net.node("reshape", f"{name}.heads", [("x", rows)], dims=f"{heads}, 16")[0]
    rope = {"theta": 1e4, "rotary_dim": 16, "style": "halves"}
    turned = {name: net.node("rope", f"{name}.rope", [("x", shaped[name]), ("positions", net.positions)], **rope)[0] for name in ("q", "k", "q2")}
    own = [("q", turned["q"]), ("k", turned["k"]), ("v", shaped["v"])]
    first = net.node("attention", "first", own, layer=3, scale=0.25)[0]
    second = net.node("attention", "second", [("q", turned["q2"])], layer=3, scale=0.25, window=30)[0]
    other = net.node("attention", "other", [("q", turned["q2"]), *own[1:]], layer=5, scale=0.25, window=30)[0]
    last = net.node("add", "last", [("a", first), ("b", second)])[0]
    last = net.node("add", "last.2", [("a", last), ("b", other)])[0]
    return net.finish(last), net.source


@pytest.mark.parametrize("fused", [False, True])
def test_keys_and_values_of_another_layer(fused: bool) -> None:
    program, source = shared_program()
    assert [slot.layer for slot in program.kv_slots] == [3, 5]
    text = program.text()
    assert _core.Program.parse(text).text() == text
    plan = compiled(program.fuse() if fused else program, source, max_tokens=100)
    assert sorted(window for window, _ in plan.kv_pools) == [0, 30]
    plan.reserve_pages(2)
    got = []
    for first in range(0, 100, 40):
        rows = np.arange(first, min(first + 40, 100), dtype=np.int32)
        plan.run(rows, rows, np.zeros(len(rows), np.int32), [[0, 1]], np.zeros(0, np.int32))
        assert_same_bits(value(plan, "second", len(rows)), value(plan, "other", len(rows)))
        got.append(value(plan, "second", len(rows)))
    interpreter = Interpreter(program, lambda name: source[name].view(np.float32).reshape(next(v.shape for v in program.values if v.name == name)))  # type: ignore[arg-type]
    interpreter.run(range(100))
    assert np.abs(np.concatenate(got) - interpreter.values["second"]).max() <= 1e-5


def test_keys_and_values_come_before_they_are_shared() -> None:
    program, _ = shared_program()
    lines = program.text().splitlines()
    first, second = (next(i for i, line in enumerate(lines) if f"%{name} " in line) for name in ("first", "second"))
    lines[first], lines[second] = lines[second], lines[first]
    with pytest.raises(ArgumentError, match="layer 3 has no KV slot to share"):
        _core.Program.parse("\n".join(lines) + "\n")

"""Each pass before and after, as text; what must stop it; and that no pass changes a bit of any value that is left."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fake_model import FakeModel
from sterna._core import Program
from sterna.errors import ArgumentError
from sterna.interpreter import Interpreter
from sterna.trace import trace
from test_text_form import random_program

HEADER = """program 1
input %tokens [T]
input %positions [T]
weight @embd [50, 8] F32
weight @n8 [8] F32
weight @n4 [4] F32
weight @n2 [2] F32
weight @w8 [8, 8] F32
weight @v8 [8, 8] F32
weight @w4 [4, 8] F32
weight @b8 [8] F32
weight @b4 [4] F32
weight @w32 [32, 8] F32
weight @f32 [32, 32] F32
weight @q32 [32, 32] Q8_0
weight @d32 [8, 32] F32
weight @r2 [2, 8] F32
weight @e8 [2, 8, 8] F32
"""


def parse(body: str) -> Program:
    """A program over the weights of HEADER, from the lines of its function."""
    kv = "".join(f"kv {layer}: 2 heads, 4, 4\n" for layer in re.findall(r"layer=(\d+)", body))
    lines = "".join(f"  {line.strip()}\n" for line in body.strip().splitlines())
    return Program.parse(f"{HEADER}{kv}function logits\n  %x [T, 8] = embed(tokens=%tokens, w=@embd)\n{lines}")


def lines_of(program: Program) -> list[str]:
    """The function's lines without the embedding."""
    return [line.strip() for line in program.text().split("function logits\n")[1].splitlines()][1:]


TAIL = "%logits [L, 50] = unembed(x=%y, w=@embd)\nreturn %logits"

BEFORE_AFTER = {
    "merge_linears": (
        """%q [T, 8] = linear(x=%x, w=@w8)  # m.py:1
           %s [T, 8] = scale(x=%q) {factor=2.0}
           %k [T, 4] = linear(x=%x, w=@w4)  # m.py:2
           %b [T, 8] = linear(x=%x, w=@w8, bias=@b8)
           %c [T, 4] = linear(x=%x, w=@w4, bias=@b4)
           %t [T, 8] = linear(x=%x, w=@v8) {activation="int8_per_token"}
           %z [T, 16] = concat(x=%k, x=%c, x=%t)
           %y [T, 8] = add(a=%s, b=%b)""",
        """%q [T, 8], %k [T, 4] = linear(x=%x, w=@w8, w=@w4)  # m.py:1
           %s [T, 8] = scale(x=%q) {factor=2.0}
           %b [T, 8], %c [T, 4] = linear(x=%x, w=@w8, w=@w4, bias=@b8, bias=@b4)
           %t [T, 8] = linear(x=%x, w=@v8) {activation="int8_per_token"}
           %z [T, 16] = concat(x=%k, x=%c, x=%t)
           %y [T, 8] = add(a=%s, b=%b)""",
    ),
    "fold_norm": (
        """%n [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-05}
           %a [T, 8], %b [T, 4] = linear(x=%n, w=@w8, w=@w4)
           %y [T, 8] = rms_norm(x=%a, w=@n8) {eps=1e-06}""",
        """%a [T, 8], %b [T, 4] = linear(x=%x, w=@w8, w=@w4, norm=@n8) {eps=1e-05}
           %logits [L, 50] = unembed(x=%a, w=@embd, norm=@n8) {eps=1e-06}
           return %logits""",
    ),
    "fold_rope": (
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %q [T, 8] = scale(x=%x) {factor=2.0}
           %qh [T, 2, 4] = reshape(x=%q) {dims="2, 4"}
           %qn [T, 2, 4] = rms_norm(x=%qh, w=@n4) {eps=1e-06}
           %kn [T, 2, 4] = rms_norm(x=%h, w=@b4) {eps=1e-06}
           %qr [T, 2, 4] = rope(x=%qn, positions=%positions, factors=@n2) {theta=5.0, rotary_dim=4, style="interleaved"}
           %kr [T, 2, 4] = rope(x=%kn, positions=%positions, factors=@n2) {theta=5.0, rotary_dim=4, style="interleaved"}
           %y [T, 8] = attention(q=%qr, k=%kr, v=%h) {layer=0, scale=0.5}""",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %q [T, 8] = scale(x=%x) {factor=2.0}
           %qh [T, 2, 4] = reshape(x=%q) {dims="2, 4"}
           %y [T, 8] = attention(q=%qh, k=%h, v=%h, positions=%positions, factors=@n2, q_norm=@n4, k_norm=@b4) """
        """{layer=0, scale=0.5, eps=1e-06, rope.theta=5.0, rope.rotary_dim=4, rope.style="interleaved"}""",
    ),
    "fold_residual": (
        """%a [T, 8] = linear(x=%x, w=@w8, bias=@b8)
           %s [T, 8] = scale(x=%x) {factor=2.0}
           %b [T, 8] = add(a=%s, b=%a)
           %c [T, 8] = linear(x=%b, w=@v8)
           %y [T, 8] = add(a=%c, b=%b)""",
        """%s [T, 8] = scale(x=%x) {factor=2.0}
           %b [T, 8] = linear(x=%x, w=@w8, bias=@b8, residual=%s)
           %y [T, 8] = linear(x=%b, w=@v8, residual=%b)""",
    ),
    "fold_residual of a norm": (
        """%n [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-05}
           %s [T, 8] = scale(x=%x) {factor=2.0}
           %b [T, 8] = add(a=%s, b=%n)
           %m [T, 8] = rms_norm(x=%b, w=@n8) {eps=1e-05}
           %o [T, 8] = add(a=%m, b=%x)
           %y [T, 8] = mul(a=%o, b=%m)""",
        """%s [T, 8] = scale(x=%x) {factor=2.0}
           %b [T, 8] = rms_norm(x=%x, w=@n8, residual=%s) {eps=1e-05}
           %m [T, 8] = rms_norm(x=%b, w=@n8) {eps=1e-05}
           %o [T, 8] = add(a=%m, b=%x)
           %y [T, 8] = mul(a=%o, b=%m)""",
    ),
    "fold_residual of experts": (
        """%r [T, 2] = linear(x=%x, w=@r2)
           %e [T, 1], %e.1 [T, 1] = route(x=%r) {used=1}
           %m [T, 8] = expert_glu(x=%x, experts=%e, weights=%e.1, gate=@e8, up=@e8, down=@e8)
           %s [T, 8] = scale(x=%x) {factor=2.0}
           %y [T, 8] = add(a=%m, b=%s)""",
        """%r [T, 2] = linear(x=%x, w=@r2)
           %e [T, 1], %e.1 [T, 1] = route(x=%r) {used=1}
           %s [T, 8] = scale(x=%x) {factor=2.0}
           %y [T, 8] = expert_glu(x=%x, experts=%e, weights=%e.1, gate=@e8, up=@e8, down=@e8, residual=%s)""",
    ),
    "sink_rows of experts": (
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %r [T, 2] = linear(x=%a, w=@r2)
           %e [T, 1], %e.1 [T, 1] = route(x=%r) {used=1}
           %y [T, 8] = expert_glu(x=%a, experts=%e, weights=%e.1, gate=@e8, up=@e8, down=@e8)""",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %a.rows [L, 8] = take_rows(x=%a)
           %r [L, 2] = linear(x=%a.rows, w=@r2)
           %e [L, 1], %e.1 [L, 1] = route(x=%r) {used=1}
           %y [L, 8] = expert_glu(x=%a.rows, experts=%e, weights=%e.1, gate=@e8, up=@e8, down=@e8)""",
    ),
    "sink_rows of experts, the ids returned": (
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %r [T, 2] = linear(x=%a, w=@r2)
           %e [T, 1], %e.1 [T, 1] = route(x=%r) {used=1}
           %y [T, 8] = expert_glu(x=%a, experts=%e, weights=%e.1, gate=@e8, up=@e8, down=@e8)
           %logits [L, 50] = unembed(x=%y, w=@embd)
           return %logits, %e""",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %r [T, 2] = linear(x=%a, w=@r2)
           %e [T, 1], %e.1 [T, 1] = route(x=%r) {used=1}
           %a.rows [L, 8] = take_rows(x=%a)
           %e.rows [L, 1] = take_rows(x=%e)
           %e.1.rows [L, 1] = take_rows(x=%e.1)
           %y [L, 8] = expert_glu(x=%a.rows, experts=%e.rows, weights=%e.1.rows, gate=@e8, up=@e8, down=@e8)
           %logits [L, 50] = unembed(x=%y, w=@embd)
           return %logits, %e""",
    ),
    "fold_glu": (
        """%gate [T, 8], %up [T, 8] = linear(x=%x, w=@w8, w=@v8, norm=@n8) {eps=1e-06}
           %y [T, 8] = glu(gate=%gate, up=%up) {activation="gelu_tanh"}""",
        """%y [T, 8] = linear(x=%x, w=@w8, w=@v8, norm=@n8) {eps=1e-06, glu="gelu_tanh"}""",
    ),
    "sink_rows of layer norms and clamps": (
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %n [T, 8] = layer_norm(x=%a, w=@n8, bias=@n8) {eps=1e-06}
           %y [T, 8] = clamp(x=%n) {limit=8.0}""",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %a.rows [L, 8] = take_rows(x=%a)
           %n [L, 8] = layer_norm(x=%a.rows, w=@n8, bias=@n8) {eps=1e-06}
           %y [L, 8] = clamp(x=%n) {limit=8.0}""",
    ),
    "sink_rows": (
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %o [T, 8] = linear(x=%a, w=@w8, residual=%x)
           %n [T, 8] = rms_norm(x=%o, w=@n8) {eps=1e-06}
           %y [T, 8] = add(a=%n, b=%a)""",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %a [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}
           %a.rows [L, 8] = take_rows(x=%a)
           %x.rows [L, 8] = take_rows(x=%x)
           %o [L, 8] = linear(x=%a.rows, w=@w8, residual=%x.rows)
           %n [L, 8] = rms_norm(x=%o, w=@n8) {eps=1e-06}
           %y [L, 8] = add(a=%n, b=%a.rows)""",
    ),
}


@pytest.mark.parametrize("name", list(BEFORE_AFTER))
def test_before_and_after(name: str) -> None:
    before, after = (text if "return" in text else f"{text}\n{TAIL}" for text in BEFORE_AFTER[name])
    names = [name.split()[0]]
    fused = parse(before).fuse(names)
    assert lines_of(fused) == [line.strip() for line in after.splitlines()]
    assert lines_of(fused.fuse(names)) == lines_of(fused)
    assert Program.parse(fused.text()).text() == fused.text()


ROPES = """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %q [T, 2, 4] = rope(x=%h, positions=%positions) {theta=10000.0, rotary_dim=4}
           %k [T, 2, 4] = rope(x=%h, positions=%positions) {KEY}
           %y [T, 8] = attention(q=%q, k=%k, v=%V) {layer=0, scale=0.5}"""

UNCHANGED = {
    "merge_linears: nothing is plain": (
        "merge_linears",
        """%a [T, 8] = linear(x=%x, w=@w8, residual=%x)
           %b [T, 8] = linear(x=%x, w=@w8, norm=@n8) {eps=1e-06}
           %c [T, 8] = linear(x=%x, w=@w8, w=@v8) {glu="silu"}
           %y [T, 8] = linear(x=%a, w=@w8)""",
    ),
    "fold_norm: read twice": (
        "fold_norm",
        """%n [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-06}
           %a [T, 8] = linear(x=%n, w=@w8)
           %y [T, 8] = add(a=%a, b=%n)""",
    ),
    "fold_norm: no weight": (
        "fold_norm",
        """%n [T, 8] = rms_norm(x=%x) {eps=1e-06}
           %y [T, 8] = linear(x=%n, w=@w8)""",
    ),
    "fold_norm: it is the residual": (
        "fold_norm",
        """%n [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-06}
           %y [T, 8] = linear(x=%x, w=@w8, residual=%n)""",
    ),
    "fold_norm: has one already": (
        "fold_norm",
        """%n [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-06}
           %y [T, 8] = linear(x=%n, w=@w8, norm=@b8) {eps=1e-06}""",
    ),
    "fold_norm: returned": (
        "fold_norm",
        """%y [T, 8] = rms_norm(x=%x, w=@n8) {eps=1e-06}
           %z [T, 8] = linear(x=%y, w=@w8)
           return %z, %y""",
    ),
    "fold_rope: another theta": (
        "fold_rope",
        ROPES.replace("KEY", "theta=20000.0, rotary_dim=4").replace("%V", "%h"),
    ),
    "fold_rope: k is read by another": (
        "fold_rope",
        ROPES.replace("KEY", "theta=10000.0, rotary_dim=4").replace("%V", "%k"),
    ),
    "fold_rope: q alone": (
        "fold_rope",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %q [T, 2, 4] = rope(x=%h, positions=%positions) {theta=10000.0, rotary_dim=4}
           %y [T, 8] = attention(q=%q, k=%h, v=%h) {layer=0, scale=0.5}""",
    ),
    "fold_residual: read twice": (
        "fold_residual",
        """%a [T, 8] = linear(x=%x, w=@w8)
           %b [T, 8] = add(a=%x, b=%a)
           %y [T, 8] = add(a=%a, b=%b)
           return %b, %y""",
    ),
    "fold_residual: several weights, a weight, a scale between": (
        "fold_residual",
        """%a [T, 8], %b [T, 8] = linear(x=%x, w=@w8, w=@v8)
           %c [T, 8] = add(a=%x, b=%a)
           %d [T, 8] = linear(x=%b, w=@w8)
           %e [T, 8] = add(a=%d, b=@b8)
           %f [T, 8] = linear(x=%e, w=@w8)
           %g [T, 8] = scale(x=%f) {factor=0.5}
           %y [T, 8] = add(a=%c, b=%g)""",
    ),
    "fold_residual: to itself": (
        "fold_residual",
        """%a [T, 8] = linear(x=%x, w=@w8)
           %y [T, 8] = add(a=%a, b=%a)""",
    ),
    "fold_glu: order, and readers": (
        "fold_glu",
        """%a [T, 8], %b [T, 8] = linear(x=%x, w=@w8, w=@v8)
           %c [T, 8] = glu(gate=%b, up=%a)
           %d [T, 8], %e [T, 8] = linear(x=%c, w=@w8, w=@v8)
           %f [T, 8] = glu(gate=%d, up=%e)
           %y [T, 8] = add(a=%f, b=%e)""",
    ),
    "fold_glu: activations rounded in two ways": (
        "fold_glu",
        """%a [T, 32] = linear(x=%x, w=@w32)
           %b [T, 32], %c [T, 32] = linear(x=%a, w=@f32, w=@q32)
           %d [T, 32] = glu(gate=%b, up=%c)
           %y [T, 8] = linear(x=%d, w=@d32)""",
    ),
    "sink_rows: nothing but the logits": (
        "sink_rows",
        """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
           %y [T, 8] = attention(q=%h, k=%h, v=%h) {layer=0, scale=0.5}""",
    ),
    "sink_rows: the rows are returned": (
        "sink_rows",
        """%y [T, 8] = linear(x=%x, w=@w8)
           %logits [L, 50] = unembed(x=%y, w=@embd)
           return %logits, %y""",
    ),
}


@pytest.mark.parametrize("case", list(UNCHANGED))
def test_what_stops_a_pass(case: str) -> None:
    name, body = UNCHANGED[case]
    program = parse(body if "return" in body else f"{body}\n{TAIL}")
    assert program.fuse([name]).text() == program.text()


def test_a_norm_after_the_rope_is_folded_alone() -> None:
    body = """%h [T, 2, 4] = reshape(x=%x) {dims="2, 4"}
              %q [T, 2, 4] = rope(x=%h, positions=%positions) {theta=10000.0, rotary_dim=4}
              %k [T, 2, 4] = rope(x=%h, positions=%positions) {theta=10000.0, rotary_dim=4}
              %qn [T, 2, 4] = rms_norm(x=%q, w=@n4) {eps=1e-06}
              %kn [T, 2, 4] = rms_norm(x=%k, w=@n4) {eps=1e-06}
              %y [T, 8] = attention(q=%qn, k=%kn, v=%h) {layer=0, scale=0.5}"""
    fused = parse(f"{body}\n{TAIL}").fuse(["fold_rope", "fold_rope"])
    assert [node.op for node in fused.nodes()] == ["embed", "reshape", "rope", "rope", "attention", "unembed"]


def test_an_unknown_pass_is_refused_and_the_program_stays() -> None:
    program = parse(f"%y [T, 8] = linear(x=%x, w=@w8)\n{TAIL}")
    with pytest.raises(ArgumentError, match="no pass fold_everything"):
        program.fuse(["fold_everything"])
    text = program.text()
    program.fuse()
    assert program.text() == text


def random_weights(program: Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(value.shape, np.float32) / np.float32(np.sqrt(value.shape[-1]))  # type: ignore[arg-type]
        for value in program.values
        if value.kind == "weight"
    }


def assert_same_bits(program: Program, fused: Program, seed: int) -> None:
    weights = random_weights(program, seed)
    tokens, rows = [3, 14, 15, 9, 26], [1, 4]
    plain, other = Interpreter(program, weights.__getitem__), Interpreter(fused, weights.__getitem__)
    assert plain.run(tokens, output_rows=rows).tobytes() == other.run(tokens, output_rows=rows).tobytes()
    shapes = {value.name: value.shape for value in fused.values}
    for name, value in other.values.items():
        if name in plain.values:
            expected = plain.values[name]
            if shapes[name][0] == "L" and len(expected) == len(tokens):
                expected = expected[rows]
            assert value.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("seed", range(60))
def test_passes_change_no_bit_of_random_programs(seed: int) -> None:
    program = random_program(seed)
    rng = np.random.default_rng(seed)
    assert_same_bits(program, program.fuse(), seed)
    assert_same_bits(program, program.fuse(list(rng.permutation(Program.passes))), seed)


@pytest.mark.parametrize("name", Program.passes)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_each_pass_changes_no_bit_of_a_model(architecture: str, name: str) -> None:
    model = FakeModel(architecture, **{"attention.sliding_window": 3}).with_head_norms()
    program = trace(model.with_layer_vectors("post_attention_norm", "post_ffw_norm")).program
    # fold_glu and fold_norm have nothing to do before merge_linears.
    passes = [name] if name in ("merge_linears", "fold_rope", "fold_residual") else ["merge_linears", name]
    fused = program.fuse(passes)
    assert_same_bits(program, fused, 7)
    changed = fused.text() != program.fuse(passes[:-1]).text()
    assert changed


def test_a_fused_layer_is_five_steps_and_views() -> None:
    nodes = trace(FakeModel("qwen3", layers=3).with_head_norms()).program.fuse().nodes()
    ops = [node.op for node in nodes if node.name.startswith("layers.1/") and node.op not in ("reshape", "take_rows")]
    assert ops == ["linear", "attention", "linear", "linear", "linear"]

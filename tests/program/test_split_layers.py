"""Programs that are cut between two layers: the parts as text, what cannot be cut, and that both parts give the whole."""

from __future__ import annotations

import re

import numpy as np
import oracle
import pytest
from sterna._core import Gguf, Program
from sterna.errors import ArgumentError, UnsupportedModelError
from sterna.interpreter import Interpreter
from sterna.trace import trace

HEAD = """program 1
input %tokens [T]
input %positions [T]
weight @embd [50, 8] F32
weight @places [99, 8] F32
weight @w8 [8, 8] F32
weight @n8 [8] F32
"""
WHOLE = HEAD + """kv 0: 2 heads, 4, 4
kv 1: 2 heads, 4, 4
kv 2: 2 heads, 4, 4
function logits
  %x [T, 8] = embed(tokens=%tokens, w=@embd)
  %x.heads [T, 2, 4] = reshape(x=%x) {dims="2,4"}
  %layers.0/q [T, 8] = linear(x=%x, w=@w8)  # m.py:1
  %layers.0/q.heads [T, 2, 4] = reshape(x=%layers.0/q) {dims="2,4"}
  %layers.0/attention [T, 8] = attention(q=%layers.0/q.heads, k=%x.heads, v=%x.heads) {layer=0, scale=0.5}
  %layers.0/x [T, 8] = add(a=%x, b=%layers.0/attention)
  %layers.1/n [T, 8] = rms_norm(x=%layers.0/x, w=@n8) {eps=1e-05}  # m.py:2
  %layers.1/heads [T, 2, 4] = reshape(x=%layers.1/n) {dims="2,4"}
  %layers.1/attention [T, 8] = attention(q=%layers.1/heads, k=%x.heads, v=%x.heads) {layer=1, scale=0.5, window=3}
  %layers.1/place [T, 8] = embed(tokens=%positions, w=@places)
  %layers.1/x [T, 8] = add(a=%layers.1/attention, b=%layers.1/place)
  %layers.2/heads [T, 2, 4] = reshape(x=%layers.1/x) {dims="2,4"}  # m.py:3
  %layers.2/attention [T, 8] = attention(q=%layers.2/heads, k=%layers.2/heads, v=%layers.1/heads) {layer=2, scale=0.5}
  %layers.2/x [T, 8] = add(a=%layers.0/x, b=%layers.2/attention)
  %logits [L, 50] = unembed(x=%layers.2/x, w=@embd)
  return %logits
"""
FIRST = """program 1
input %tokens [T]
input %positions [T]
weight @embd [50, 8] F32
weight @w8 [8, 8] F32
weight @places [99, 8] F32
kv 0: 2 heads, 4, 4
function logits
  %x [T, 8] = embed(tokens=%tokens, w=@embd)
  %x.heads [T, 2, 4] = reshape(x=%x) {dims="2,4"}
  %layers.0/q [T, 8] = linear(x=%x, w=@w8)  # m.py:1
  %layers.0/q.heads [T, 2, 4] = reshape(x=%layers.0/q) {dims="2,4"}
  %layers.0/attention [T, 8] = attention(q=%layers.0/q.heads, k=%x.heads, v=%x.heads) {layer=0, scale=0.5}
  %layers.0/x [T, 8] = add(a=%x, b=%layers.0/attention)
  %layers.1/place [T, 8] = embed(tokens=%positions, w=@places)
  %send [T, 24] = send(x=%x.heads, x=%layers.0/x, x=%layers.1/place)  # m.py:2
  return %send
"""
LAST = """program 1
weight @n8 [8] F32
weight @embd [50, 8] F32
kv 1: 2 heads, 4, 4
kv 2: 2 heads, 4, 4
function logits
  %receive [T, 2, 4], %receive.1 [T, 8], %receive.2 [T, 8] = receive() {shapes="2,4;8;8"}  # m.py:2
  %layers.1/n [T, 8] = rms_norm(x=%receive.1, w=@n8) {eps=1e-05}  # m.py:2
  %layers.1/heads [T, 2, 4] = reshape(x=%layers.1/n) {dims="2,4"}
  %layers.1/attention [T, 8] = attention(q=%layers.1/heads, k=%receive, v=%receive) {layer=1, scale=0.5, window=3}
  %layers.1/x [T, 8] = add(a=%layers.1/attention, b=%receive.2)
  %layers.2/heads [T, 2, 4] = reshape(x=%layers.1/x) {dims="2,4"}  # m.py:3
  %layers.2/attention [T, 8] = attention(q=%layers.2/heads, k=%layers.2/heads, v=%layers.1/heads) {layer=2, scale=0.5}
  %layers.2/x [T, 8] = add(a=%receive.1, b=%layers.2/attention)
  %logits [L, 50] = unembed(x=%layers.2/x, w=@embd)
  return %logits
"""


def weights(name: str) -> np.ndarray:
    shapes = {"embd": (50, 8), "places": (99, 8), "w8": (8, 8), "n8": (8,)}
    return np.random.default_rng(len(name)).normal(size=shapes[name]).astype(np.float32)


def test_the_parts_as_text() -> None:
    program = Program.parse(WHOLE)
    assert program.num_layers == 3
    first, last = program.split_layers(1)
    assert (first.text(), last.text()) == (FIRST, LAST)
    for part in (first, last):
        assert Program.parse(part.text()).text() == part.text()
    assert program.text() == WHOLE


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cut", [1, 2])
def test_both_parts_give_the_whole(cut: int, fused: bool) -> None:
    program = Program.parse(WHOLE)
    parts = program.split_layers(cut)
    if fused:
        parts = tuple(part.fuse() for part in parts)
    whole, first, last = (Interpreter(each, weights) for each in (program, *parts))
    for tokens in ([3, 7, 49, 0, 3], [11], [5, 6]):  # each after those before
        expected = whole.run(tokens)
        assert np.array_equal(last.run(tokens, received=first.run(tokens)), expected)


def test_a_part_can_be_cut_again() -> None:
    program = Program.parse(WHOLE)
    first, rest = program.split_layers(1)
    middle, last = rest.split_layers(2)
    parts = [Interpreter(each, weights) for each in (first, middle, last)]
    rows = None
    for part in parts:
        rows = part.run([3, 7, 49], received=rows)
    assert np.array_equal(rows, Interpreter(program, weights).run([3, 7, 49]))
    assert [len(each.kv_slots) for each in (first, middle, last)] == [1, 1, 1]


@pytest.mark.parametrize("cut", [-1, 0, 3, 4])
def test_a_cut_has_layers_on_both_sides(cut: int) -> None:
    with pytest.raises(ArgumentError, match=f"a cut before layer {cut} of 3"):
        Program.parse(WHOLE).split_layers(cut)


def test_keys_are_not_read_across_a_cut() -> None:
    shared = WHOLE.replace("kv 2: 2 heads, 4, 4\n", "")
    shared = shared.replace("k=%layers.2/heads, v=%layers.1/heads) {layer=2,", ") {layer=1,").replace("heads, )", "heads)")
    program = Program.parse(shared)
    program.split_layers(1)
    with pytest.raises(
        UnsupportedModelError,
        match=r"layer 2 reads the keys of layer 1: the two must be on one side of a cut \(layers.2/attention, ",
    ):
        program.split_layers(2)


@pytest.mark.parametrize("scope", ["layers.-1", "layers.9223372036854775807", "layers.1e3", "layers.", "layer.7", "x layers.7"])
def test_names_that_are_no_layers(scope: str) -> None:
    program = Program.parse(re.sub(r"%(layers.2/\w+)", rf'%"{scope}/\1"', WHOLE.replace("layers.2/", "layers.2/z")))
    assert program.num_layers == 3  # the scope within counts
    only = Program.parse(WHOLE.replace("%layers.2/heads", f'%"{scope}/heads"').replace("%layers.2/", "%last/"))
    assert only.num_layers == 2


@pytest.mark.parametrize("name", ["bert", "t5-relu", "nomic-bert"])
def test_encoders_are_not_divided(name: str) -> None:
    program = trace(Gguf(oracle.model_path(name)), embed=True).program
    with pytest.raises(UnsupportedModelError, match="layers cannot be divided: .* encoder"):
        program.split_layers(1)


def test_a_decoders_vectors_are_divided_as_its_logits() -> None:
    program = trace(Gguf(oracle.model_path("llama3")), embed=True).program
    first, last = program.split_layers(1)
    assert first.functions == last.functions == ["logits", "encode"]
    assert [node.name for node in first.nodes("encode")][-1] == "encode/send"
    assert next(node.name for node in last.nodes("encode")) == "encode/receive"
    assert {"send", "encode/send"} <= {value.name for value in first.values}
    assert {"receive", "encode/receive"} <= {value.name for value in last.values}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  return %send", "  %more [T, 24] = scale(x=%send) {factor=2.0}\n  return %more", "what is sent must be"),
        ("return %send", "return %x", "what is sent must be the function's result"),
    ],
)
def test_what_is_sent_is_the_result(old: str, new: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        Program.parse(FIRST.replace(old, new))


def test_a_function_receives_once() -> None:
    twice = re.sub(r"(  %receive .*\n)", r'\1  %again [T, 8] = receive() {shapes="8"}\n', LAST)
    with pytest.raises(ArgumentError, match="again: the function receives already"):
        Program.parse(twice)

"""The text form: what is written reads back the same, and any other text is one error with line and column."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna._core import Program, ProgramBuilder
from sterna.errors import ArgumentError
from sterna.trace import trace

GOLDEN = sorted((Path(__file__).parent.parent / "data" / "program").glob("*.txt"))

SMALL = """program 1
input %tokens [T]
weight @token_embd [50, 32] Q4_0
kv 3: 2 heads, 8, 8
function logits
  %x [T, 32] = embed(tokens=%tokens, w=@token_embd)
  %h [T, 4, 8] = reshape(x=%x) {dims="4, 8"}
  %k [T, 16], %k.1 [T, 16] = split(x=%x) {sizes="16, 16"}
  %kh [T, 2, 8] = reshape(x=%k) {dims="2, 8"}
  %a [T, 32] = attention(q=%h, k=%kh, v=%kh) {layer=3, scale=0.25, causal=false}  # models/x.py:3
  %logits [L, 50] = unembed(x=%a, w=@token_embd)
  return %logits
"""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_texts_read_back(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert Program.parse(text).text() == text


def test_a_small_text_reads_back() -> None:
    assert Program.parse(SMALL).text() == SMALL


def test_spaces_blank_lines_and_carriage_returns_do_not_matter() -> None:
    loose = re.sub(r"[(=,](?=[ %@\w])", r" \g<0>  ", SMALL.replace('", ', '" , '))
    loose = re.sub(r'"(\d+) ,\s+(\d+)"', r'"\1, \2"', loose).replace("\n", "\r\n\r\n")
    assert Program.parse(loose).text() == SMALL


@given(
    factor=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(
        st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1, max_size=40
    ),
    weight=st.text(
        st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1, max_size=40
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_name_and_number_reads_back(factor: float, name: str, weight: str) -> None:
    builder = ProgramBuilder()
    tokens = builder.add_input("in", ("T",))
    w = builder.add_weight(weight, (4, 4), "F32")
    name = name if name not in ("in", "y") else "z"
    x = builder.emit("embed", name, [("tokens", tokens), ("w", w)], {}, name)
    builder.set_outputs(builder.emit("scale", "y", [("x", x[0])], {"factor": factor}, ""))
    program = builder.finish()
    again = Program.parse(program.text())
    assert again.text() == program.text()
    assert again.nodes()[1].attributes == {"factor": factor}
    assert [value.name for value in again.values] == [value.name for value in program.values]
    assert again.nodes()[0].source == name


def random_program(seed: int) -> Program:
    """A random but legal chain of ops over rows of a few widths."""
    rng = random.Random(seed)
    builder = ProgramBuilder()
    tokens, positions = builder.add_input("tokens", ("T",)), builder.add_input("positions", ("T",))
    table = builder.add_weight("token_embd", (50, 32), rng.choice(["F32", "Q8_0", "Q4_0"]))
    x = builder.emit("embed", "embed", [("tokens", tokens), ("w", table)], {}, "m.py:1")[0]
    rows = [x]
    for i in range(rng.randrange(1, 30)):
        name, x = f"n{i}", rng.choice(rows)
        y = rng.choice(rows)
        op = rng.choice(["linear", "rms_norm", "add", "mul", "scale", "glu", "activation", "attention", "split"])
        w = builder.add_weight(f"w{i}", (32, 32), rng.choice(["F32", "Q4_1"])) if op == "linear" else None
        if op == "linear":
            rule = rng.choice(["auto", "int8_per_token"])
            rows += builder.emit(op, name, [("x", x), ("w", w)], {"activation": rule}, "m.py:2")  # type: ignore[list-item]
        elif op == "rms_norm":
            norm = builder.add_weight(f"w{i}", (32,), "F32")
            rows += builder.emit(op, name, [("x", x), ("w", norm)], {"eps": 1e-5}, "m.py:3")
        elif op == "scale":
            rows += builder.emit(op, name, [("x", x)], {"factor": rng.uniform(-2, 2)}, "m.py:4")
        elif op == "activation":
            rows += builder.emit(op, name, [("x", x)], {"kind": rng.choice(["silu", "relu2"])}, "m.py:5")
        elif op == "glu":
            rows += builder.emit(op, name, [("gate", x), ("up", y)], {}, "m.py:6")
        elif op == "split":
            parts = builder.emit(op, name, [("x", x)], {"sizes": "8, 24"}, "m.py:7")
            rows += builder.emit("concat", f"{name}.c", [("x", part) for part in parts], {}, "m.py:8")
        elif op == "attention":
            heads = builder.emit("reshape", f"{name}.h", [("x", x)], {"dims": "4, 8"}, "m.py:9")[0]
            spec = {"theta": 1e4, "rotary_dim": 8, "style": rng.choice(["halves", "interleaved"])}
            q = builder.emit("rope", f"{name}.q", [("x", heads), ("positions", positions)], spec, "m.py:10")[0]
            k = builder.emit("rope", f"{name}.k", [("x", heads), ("positions", positions)], spec, "m.py:11")[0]
            slots = {"layer": i, "scale": 0.3, rng.choice(["window", "chunk"]): rng.choice([0, 3])}
            slots |= rng.choice([{}, {"max_alibi_bias": 8.0}, {"temperature.scale": 0.1, "temperature.length": 16}])
            operands = [("q", q), ("k", k), ("v", heads)]
            rows += builder.emit(op, name, operands, slots, "m.py:12")
            if rng.random() < 0.3:
                rows += builder.emit(op, f"{name}.shared", [("q", k)], slots, "m.py:15")
        else:
            rows += builder.emit(op, name, [("a", x), ("b", y)], {}, "m.py:13")
    builder.set_outputs(builder.emit("unembed", "logits", [("x", rows[-1]), ("w", table)], {}, "m.py:14"))
    return builder.finish()


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_read_back(seed: int) -> None:
    text = random_program(seed).text()
    assert Program.parse(text).text() == text
    fused = random_program(seed).fuse().text()
    assert Program.parse(fused).text() == fused


HOSTILE = {
    "": "is empty",
    "\n\n": "is empty",
    "program 2": 'line 1, column 10: expected "program 1"',
    "function f": 'expected "program 1"',
    "%x [T] = embed()": 'expected "program 1"',
    "program 1 1": "line 1, column 11: expected the end of the line",
    "program 99999999999999999999": "expected an integer",
    "program 1\nfunction logits": "function logits has no outputs",
    "program 1\nmodel": "line 2, column 6: expected input, weight, kv, state, function, return or a result",
    "program 1\ninput %t [T": "line 2, column 12: expected ']'",
    "program 1\ninput %t [0]": "an extent must be above 0",
    "program 1\ninput %t [-5]": "an extent must be above 0",
    "program 1\ninput %t [99999999999]": "t has shape",
    "program 1\ninput %t [T, T]": "t has shape",
    "program 1\ninput @t [T]": "expected '%'",
    "program 1\ninput %t [T]\ninput %t [T]": "line 3, column 13: program: two values are named t",
    'program 1\ninput %"t [T]': "the string has no end",
    'program 1\ninput %"t\\': "the string has no end",
    'program 1\ninput %"" [T]': "name is empty",
    "program 1\nweight @w [4] Q4_0": "rows of 4 elements",
    "program 1\nweight @w [4] Q7": "there is no such format",
    "program 1\nkv 1 heads": "expected ':'",
    "program 1\nkv 0: 1 heads, 1, 1": "the kv lines are not those of the attention nodes",
    "program 1\nreturn %x": "there is no value x up to here",
    "program 1\n%x [T] = embed(": "expected a word",
    "program 1\n%x [T] = embed(tokens=%t)": "there is no value t up to here",
}


@pytest.mark.parametrize("text", list(HOSTILE), ids=[repr(text)[:50] for text in HOSTILE])
def test_hostile_texts_are_named_with_their_place(text: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Program.parse(text)
    assert HOSTILE[text] in str(error.value)


CHANGES = [
    ("[T, 32] = embed", "[T, 31] = embed", "x has shape [T, 32], not [T, 31]"),
    ("kv 3: 2 heads, 8, 8", "kv 3: 2 heads, 8, 4", "kv lines"),
    ("kv 3: 2 heads, 8, 8\n", "", "kv lines"),
    ("layer=3, ", "layer=3, layer=3, ", "attribute layer again"),
    ("layer=3", "layer=3.0", "layer must be an integer"),
    ("scale=0.25", "scale=1e999", "expected a number"),
    ("scale=0.25", "scale=nan", "expected true, false, a number or a quoted string"),
    ("causal=false", "causal=maybe", "line 10, column 75: expected true, false, a number"),
    ("causal=false", "causal=false, volume=11", "has no attribute volume"),
    ("attention(q", "shouting(q", "there is no such op"),
    ("q=%h", "q=%logits", "there is no value logits up to here"),
    ("%k.1 [T, 16]", "%k [T, 16]", "two values are named k"),
    (", %k.1 [T, 16]", "", "has 2 results, not 1"),
    ("return %logits", "return @token_embd", "not computed in it"),
    ("return %logits", "", "has no outputs"),
    ("# models/x.py:3", "# \x07", "control characters"),
    ("%x [T, 32] =", "%x [T, 32]", "expected '='"),
]


@pytest.mark.parametrize(("old", "new", "problem"), CHANGES, ids=[problem for _, _, problem in CHANGES])
def test_changed_texts_are_refused(old: str, new: str, problem: str) -> None:
    assert old in SMALL
    with pytest.raises(ArgumentError, match=re.escape(problem)):
        Program.parse(SMALL.replace(old, new, 1))


@pytest.mark.parametrize("seed", range(3))
def test_mutated_texts_never_do_worse_than_an_error(seed: int) -> None:
    rng = random.Random(seed)
    text = trace(FakeModel("qwen3", layers=1).with_head_norms()).program.fuse().text()
    pieces = re.findall(r"\w+|\W", text)
    accepted = 0
    for _ in range(1500):
        changed = list(pieces)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(changed))
            changed[at] = rng.choice(
                [rng.choice(pieces), "", chr(rng.randrange(32, 1000)), "-1", "9" * 30, changed[at] * 2]
            )
        try:
            program = Program.parse("".join(changed))
        except ArgumentError as error:
            assert "program" in str(error)  # noqa: PT017
        else:
            accepted += 1
            again = program.fuse().text()
            assert Program.parse(again).text() == again
    assert accepted > 0

"""Recurrent ops in a Program: what their rules refuse, the states that they declare, and the text form of those."""

from __future__ import annotations

from typing import Any

import pytest
from sterna._core import Program, ProgramBuilder
from sterna.errors import ArgumentError


class Bench:
    """A builder with rows of several shapes and some weights."""

    def __init__(self) -> None:
        self.builder = ProgramBuilder()
        self.ids = {"tokens": self.builder.add_input("tokens", ("T",))}
        for name, shape in {
            "embd": (50, 24),
            "taps": (24, 4),
            "one_tap": (24, 1),
            "many_taps": (24, 65),
            "other_taps": (16, 4),
            "v24": (24,),
            "v6": (6,),
            "v4": (4,),
            "v4x1": (4, 1),
            "v24x6": (24, 6),
            "v4x6": (4, 6),
            "four": (4, 24),
            "six": (6, 24),
        }.items():
            self.ids[name] = self.builder.add_weight(name, shape, "F32")
        self.emit("embed", "x", tokens="tokens", w="embd")
        self.emit("linear", "dt", x="x", w="four")
        self.emit("linear", "dt6", x="x", w="six")
        for name, dims in (
            ("heads", "4, 6"),
            ("channels", "24, 1"),
            ("group", "1, 24"),
            ("groups", "2, 12"),
            ("three", "3, 8"),
        ):
            self.emit("reshape", name, {"dims": dims}, x="x")
        self.emit("reshape", "small", {"dims": "1, 6"}, x="dt6")
        self.emit("take_rows", "rows", x="x")

    def emit(self, op: str, name: str, attributes: dict[str, Any] | None = None, **roles: str) -> None:
        inputs = [(role, self.ids[value]) for role, value in roles.items()]
        self.ids[name] = self.builder.emit(op, name, inputs, attributes or {}, "models/x.py:1")[0]

    def conv(self, **changes: Any) -> None:
        attributes = {"layer": changes.pop("layer", 0)}
        roles = {"x": "x", "w": "taps"} | changes
        self.emit("short_conv", "y", attributes, **roles)

    def scan(self, **changes: Any) -> None:
        attributes = {"layer": changes.pop("layer", 0)}
        roles = {"x": "heads", "dt": "dt", "b": "group", "c": "group", "a": "v4", "d": "v4"} | changes
        self.emit("ssm_scan", "y", attributes, **roles)

    def delta(self, **changes: Any) -> None:
        attributes = {"layer": changes.pop("layer", 0)}
        roles = {"q": "groups", "k": "groups", "v": "heads", "g": "dt", "beta": "dt"} | changes
        self.emit("delta_rule", "y", attributes, **roles)

    def program(self) -> Program:
        self.emit("unembed", "logits", x="y", w="embd")
        self.builder.set_outputs([self.ids["logits"]])
        return self.builder.finish()


@pytest.mark.parametrize(
    ("op", "changes", "problem"),
    [
        ("conv", {"x": "heads"}, r"x has shape \[T, 4, 6\], expected a row for every token, of rank 2"),
        ("conv", {"x": "rows"}, r"x has shape \[L, 24\], expected a row for every token"),
        ("conv", {"w": "other_taps"}, r"w other_taps has shape \[16, 4\], expected 24 channels of 2 to 64 tokens"),
        ("conv", {"w": "one_tap"}, r"w one_tap has shape \[24, 1\]"),
        ("conv", {"w": "many_taps"}, r"w many_taps has shape \[24, 65\]"),
        ("conv", {"w": "v24"}, r"w v24 has shape \[24\]"),
        ("conv", {"bias": "v6"}, r"bias v6 has shape \[6\], expected \[24\]"),
        ("conv", {"layer": -1}, "layer is -1"),
        ("conv", {"layer": 1 << 16}, "layer is 65536"),
        ("scan", {"x": "x"}, r"x has shape \[T, 24\], expected a row for every token, of rank 3"),
        ("scan", {"dt": "dt6"}, r"dt dt6 has shape \[T, 6\], expected \[T, 4\]"),
        ("scan", {"c": "groups"}, r"c groups has shape \[T, 2, 12\], expected \[T, 1, 24\]"),
        ("scan", {"b": "three", "c": "three"}, "4 heads are not a multiple of 3 groups of b and c"),
        ("scan", {"a": "v6"}, r"a v6 has shape \[6\], expected \[4\]"),
        ("scan", {"a": "v4x6"}, r"a v4x6 has shape \[4, 6\], expected \[4\]"),
        ("scan", {"d": "v6"}, r"d v6 has shape \[6\], expected \[4\]"),
        ("delta", {"v": "x"}, r"v has shape \[T, 24\], expected a row for every token, of rank 3"),
        ("delta", {"k": "heads"}, r"k heads has shape \[T, 4, 6\], expected \[T, 2, 12\]"),
        ("delta", {"q": "three", "k": "three"}, "4 heads are not a multiple of 3 heads of q and k"),
        ("delta", {"g": "dt6"}, r"g dt6 has shape \[T, 6\], expected \[T, 4\]"),
        ("delta", {"beta": "x"}, r"beta x has shape \[T, 24\], expected \[T, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(op: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem) as caught:
        getattr(Bench(), op)(**changes)
    assert "y: " in str(caught.value) and str(caught.value).endswith("(models/x.py:1)")


@pytest.mark.parametrize(
    ("op", "changes", "slot"),
    [
        ("conv", {"bias": "v24"}, ("short_conv", 3, 24)),
        ("scan", {}, ("ssm_scan", 24, 24)),
        ("scan", {"b": "groups", "c": "groups", "a": "v4x1", "d": "v4x1"}, ("ssm_scan", 24, 12)),
        (
            "scan",
            {"x": "channels", "dt": "x", "b": "small", "c": "small", "a": "v24x6", "d": "v24"},
            ("ssm_scan", 24, 6),
        ),
        ("delta", {}, ("delta_rule", 4 * 12, 6)),
    ],
)
def test_a_node_declares_its_state(op: str, changes: dict[str, Any], slot: tuple[str, int, int]) -> None:
    bench = Bench()
    getattr(bench, op)(layer=7, **changes)
    program = bench.program()
    assert [(s.layer, s.op, s.rows, s.columns) for s in program.state_slots] == [(7, *slot)]
    text = program.text()
    assert f"\nstate 7: {slot[0]}, {slot[1]}, {slot[2]}\n" in text
    assert Program.parse(text).text() == text
    fused = program.fuse()
    assert [s.op for s in fused.state_slots] == [slot[0]]
    assert Program.parse(fused.text()).text() == fused.text()


def test_a_layer_has_one_state_of_each_op() -> None:
    bench = Bench()
    bench.conv(layer=1)
    bench.emit("short_conv", "earlier", {"layer": 0}, x="x", w="taps")
    bench.emit("delta_rule", "other", {"layer": 1}, q="groups", k="groups", v="heads", g="dt", beta="dt")
    slots = [(slot.layer, slot.op) for slot in bench.program().state_slots]
    assert slots == [(0, "short_conv"), (1, "delta_rule"), (1, "short_conv")]
    bench = Bench()
    bench.conv(layer=1)
    with pytest.raises(ArgumentError, match="layer 1 has its short_conv state already"):
        bench.emit("short_conv", "again", {"layer": 1}, x="x", w="taps")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("state 0: short_conv, 3, 24\n", "", "the state lines are not those of the recurrent nodes"),
        ("short_conv, 3, 24\n", "short_conv, 4, 24\n", "the state lines are not those"),
        ("short_conv, 3, 24\n", "delta_rule, 3, 24\n", "the state lines are not those"),
        ("short_conv, 3, 24\n", "short_conv, 3\n", "line 5, column 23: expected ','"),
        ("state 0: short", "state x: short", "expected an integer"),
        ("short_conv, 3, 24\n", "short_conv, 3, 24 5\n", "expected the end of the line"),
    ],
)
def test_state_lines_are_checked(old: str, new: str, problem: str) -> None:
    bench = Bench()
    bench.conv()
    text = bench.program().text()
    lines = [
        line
        for line in text.splitlines(keepends=True)
        if not line.startswith("weight") or "embd" in line or "taps [24, 4]" in line
    ]
    used = "".join(
        line
        for line in lines
        if line.lstrip().startswith(
            ("program", "input", "weight", "state", "function", "%x", "%y", "%logits", "return")
        )
    )
    assert Program.parse(used).text() == used
    assert used.count(old) == 1
    with pytest.raises(ArgumentError, match=problem):
        Program.parse(used.replace(old, new))

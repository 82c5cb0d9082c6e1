"""TextStream and Pieces: whole characters, no stop string ever leaks, and how the bytes were split never shows."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError, UnsupportedModelError

SAMPLES = [
    "a",
    "é",
    "\u2581",
    "€",
    "😀",
    "👩‍👩‍👧‍👦",
    "\u0301",
    "ü\u200d",
    "STOP",
    "ST",
    "\n\n",
    "</s>",
    "\U0010ffff",
    "中文",
]
LONE = [b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90", b"\xe0\x80"]


def feed(data: bytes, cuts: list[int], stops: list[str], drop: bool = False) -> tuple[list[str], str | None]:
    stream = _core.TextStream(stops, drop)
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [stream.push(data[a:b]) for a, b in itertools.pairwise(bounds)]
    pieces.append(stream.finish())
    return pieces, stream.stopped


def cut_at_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop that is complete first ends the text; of two complete at once the longer."""
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def test_ten_thousand_random_splits() -> None:
    rng = random.Random(20260)
    for _ in range(10_000):
        parts = [s.encode() for s in rng.choices(SAMPLES, k=rng.randint(0, 12))]
        for _ in range(rng.randint(0, 2)):
            parts.insert(rng.randint(0, len(parts)), rng.choice(LONE))
        data = b"".join(parts)
        stops = rng.sample(
            ["STOP", "OPS", "</s>", "\n\n", "aS", "😀a", "👩‍👩", "\ufffd\ufffd", "中文中"], rng.randint(0, 3)
        )
        cuts = [rng.randint(0, len(data)) for _ in range(rng.randint(0, 8))]
        pieces, stopped = feed(data, cuts, stops)
        expected, stop = cut_at_stop(data.decode("utf-8", "replace"), stops)
        assert "".join(pieces) == expected, (data, cuts, stops)
        assert stopped == stop


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24), st.lists(st.integers(0, 24), max_size=6))
@example(b"\xf0\x9f\x98\x80", [1, 2, 3])
@example(b"\xf1\x80\x80\xf1\x80\x80\x80", [2])
def test_any_bytes_decode_as_python_does(data: bytes, cuts: list[int]) -> None:
    pieces, _ = feed(data, [min(c, len(data)) for c in cuts], [])
    assert "".join(pieces) == data.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.data())
def test_overlapping_stops(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    pieces, stopped = feed(text.encode(), cuts, stops)
    assert ("".join(pieces), stopped) == cut_at_stop(text, stops)


def test_held_back_until_sure() -> None:
    stream = _core.TextStream(["<|im_end|>"])
    assert [stream.push(p) for p in (b"Hi <", b"|im", b"_e", b"x", b"nd<|im_", b"end", b"|>more")] == [
        "Hi ",
        "",
        "",
        "<|im_ex",
        "nd",
        "",
        "",
    ]
    assert stream.stopped == "<|im_end|>"
    assert stream.push(b"late") == ""
    assert stream.finish() == ""


def test_incomplete_character_at_the_end() -> None:
    stream = _core.TextStream()
    assert stream.push("😀".encode()[:3]) == ""
    assert stream.finish() == "\ufffd"


def test_stop_string_completed_by_the_replacement_character() -> None:
    stream = _core.TextStream(["x\ufffd"])
    assert stream.push(b"yx\xe2\x82") == "y"
    assert stream.finish() == ""
    assert stream.stopped == "x\ufffd"


@pytest.mark.parametrize(
    ("parts", "text"), [([b" a", b" b"], "a b"), ([b"", b"  a"], " a"), ([b"a", b" b"], "a b"), ([b" "], "")]
)
def test_leading_space_is_dropped_once(parts: list[bytes], text: str) -> None:
    stream = _core.TextStream(drop_leading_space=True)
    assert "".join([stream.push(p) for p in parts]) + stream.finish() == text


def test_bad_stop_strings() -> None:
    with pytest.raises(ArgumentError, match="empty"):
        _core.TextStream(["a", ""])
    with pytest.raises(ArgumentError, match="1024"):
        _core.TextStream(["a"] * 1025)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's bytes_to_unicode, from its description: printable Latin-1 stays, the rest counts up from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def test_byte_level_pieces() -> None:
    alphabet = byte_alphabet()
    data = [bytes([b]) for b in range(256)] + ["naïve 😀\n".encode(), b"\x00\xff ", b""]
    spelled = ["".join(alphabet[b] for b in token) for token in data]
    pieces = _core.Pieces.from_tokens("gpt2", [*spelled, "<|end|>", "plain space", "日本"], [1] * len(data) + [3, 4, 1])
    n = len(data)
    assert [pieces.piece(i) for i in range(n)] == data
    assert pieces.piece(n) == b""
    assert pieces.piece(n, special=True) == b"<|end|>"
    assert pieces.is_control(n)
    assert pieces.piece(n + 1) == b"plain space"
    assert pieces.piece(n + 2) == "日本".encode()
    assert pieces.piece(n + 3) == b""
    assert pieces.piece(-1) == b""
    assert len(pieces) == n + 3


def test_sentence_piece_pieces() -> None:
    tokens = [
        "<unk>",
        "<s>",
        "\u2581Hello",
        "\u2581\u2581",
        "<0x0A>",
        "<0xF0>",
        "<0x9f>",
        "<0x98>",
        "<0x80>",
        "x\u2581y",
        "<0x41>",
    ]
    pieces = _core.Pieces.from_tokens("llama", tokens, [2, 3, 1, 4, 6, 6, 6, 6, 6, 1, 1])
    assert pieces.decode([1, 2, 3, 4, 5, 6, 7, 8, 9]) == " Hello  \n😀x y"
    assert pieces.decode([1, 2], special=True) == "<s> Hello"
    assert pieces.decode([1, 2], drop_leading_space=True) == "Hello"
    assert pieces.decode([5, 6, 2]) == "\ufffd Hello"
    assert pieces.piece(10) == b"<0x41>"  # looks like a byte but is none


@pytest.mark.parametrize("token", ["<0x-1>", "<0xZZ>", "<0x100>", "<0x1>", "0x41", "", "<0x 1>", "<0x+1>"])
def test_bad_byte_tokens(token: str) -> None:
    with pytest.raises(ArgumentError, match="token 1 has type 6"):
        _core.Pieces.from_tokens("llama", ["a", token], [1, 6])


def test_pieces_arguments() -> None:
    with pytest.raises(ArgumentError, match="2 tokens but 1 token types"):
        _core.Pieces.from_tokens("llama", ["a", "b"], [1])
    with pytest.raises(UnsupportedModelError, match="nonsense"):
        _core.Pieces.from_tokens("nonsense", [])

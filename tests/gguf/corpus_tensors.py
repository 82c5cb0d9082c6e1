"""Cases about the tensor table (T)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
from corpus import Accept, Case, Reject, case
from gguf_image import ARCHITECTURE, TENSOR_F32, TENSOR_Q4_0, TENSOR_Q4_K, Image, Tensor, with_tensors

AT = with_tensors().tensor_at(0)  # where the table begins
W = Tensor("w", [8])


def cases() -> Iterator[Case]:
    yield from name_cases()
    yield from shape_cases()
    yield from type_cases()
    yield from offset_cases()
    yield from data_cases()
    yield from many_cases()


def bad(id: str, tensor: Tensor, member: str, at: int, message: str) -> Case:
    """`at` is from the start of the entry."""
    return case(id, with_tensors(tensor).build(), Reject(f"tensor[0].{member}", AT + at, message))


def accepts(*names: str) -> Accept:
    def check(g: Any) -> None:
        assert [t.name for t in g.tensors] == list(names)
        for name in names:
            assert len(g.read(name)) == g.find(name).bytes

    return Accept(check)


def name_cases() -> Iterator[Case]:
    yield bad("T01-name-length-2-64", replace(W, name_length=2**64 - 1), "name", 0, "are left in the file")
    yield bad("T02-name-past-the-end", replace(W, name_length=4096), "name", 0, "are left in the file")
    for n in (64, 255, 256):
        yield case(f"T03-name-of-{n}", with_tensors(replace(W, name="n" * n)).build(), accepts("n" * n))
    yield bad("T03-name-of-257", replace(W, name="n" * 257), "name", 0, "at most 256")
    yield bad("T04-empty-name", replace(W, name=""), "name", 0, "is empty")
    equal = with_tensors(replace(W, name="a\0x"), replace(W, name="a\0y", offset=32)).build()
    yield case("T05-equal-up-to-nul", equal, Reject("tensor[0].name", AT, r"a\x00x"))
    yield bad("T06-name-not-utf-8", replace(W, name=b"w\xc3("), "name", 0, r"w\xc3(")
    yield bad("T06-name-with-escape", replace(W, name="w\x1b]0;owned\x07"), "name", 0, r"w\x1b]0;owned\x07")
    twice = with_tensors(W, replace(W, offset=32))
    yield case("T07-name-twice", twice.build(), Reject("tensor[1].name", twice.tensor_at(1), "occurs twice"))


def shape_cases() -> Iterator[Case]:
    yield bad("T08-no-dims", replace(W, dims=[]), "n_dims", W.n_dims_at, "has 0 dimensions")
    yield bad("T09-5-dims", replace(W, dims=[1] * 5), "n_dims", W.n_dims_at, "has 5 dimensions")
    for n in (10**6, 2**32 - 1):
        yield bad(f"T10-{n}-dims", replace(W, n_dims=n), "n_dims", W.n_dims_at, f"has {n} dimensions")
    for axis in range(4):
        dims = [2, 2, 2, 2]
        dims[axis] = 0
        at = W.shape_at + 8 * axis
        yield bad(f"T11-zero-on-axis-{axis}", replace(W, dims=dims), f"shape[{axis}]", at, "a dimension of 0")
    for id, dims in (
        ("T12-2-64", [2**64 - 1]),
        ("T12-2-64-on-axis-1", [8, 2**64 - 1]),
        ("T13-2-63", [2**63]),
        ("T14-2-32-squared", [2**32, 2**32]),
        ("T15-bytes-wrap-to-0", [2**62]),
        ("T17-elements-wrap-to-4", [4194305, 4194305, 211106198978564]),
        ("T18-elements-wrap", [2**22, 2**42 + 1]),
    ):
        yield bad(id, replace(W, dims=dims), "shape", W.shape_at, "overflows 64 bits")
    for id, dims in (("T16-padding-wraps", [2**62 - 4]), ("T19-exabyte", [2**20, 2**20, 2**18])):
        tensor = replace(W, dims=dims)
        yield bad(id, tensor, "offset", tensor.offset_at, "pass the end of the file")
    q4_0 = replace(W, dims=[2**63], kind=TENSOR_Q4_0)
    yield bad("T15-block-bytes-pass-the-end", q4_0, "offset", q4_0.offset_at, "pass the end of the file")


def type_cases() -> Iterator[Case]:
    for id, kind, message in (
        ("T20-count", 60, "unknown"),
        ("T22-minus-1", 2**32 - 1, "unknown"),
        ("T22-sign-bit", 2**31, "unknown"),
        *((f"T21-removed-{kind}", kind, "was removed") for kind in (4, 5, 31, 32, 33, 36, 37, 38)),
        *((f"T21-activations-{kind}", kind, "never stored") for kind in (9, 15)),
        # Numbers of sterna's own for other ways to read a format.
        *((f"T22-variant-{kind}", 0x10000 + kind, "unknown") for kind in range(8)),
    ):
        # The data have room for 256 weights of the removed types; with less they would be those of bitnet.cpp.
        yield bad(id, replace(W, kind=kind, dims=[256]), "type", W.type_at, message)
    for kind, row in ((TENSOR_Q4_0, 33), (TENSOR_Q4_0, 1), (TENSOR_Q4_K, 32)):
        tensor = replace(W, dims=[row], kind=kind)
        yield bad(f"T23-row-{row}-of-type-{kind}", tensor, "shape[0]", W.shape_at, "no multiple of the")


def offset_cases() -> Iterator[Case]:
    at = W.offset_at
    end = "pass the end of the file"
    yield bad("T24-2-64-minus-1", replace(W, offset=2**64 - 1), "offset", at, "no multiple of the alignment")
    yield bad("T25-unaligned", replace(W, offset=16), "offset", at, "no multiple of the alignment 32")
    yield bad("T26-beyond-the-end", replace(W, offset=2**40), "offset", at, end)
    yield bad("T28-end-wraps", replace(W, offset=2**64 - 32), "offset", at, end)
    yield bad("T28-begin-wraps", replace(W, offset=2**64 - 64), "offset", at, end)

    one_past = with_tensors(Tensor("a", [8]), Tensor("b", [8], offset=32), data=bytes(63))
    yield case("T27-one-past-the-end", one_past.build(), Reject("tensor[1].offset", one_past.tensor_at(1) + at, end))

    def pair(id: str, second: Tensor, first: Tensor = W) -> Case:
        image = with_tensors(first, replace(second, name="v"))
        return case(id, image.build(), Reject("tensor[1].offset", image.tensor_at(1) + at, "overlap those of"))

    yield pair("T29-same-offset", W)
    yield pair("T30-partial-overlap", replace(W, offset=32), replace(W, dims=[16]))
    yield pair("T31-overlap-by-1-byte", replace(W, offset=32), replace(W, dims=[33], kind=24))  # 24: I8
    yield pair("T34-region-too-small", replace(W, offset=32), replace(W, dims=[64], kind=TENSOR_Q4_0))
    inside = replace(W, offset=64)
    yield pair("T30-inside-another", inside, replace(W, dims=[64]))

    gap = with_tensors(Tensor("a", [8]), Tensor("b", [8], offset=192)).build()
    yield case("T32-gap", gap, accepts("a", "b"))
    backwards = with_tensors(Tensor("a", [8], offset=32), Tensor("b", [8])).build()
    yield case("T33-out-of-order", backwards, accepts("a", "b"))
    # Each 0x7FFF_FFFF_FFFF_FFC0 bytes, so that the sum wraps to almost nothing.
    half = (0x7FFF_FFFF_FFFF_FFC0) // 4
    wrap = with_tensors(Tensor("a", [half]), Tensor("b", [half], offset=half * 4)).build()
    yield case("T35-sizes-wrap", wrap, Reject("tensor[0].offset", AT + at, end))


def data_cases() -> Iterator[Case]:
    image = with_tensors(W, replace(W, name="v", offset=32), data=bytes(64))
    head = image.head()
    cut = head[: image.tensor_at(1) + 10]
    yield case("T36-cut-mid-table", cut, Reject("tensor[1].n_dims", None, "truncated"))
    for id, content in (("T39-no-data", head), ("T39-cut-in-padding", head + b"\0")):
        assert len(head) % 32 not in (0, 31)
        yield case(id, content, Reject("data.padding", len(head), "truncated"))
    yield case("T40-one-byte-short", image.build()[:-1], Reject("tensor[1].offset", None, "truncated"))
    yield case("T41-trailing-garbage", image.build() + b"junk" * 100, accepts("w", "v"))
    dirty = bytearray(image.build())
    dirty[len(head)] = 1
    yield case("T42-padding-not-zero", bytes(dirty), Reject("data.padding", len(head), "not zero"))


def many_cases() -> Iterator[Case]:
    def table(names: list[bytes]) -> bytes:
        entries = (
            struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, 1, TENSOR_F32, 32 * i)
            for i, name in enumerate(names)
        )
        head = Image((ARCHITECTURE,), n_tensors=len(names)).head() + b"".join(entries)
        return head + bytes(-len(head) % 32 + 32 * len(names))

    def million() -> bytes:
        return table([b"%07d" % i for i in range(10**6)])

    yield case("T37-million-tensors", million, Accept(lambda g: g.read("0999999")), large=True)
    yield case("T38-colliding-names", lambda: table(colliding_names()), Accept(lambda g: len(g.tensors)), large=True)


def colliding_names() -> list[bytes]:
    """100,000 printable names of 80 bytes whose hash in libstdc++ is one and the same.

    std::hash of a string is MurmurHash64A, which takes 8 bytes at a time in steps that can be undone. So from a given
    state there are as many pairs of words as one likes that lead to another given state: ten for each of five stages.
    """
    multiply, modulus, size = 0xC6A4A7935BD1E995, 2**64, 80
    m, inverse = np.uint64(multiply), np.uint64(pow(multiply, -1, modulus))
    shift = np.uint64(47)
    random = np.random.default_rng(38)

    def stage(state: np.uint64, after: np.uint64) -> list[bytes]:
        found: list[bytes] = []
        before_last = np.uint64(int(after) * int(inverse) % modulus)
        while len(found) < 10:
            first = random.integers(ord("0"), ord("z"), (2**17, 8), np.uint8).view("<u8")[:, 0]
            k = first * m
            k = (k ^ (k >> shift)) * m
            k = (((state ^ k) * m) ^ before_last) * inverse
            second = (k ^ (k >> shift)) * inverse
            octets = np.stack([first, second], axis=1).view(np.uint8)
            good = ((octets > ord(" ")) & (octets <= ord("~"))).all(axis=1)
            found += [row.tobytes() for row in octets[good]]
        return found[:10]

    states = [np.uint64(0xC70F6907 ^ (size * multiply % modulus)), *random.integers(0, modulus, 5, np.uint64)]
    stages = [stage(before, after) for before, after in pairwise(states)]
    return [b"".join(parts) for parts in product(*stages)]

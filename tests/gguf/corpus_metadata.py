"""Cases about key-value pairs (K) and the alignment that one of them declares (A)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from corpus import Accept, Case, Refuse, Reject, case
from gguf_image import (
    ARRAY,
    BOOL,
    CODES,
    F32,
    F64,
    I8,
    I32,
    STRING,
    TYPE_NAMES,
    U8,
    U32,
    U64,
    Image,
    Pair,
    Tensor,
    array,
    number,
    numbers,
    scalar,
    string,
    strings,
    text,
    u32,
    u64,
    with_pairs,
)

KEY = "x.key"
AT = with_pairs(text(KEY, "")).value_at(1)  # where the value of KEY stands, as the second pair
PAIR_AT = with_pairs().pair_at(1)
TYPE_AT = AT - 4
VALUE = f'kv[1] "{KEY}"'


def cases() -> Iterator[Case]:
    yield from key_cases()
    yield from string_cases()
    yield from array_cases()
    yield from number_cases()
    yield from cut_cases()
    yield from many_cases()
    yield from architecture_cases()
    yield from alignment_cases()


def bad_key(id: str, key: str | bytes, message: str, key_length: int | None = None) -> Case:
    pair = Pair(key, U32, u32(1), key_length)
    return case(id, with_pairs(pair).build(), Reject("kv[1].key", PAIR_AT, message))


def bad_value(id: str, kind: int, payload: bytes, field: str, at: int, message: str) -> Case:
    return case(id, with_pairs(Pair(KEY, kind, payload)).build(), Reject(field, at, message))


def equal(getter: Callable[[Any], object], expected: object) -> Accept:
    def check(g: Any) -> None:
        found = getter(g)
        assert found == expected, f"{found!r} is not {expected!r}"

    return Accept(check)


def key_cases() -> Iterator[Case]:
    yield bad_key("K01-key-length-2-64", "k", "are left in the file", 2**64 - 1)
    yield bad_key("K02-key-length-2-63", "k", "are left in the file", 2**63)
    yield bad_key("K03-key-past-the-end", "k", "are left in the file", 4096)
    yield bad_key("K04-key-too-long", "k" * 1025, "at most 1024")
    longest = "k" * 1024
    yield case(
        "K04-key-just-short-enough", with_pairs(scalar(longest, U32, 7)).build(), equal(lambda g: g.get(longest), 7)
    )
    yield bad_key("K05-empty-key", "", "is empty")
    yield bad_key("K06-nul-in-key", "general\0name", r"general\x00name")
    yield bad_key("K07-key-not-utf-8", b"general.\xff", r"general.\xff")
    yield bad_key("K07-key-overlong-utf-8", b"general.\xc0\xaf", "not UTF-8")
    yield bad_key("K07-key-surrogate", b"general.\xed\xa0\x80", "not UTF-8")
    yield bad_key("K08-ansi-in-key", "a\x1b[31mred", r"a\x1b[31mred")
    yield bad_key("K08-newline-in-key", "a\nERROR: forged", r"a\x0aERROR")
    yield bad_key("K08-right-to-left-in-key", "a\u202egnp", r"a\u202egnp")
    twice = with_pairs(scalar(KEY, U32, 1), scalar(KEY, U32, 1))
    yield case("K09-key-twice", twice.build(), Reject(f'kv[2] "{KEY}"', twice.value_at(2), "occurs twice"))
    other = with_pairs(scalar(KEY, U32, 1), text(KEY, "1"))
    yield case("K10-key-twice-other-type", other.build(), Reject(f'kv[2] "{KEY}"', other.value_at(2), "occurs twice"))
    for id, kind in (("K11", 13), ("K12", 2**32 - 1), ("K13", 2**31)):
        yield bad_value(f"{id}-type", kind, u32(0), f"{VALUE}.type", TYPE_AT, f"no value type {kind}")


def string_cases() -> Iterator[Case]:
    for id, length in (("K14", 2**64 - 1), ("K15", 4096)):
        yield bad_value(f"{id}-string-length", STRING, string("s", length), VALUE, AT, "are left in the file")

    def sparse(folder: Any) -> Any:
        image = with_pairs(Pair(KEY, STRING, string("", 2**30)))
        path = folder / "sparse.gguf"
        with path.open("wb") as file:
            file.write(image.head()[: AT + 8])
            file.truncate(AT + 8 + 2**30)
        return path

    yield Case("K16-gibibyte-in-sparse-file", sparse, Reject(VALUE, AT, "at most 67108864"))
    yield case("K17-string-with-nul", with_pairs(text(KEY, "a\0b")).build(), equal(lambda g: g.get(KEY), "a\0b"))
    bad = with_pairs(text(KEY, b"a\xffb")).build()
    yield case("K18-string-not-utf-8", bad, equal(lambda g: (g.get(KEY), g.get_bytes(KEY)), ("a\ufffdb", b"a\xffb")))


def array_cases() -> Iterator[Case]:
    element, count = f"{VALUE}.element_type", f"{VALUE}.count"
    nested = array(ARRAY, numbers(U32, [1, 2]), 1)
    yield bad_value("K19-array-of-array", ARRAY, nested, element, AT, "arrays of arrays")
    for id, depth in (("K20", 1_000), ("K21", 100_000)):
        deep = (u32(ARRAY) + u64(1)) * depth + numbers(U8, [1])
        yield bad_value(f"{id}-depth-{depth}", ARRAY, deep, element, AT, "arrays of arrays")
    yield bad_value("K22-element-type", ARRAY, array(77, bytes(8), 1), element, AT, "no value type 77")
    left = "bytes are left in the file"
    yield bad_value("K23-count-2-64", ARRAY, array(U8, bytes(8), 2**64 - 1), count, AT + 4, left)
    yield bad_value("K24-count-wraps", ARRAY, array(U64, bytes(8), 2**61), count, AT + 4, left)
    yield bad_value("K24-count-wraps-to-8", ARRAY, array(U64, bytes(8), 2**61 + 1), count, AT + 4, left)
    yield bad_value("K25-count-past-the-end", ARRAY, array(F32, bytes(8), 1000), count, AT + 4, left)
    yield bad_value("K26-2-40-strings", ARRAY, array(STRING, bytes(8), 2**40), count, AT + 4, left)
    overrun = array(STRING, string("one") + string("two", 4096), 2)
    yield bad_value(
        "K27-last-string-overruns", ARRAY, overrun, f"{VALUE}[1]", AT + 12 + 11, left.removeprefix("bytes ")
    )
    empty = with_pairs(Pair(KEY, ARRAY, numbers(F32, []))).build()
    refuse = Refuse("get_f32_array", KEY, AT, "has 0 elements where 3 are needed", (3,))
    yield case("K28-empty-where-needed", empty, refuse)
    no_strings = with_pairs(Pair(KEY, ARRAY, strings([]))).build()
    yield case("K28-empty-strings", no_strings, equal(lambda g: (g.get(KEY), g.array_length(KEY)), ([], 0)))
    long = with_pairs(Pair(KEY, ARRAY, numbers(F32, [0] * 4))).build()
    yield case("K28-longer-than-needed", long, Refuse("get_f32_array", KEY, AT, "has 4 elements where 3", (3,)))


def number_cases() -> Iterator[Case]:
    for value in (2, 255):
        yield bad_value(f"K29-bool-{value}", BOOL, bytes([value]), VALUE, AT, f"not {value}")
    bools = array(BOOL, bytes([1, 0, 2]), 3)
    yield bad_value("K29-bool-in-array", ARRAY, bools, f"{VALUE}[2]", AT + 12 + 2, "not 2")
    for name, value in (("nan", math.nan), ("inf", math.inf), ("minus-inf", -math.inf)):
        for kind in (F32, F64):
            content = with_pairs(scalar(KEY, kind, value)).build()
            id = f"K30-{name}-{TYPE_NAMES[kind]}"
            yield case(id, content, Refuse("get_f32", KEY, AT, f"not {TYPE_NAMES[kind]} "))
    shown = with_pairs(scalar(KEY, F32, math.inf)).build()
    yield case("K30-inf-is-shown", shown, equal(lambda g: g.get(KEY), math.inf))
    scores = with_pairs(Pair(KEY, ARRAY, numbers(F32, [0, math.nan]))).build()
    yield case("K30-nan-in-array", scores, Refuse("get_f32_array", KEY, AT, "element 1:"))
    too_large = with_pairs(scalar(KEY, F64, 1e300)).build()
    yield case("K30-float64-beyond-float32", too_large, Refuse("get_f32", KEY, AT, "1e+300"))

    def refused(id: str, pair: Pair, getter: str, message: str) -> Case:
        return case(id, with_pairs(pair).build(), Refuse(getter, KEY, AT, message))

    yield refused("K34-uint64-beyond-uint32", scalar(KEY, U64, 2**32), "get_u32", "not uint64 4294967296")
    yield case(
        "K34-uint64-that-fits",
        with_pairs(scalar(KEY, U64, 2**32 - 1)).build(),
        equal(lambda g: g.get_u32(KEY), 2**32 - 1),
    )
    yield refused("K34-uint64-beyond-int64", scalar(KEY, U64, 2**63), "get_i64", "not uint64 9223372036854775808")
    yield refused("K35-negative", scalar(KEY, I32, -1), "get_u32", "not int32 -1")
    yield case("K35-int8-that-fits", with_pairs(scalar(KEY, I8, 5)).build(), equal(lambda g: g.get_u64(KEY), 5))
    yield refused("K36-string-for-integer", text(KEY, "32"), "get_u32", "not string")
    yield refused("K36-float-for-integer", scalar(KEY, F32, 32), "get_u32", "not float32 32")
    yield refused("K36-integer-for-float", scalar(KEY, U32, 1), "get_f32", "not uint32 1")
    yield refused("K36-bool-for-integer", scalar(KEY, BOOL, 1), "get_u32", "not true")
    yield refused("K36-integer-for-bool", scalar(KEY, U32, 1), "get_bool", "not uint32 1")
    yield refused("K36-integer-for-string", scalar(KEY, U32, 1), "get_string", "not uint32")
    yield refused("K36-scalar-for-array", scalar(KEY, F32, 1), "get_f32_array", "an array is needed")
    yield refused("K36-array-for-scalar", Pair(KEY, ARRAY, numbers(U32, [1])), "get_u32", "not array")
    yield refused("K36-int8-scores", Pair(KEY, ARRAY, numbers(I8, [1, 2])), "get_f32_array", "element 0:")
    yield refused("K36-strings-for-numbers", Pair(KEY, ARRAY, strings(["1"])), "get_i32_array", "not of strings")
    yield refused("K36-numbers-for-strings", Pair(KEY, ARRAY, numbers(I32, [1])), "get_strings", "not of int32")
    yield refused("K36-element-does-not-fit", Pair(KEY, ARRAY, numbers(U32, [1, 2**31])), "get_i32_array", "element 1:")


def cut_cases() -> Iterator[Case]:
    """The file ends within the value, one byte short of it."""
    for kind in CODES:
        payload = number(kind, 1)[:-1]
        cut = with_pairs(Pair(KEY, kind, payload)).head()[: AT + len(payload)]
        yield case(f"K31-cut-{TYPE_NAMES[kind]}", cut, Reject(VALUE, AT, "truncated"))
        values = numbers(kind, [1, 1])[:-1]
        cut = with_pairs(Pair(KEY, ARRAY, values)).head()[: AT + len(values)]
        yield case(f"K31-cut-array-{TYPE_NAMES[kind]}", cut, Reject(f"{VALUE}.count", AT + 4, "are left"))
    cut = with_pairs(text(KEY, "four")).head()[: AT + 8 + 3]
    yield case("K31-cut-string", cut, Reject(VALUE, AT, "are left"))
    cut = with_pairs(Pair(KEY, ARRAY, strings(["one", "two"]))).head()[: AT + 12 + 22 - 1]
    yield case("K31-cut-array-string", cut, Reject(f"{VALUE}[1]", AT + 12 + 11, "are left"))


def many_cases() -> Iterator[Case]:
    def pairs(count: int) -> bytes:
        body = b"".join(struct.pack("<Q7sIB", 7, b"%07d" % i, U8, i % 256) for i in range(count))
        return Image(n_pairs=count).header + body

    yield case("K32-million-pairs", lambda: pairs(10**6), equal(lambda g: g.get("0999999"), 999_999 % 256), large=True)
    yield case("K33-unknown-keys", lambda: pairs(10**4), equal(lambda g: len(g.keys()), 10**4), large=True)


def architecture_cases() -> Iterator[Case]:
    key = "general.architecture"
    missing = with_pairs(text("general.name", "x"), architecture=False).build()
    yield case("K37-architecture-missing", missing, Refuse("get_string", key, 24, "is missing"))
    for kind in (U32, F32):
        wrong = with_pairs(scalar(key, kind, 1), architecture=False)
        refuse = Refuse("get_string", key, wrong.value_at(0), "a string is needed")
        yield case(f"K38-architecture-{TYPE_NAMES[kind]}", wrong.build(), refuse)
    for id, name in (("K39-unknown", "nonesuch"), ("K40-format-string", "%n%s../../")):
        content = with_pairs(text(key, name), architecture=False).build()
        yield case(f"{id}-architecture", content, equal(lambda g: g.get_string("general.architecture"), name))


def alignment_cases() -> Iterator[Case]:
    key = "general.alignment"

    def image(pair: Pair, alignment: int) -> Image:
        tensors = (Tensor("a", [8]), Tensor("b", [8], offset=max(alignment, 32)))
        return replace(with_pairs(pair), tensors=tensors, alignment=alignment, data=bytes(2 * max(alignment, 32)))

    def declared(value: int, kind: int = U32, alignment: int = 32) -> Image:
        return image(scalar(key, kind, value), alignment)

    def works(g: Any) -> None:
        assert [g.read(n).tolist() for n in ("a", "b")] == [[0] * 32] * 2

    field = f'kv[1] "{key}"'
    at = declared(0).value_at(1)
    for id, value in (("A01", 0), ("A03", 3), ("A04", 13), ("A05", 2**30), ("A06", 2**31), ("A06", 131072)):
        reject = Reject(field, at, f"{value} is no power of two of 1 to 65536")
        yield case(f"{id}-{value}", declared(value).build(), reject)
    for value in (1, 2, 4, 8, 65536):
        yield case(f"A02-{value}", declared(value, alignment=value).build(), Accept(works))
    yield case("A07-int32", declared(64, I32, 64).build(), Accept(works))
    yield case("A07-negative", declared(-32, I32).build(), Reject(field, at, "not int32 -32"))
    yield case("A08-uint64", declared(64, U64, 64).build(), Accept(works))
    yield case("A08-uint64-2-40", declared(2**40, U64).build(), Reject(field, at, f"not uint64 {2**40}"))
    yield case("A09-array", image(Pair(key, ARRAY, numbers(U32, [32])), 32).build(), Reject(field, at, "not array"))
    yield case("A09-string", image(text(key, "32"), 32).build(), Reject(field, at, "not string"))
    laid_out = declared(64)
    assert len(laid_out.head()) % 64 > 32, "the case needs a table that ends in the second half"
    yield case("A10-declared-64-laid-out-at-32", laid_out.build(), Reject("tensor[1].offset", None, "no multiple"))

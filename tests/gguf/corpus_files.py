"""Cases about whole files: the header (H), and models split over several (S)."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corpus import Accept, Case, Expectation, Reject, RejectFile, case
from gguf_image import (
    ARCHITECTURE,
    I32,
    U16,
    U32,
    Image,
    Pair,
    Tensor,
    scalar,
    seed,
    text,
    with_pairs,
    with_tensors,
)

GOOD = with_pairs(text("general.name", "seed"))
TWO_TENSORS = with_tensors(Tensor("a", [8]), Tensor("b", [8], offset=32))


def big_endian() -> bytes:
    return b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + struct.pack(">Q", 7) + b"general" + bytes(40)


def zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return out.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def magic(message: str) -> Reject:
    return Reject("header.magic", 0, message)


def cases() -> Iterator[Case]:
    yield from header_cases()
    yield from foreign_cases()
    yield from split_cases()


def header_cases() -> Iterator[Case]:
    good = GOOD.build()
    yield case("H01-empty", b"", magic("an empty file"))
    for n in (1, 2, 3):
        yield case(f"H02-{n}-bytes", b"GGUF"[:n], magic("not a GGUF file"))
    yield case("H03-magic-only", b"GGUF", Reject("header.version", 4, "truncated"))
    yield case("H04-byte-swapped-magic", b"FUGG" + good[4:], magic("big-endian"))
    yield case("H05-lower-case-magic", b"gguf" + good[4:], magic("not a GGUF file"))
    for number, version in (("H06", 0), ("H07", 1), ("H08", 4), ("H09", 2**32 - 1)):
        wrong = replace(GOOD, version=version).build()
        yield case(f"{number}-version", wrong, Reject("header.version", 4, f"version {version};"))
    yield case("H10-big-endian", big_endian(), Reject("header.version", 4, "big-endian"))
    yield case("H11-cut-in-tensor-count", good[:12], Reject("header.tensor_count", 8, "truncated"))
    yield case("H12-cut-in-kv-count", Image().build()[:20], Reject("header.kv_count", 16, "truncated"))
    for number, count in (("H13", 2**64 - 1), ("H14", 2**63), ("H15", 2**32)):
        lie = replace(GOOD, n_tensors=count).build()
        yield case(f"{number}-tensor-count", lie, Reject("header.tensor_count", 8, f"declares {count} entries"))
    for number, count in (("H16", 2**64 - 1), ("H17", 2**63), ("H18", 10**9)):
        lie = replace(GOOD, n_pairs=count).build()
        yield case(f"{number}-kv-count", lie, Reject("header.kv_count", 16, f"declares {count} entries"))
    yield case("H19-one-kv-too-many", replace(GOOD, n_pairs=3).build(), Reject("tensor[0].name", None, ""))
    yield case("H20-one-kv-too-few", replace(GOOD, n_pairs=1).build(), Reject("tensor[0].n_dims", None, "dimensions"))
    too_many = replace(TWO_TENSORS, n_tensors=3).build()
    yield case("H21-one-tensor-too-many", too_many, Reject("tensor[2].name", None, "is empty"))
    too_few = replace(TWO_TENSORS, n_tensors=1).build()
    yield case("H22-one-tensor-too-few", too_few, Reject("data.padding", TWO_TENSORS.tensor_at(1), "not zero"))
    yield case("H23-nothing-in-it", Image().build(), Accept(lambda g: check_equal((g.keys(), g.tensors), ([], []))))
    yield case("H23-version-2", seed(version=2).build(), Accept(lambda g: check_equal(g.version, 2)))
    yield case("H23-version-3", seed().build(), Accept(lambda g: check_equal(len(g.tensors), 4)))
    yield case("H24-zip-prefix", zip_file() + good, magic("zip archive"))
    yield case("H24-junk-prefix", b"junkjunk" + good, magic('begins with "junk"'))


def foreign_cases() -> Iterator[Case]:
    for name in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        yield case(f"H25-{name.decode()}", name + GOOD.build()[4:], magic("legacy GGML"))
    yield case("H26-safetensors", safetensors(), magic("safetensors"))
    yield case("H26-pickle", pickle.dumps({"w": [1.0]}, protocol=2), magic("pickle"))
    yield case("H26-zip", zip_file(), magic("zip archive"))
    yield case("H26-html", b"\xef\xbb\xbf\n <!DOCTYPE html><html>404</html>", magic("HTML page"))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    yield case("H26-lfs-pointer", pointer, magic("git-lfs pointer"))
    yield case("H26-json", b'{"error": "Repository not found"}', magic("JSON text"))
    yield case("H26-zeros", bytes(4096), magic("begins with zeros"))
    yield case("H26-gzip", b"\x1f\x8b\x08\x00" + bytes(60), magic("gzip archive"))
    yield case("H26-escape-sequence", b"\x1b[2J" + bytes(60), magic(r'begins with "\x1b[2J"'))


def split_part(index: int, count: int, *extra: Pair, tensors: int = 2, version: int = 3, name: str = "") -> Image:
    """Part `index` (from 0) of a split model, with one tensor; the architecture stands in the first only."""
    pairs = (scalar("split.no", U16, index), scalar("split.count", U16, count))
    pairs += (scalar("split.tensors.count", I32, tensors), *extra)
    if index == 0:
        pairs = (ARCHITECTURE, *pairs)
    return Image(pairs, (Tensor(name or f"t{index}", [8]),), bytes([index]) * 32, version=version)


def split_case(id: str, parts: dict[str, bytes], start: str, expect: Expectation) -> Case:
    def build(folder: Path) -> Path:
        for name, content in parts.items():
            (folder / name).write_bytes(content)
        return folder / start

    return Case(id, build, expect)


def check_equal(found: object, expected: object) -> None:
    assert found == expected, f"{found!r} is not {expected!r}"


def split_cases() -> Iterator[Case]:
    first, second = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
    no = 'kv[1] "split.no"'  # kv[0] in parts other than the first

    def pair(part_0: Image, part_1: Image | None) -> dict[str, bytes]:
        return {first: part_0.build()} | ({} if part_1 is None else {second: part_1.build()})

    def both(g: object) -> None:
        check_equal([t.name for t in g.tensors], ["t0", "t1"])  # type: ignore[attr-defined]
        check_equal([g.read(f"t{i}").tolist() for i in (0, 1)], [[0] * 32, [1] * 32])  # type: ignore[attr-defined]
        check_equal([Path(f).name for f in g.files], [first, second])  # type: ignore[attr-defined]

    good = pair(split_part(0, 2), split_part(1, 2))
    at = split_part(0, 2).value_at

    def reject(id: str, parts: dict[str, bytes], field: str, at: int | None, message: str, start: str = first) -> Case:
        return split_case(id, parts, start, Reject(field, at, message))

    yield split_case("S00-good", good, first, Accept(both))
    yield split_case("S00-through-dots", good, f"../S00-through-dots/{first}", Accept(both))
    yield reject("S01-number-beyond-count", pair(split_part(2, 2), None), 'kv[0] "split.no"', None, "cannot be")
    yield split_case("S02-count-0", {"m.gguf": split_part(0, 0, tensors=1).build()}, "m.gguf", Accept())
    many = {"m-00001-of-65535.gguf": split_part(0, 65535).build()}
    yield split_case("S03-count-65535", many, "m-00001-of-65535.gguf", RejectFile("No such file"))
    unnamed = {"m.gguf": split_part(0, 2).build()}
    yield reject("S03-not-named-as-part", unnamed, no, at(1), "its name does not end", "m.gguf")
    huge = split_part(0, 1)
    huge = replace(huge, pairs=(ARCHITECTURE, scalar("split.count", U32, 2**32 - 1)))
    yield reject(
        "S03-count-2-32", {"m.gguf": huge.build()}, 'kv[1] "split.count"', huge.value_at(1), "at most", "m.gguf"
    )
    yield split_case("S04-part-missing", pair(split_part(0, 2), None), first, RejectFile("No such file"))
    other = split_part(1, 2, text("general.architecture", "bert"))
    other_at = other.value_at(3)
    yield reject(
        "S05-other-architecture", pair(split_part(0, 2), other), 'kv[3] "general.architecture"', other_at, "differs"
    )
    yield reject("S05-other-count", pair(split_part(0, 2), split_part(1, 3)), 'kv[0] "split.no"', None, "part 2 of 3")
    yield reject("S05-no-split-keys", pair(split_part(0, 2), GOOD), 'kv "split.no"', 24, "part 1 of 1")
    twice = pair(split_part(0, 2), split_part(1, 2, name="t0"))
    yield reject("S06-tensor-twice", twice, "tensor[0].name", split_part(1, 2, name="t0").tensor_at(0), "occurs twice")
    lie = pair(split_part(0, 2, tensors=3), split_part(1, 2, tensors=3))
    yield reject("S07-tensor-count", lie, 'kv[3] "split.tensors.count"', at(3), "says 3")
    yield reject("S08-second-part", good, 'kv[0] "split.no"', None, first, second)
    mixed = pair(split_part(0, 2), split_part(1, 2, version=2))
    yield reject("S09-mixed-versions", mixed, "header.version", 4, "the first part has version 3")
    cut = good | {second: good[second][:-1]}
    yield reject("S10-part-truncated", cut, "tensor[0].offset", None, "truncated")
    yield reject("S10-part-empty", good | {second: b""}, "header.magic", 0, "an empty file")

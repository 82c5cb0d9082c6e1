"""GgufOutput: files that gguf and our own reader read back, and nothing under the final name unless all is well."""

# ruff: noqa: PT012 (what fails may be the end of a block)
from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import numpy as np
import pytest
from sterna import _core
from sterna.errors import ArgumentError, FileError
from sterna.gguf_output import GgufOutput

METADATA = [
    ("a.u8", 255, "uint8"), ("a.i8", -128, "int8"), ("a.u16", 65535, "uint16"), ("a.i16", -32768, "int16"),
    ("a.u32", 2**32 - 1, "uint32"), ("a.i32", -(2**31), "int32"), ("a.u64", 2**64 - 1, "uint64"),
    ("a.i64", -(2**63), "int64"), ("a.f32", 0.1, "float32"), ("a.f64", 0.1, "float64"), ("a.bool", True, "bool"),
    ("a.text", "Seeschwalbe \N{BIRD}", "string"), ("a.empty", "", "string"),
    ("a.texts", ["", "a", "\N{BIRD}"], "array[string]"), ("a.no_texts", [], "array[string]"),
    ("a.numbers", [1, 2, 3], "array[int32]"), ("a.none", [], "array[uint8]"), ("a.flags", [True, False], "array[bool]"),
    ("a.packed", np.arange(4, dtype="<f4").tobytes(), "array[float32]"),
]  # fmt: skip


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def write_sample(path: Path, **options: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((2, 3, 7)).astype(np.float16),
        "c": rng.integers(0, 256, (4, 34), dtype=np.uint8),
    }
    with GgufOutput(path, "llama", **options) as out:
        for key, value, kind in METADATA:
            out.metadata(key, value, kind)
        out.declare("a", (5, 3), "F32", 60)
        out.declare("b", (7, 3, 2), 1, 84)
        out.declare("c", (32, 4), "q8_0", 136)
        out.begin()
        out.write("a", tensors["a"])
        for part in tensors["b"]:
            out.write("b", part)
        out.write("c", tensors["c"].tobytes()[:70])
        out.write("c", memoryview(tensors["c"].tobytes())[70:])
    return tensors


def test_gguf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = write_sample(path)
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    want = {key: value for key, value, _ in METADATA} | {"general.architecture": "llama", "a.packed": [0, 1, 2, 3]}
    want["a.f32"] = float(np.float32(0.1))
    # GGUFReader cannot say what an empty array holds.
    for key in ("a.no_texts", "a.none"):
        del values[key], want[key]
    assert values == want
    assert {t.name: (t.tensor_type.name, tuple(map(int, t.shape))) for t in reader.tensors} == {
        "a": ("F32", (5, 3)), "b": ("F16", (7, 3, 2)), "c": ("Q8_0", (32, 4)),
    }  # fmt: skip
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, tensors[tensor.name])
    assert leftovers(tmp_path) == []


def test_our_reader_reads_it_and_a_copy_keeps_everything(tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write_sample(first)
    source = _core.Gguf(first)
    with GgufOutput(second, "llama") as out:
        out.copy_metadata(source)
        for tensor in source.tensors:
            out.declare(tensor.name, tensor.shape[::-1], tensor.format, tensor.bytes)
        out.begin()
        for tensor in source.tensors:
            out.write(tensor.name, source.read(tensor.name))
    assert second.read_bytes() == first.read_bytes()
    assert [(key, source.type_of(key)) for key in source.keys()][1:] == [(key, kind) for key, _, kind in METADATA]  # noqa: SIM118


def test_text_that_is_not_utf8_and_splits(tmp_path: Path) -> None:
    path, copy = tmp_path / "model.gguf", tmp_path / "copy.gguf"
    with GgufOutput(path, "llama") as out:
        out.metadata("x", b"\xff\xfe", "string")
        out.metadata("xs", [b"\xff", b"ok"], "array[string]")
        out.metadata("split.count", 1, "uint16")
        out.metadata("dropped", 1, "uint16")
        out.begin()
    with GgufOutput(copy, "qwen3") as out:
        out.copy_metadata(_core.Gguf(path), skip={"dropped"})
        out.begin()
    file = _core.Gguf(copy)
    assert file.keys() == ["general.architecture", "x", "xs"]
    assert file.get("general.architecture") == "qwen3"
    assert file.get_bytes("x") == b"\xff\xfe"
    assert file.get_bytes_list("xs") == [b"\xff", b"ok"]


def test_alignment_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with GgufOutput(path, "llama") as out:
        out.metadata("general.alignment", 256, "uint32")
        out.declare("a", (3,), "F32", 12)
        out.declare("b", (3,), "F32", 12)
        out.begin()
        out.write("a", np.ones(3, np.float32))
        out.write("b", np.ones(3, np.float32))
    assert [tensor.offset % 256 for tensor in _core.Gguf(path).tensors] == [0, 0]
    with pytest.raises(ArgumentError, match="not a power of two"):
        GgufOutput(tmp_path / "other.gguf", "llama").metadata("general.alignment", 48, "uint32")


def test_ids_that_gguf_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with GgufOutput(path, "bitnet") as out:
        out.declare("w", (128, 2), 36, 96)
        out.begin()
        out.write("w", bytes(96))
    # The table's entry: name, two extents, id, offset.
    entry = struct.pack("<Q1sI2QIQ", 1, b"w", 2, 128, 2, 36, 0)
    content = path.read_bytes()
    assert content.count(entry) == 1 and content.endswith(bytes(96))


def test_a_value_is_replaced_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with GgufOutput(path, "llama") as out:
        out.metadata("a", 1, "uint32")
        out.metadata("b", 2, "uint32")
        out.metadata("a", 3, "uint64")
        out.begin()
    file = _core.Gguf(path)
    assert file.keys() == ["general.architecture", "a", "b"]
    assert (file.get("a"), file.type_of("a")) == (3, "uint64")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(256, "uint8"), (-1, "uint64"), ("a", "int32"), (1, "string"), (["a"], "array[int8]"), ([300], "array[uint8]")],
)
def test_values_that_do_not_fit(tmp_path: Path, value: object, kind: str) -> None:
    with pytest.raises(ArgumentError, match="metadata 'key'"):
        GgufOutput(tmp_path / "model.gguf", "llama").metadata("key", value, kind)


@pytest.mark.parametrize("kind", ["uint128", "array[array]", "array[", "array", ""])
def test_types_that_there_are_not(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be written"):
        GgufOutput(tmp_path / "model.gguf", "llama").metadata("key", [], kind)


def test_calls_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    one = np.ones(4, np.float32)

    def start(*names: str) -> GgufOutput:
        out = GgufOutput(path, "llama")
        for name in names:
            out.declare(name, (4,), "F32", 16)
        return out

    with pytest.raises(ArgumentError, match="before begin"), start("a") as out:
        out.write("a", one)
    with pytest.raises(ArgumentError, match=r"begin\(\) was never called"), start("a"):
        pass
    with pytest.raises(ArgumentError, match="'b' got 0 bytes, declared are 16"), start("a", "b") as out:
        out.begin()
        out.write("a", one)
    with pytest.raises(ArgumentError, match="'a' got 8 bytes, declared are 16"), start("a", "b") as out:
        out.begin()
        out.write("a", one[:2])
        out.write("b", one)
    with pytest.raises(ArgumentError, match="'a' gets 20 bytes, declared are 16"), start("a") as out:
        out.begin()
        out.write("a", one)
        out.write("a", one[:1])
    with pytest.raises(ArgumentError, match="'a' is not declared, or its turn is over"), start("a", "b") as out:
        out.begin()
        out.write("a", one)
        out.write("b", one)
        out.write("a", one[:0])
    with pytest.raises(ArgumentError, match="not contiguous"), start("a") as out:
        out.begin()
        out.write("a", np.ones(8, np.float32)[::2])
    for call in (lambda: out.metadata("a", 1, "uint8"), lambda: out.declare("c", (1,), "F32", 4), lambda: out.begin()):
        with pytest.raises(ArgumentError, match="already written"), start("a") as out:
            out.begin()
            call()
    assert os.listdir(tmp_path) == []


def test_declarations_that_ggml_would_refuse(tmp_path: Path) -> None:
    out = GgufOutput(tmp_path / "model.gguf", "llama")
    out.declare("a" * 63, (1,), "F32", 4)
    with pytest.raises(ArgumentError, match="declared twice"):
        out.declare("a" * 63, (1,), "F32", 4)
    with pytest.raises(ArgumentError, match="64 bytes, at most 63"):
        out.declare("\N{LATIN SMALL LETTER E WITH ACUTE}" * 32, (1,), "F32", 4)
    for shape in ((), (1, 1, 1, 1, 1), (3, 0)):
        with pytest.raises(ArgumentError, match="1 to 4 positive extents"):
            out.declare("b", shape, "F32", 4)
    with pytest.raises(ArgumentError, match="there is no 'Q9_9'"):
        out.declare("b", (1,), "Q9_9", 4)


def test_what_is_there_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(FileError, match="exists already"):
        write_sample(path)
    assert path.read_bytes() == b"precious"
    write_sample(path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"
    # Made by somebody else while we were writing.
    other = tmp_path / "other.gguf"
    with pytest.raises(FileError, match="exists already"), GgufOutput(other, "llama") as out:
        out.begin()
        other.write_bytes(b"precious")
    assert other.read_bytes() == b"precious"
    assert leftovers(tmp_path) == []


def test_source_is_not_overwritten(tmp_path: Path) -> None:
    path, link = tmp_path / "model.gguf", tmp_path / "link.gguf"
    write_sample(path)
    link.symlink_to(path)
    before = path.read_bytes()
    for name in (path, link):
        with pytest.raises(FileError, match="same file"):
            GgufOutput(name, "llama", overwrite=True).copy_metadata(_core.Gguf(path))
    assert path.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    ends = os.pipe()
    for path, problem in (
        (Path(f"/dev/fd/{ends[1]}"), "no regular file"),
        (tmp_path, "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path / "none" / "model.gguf", "there is no folder"),
    ):
        with pytest.raises(FileError, match=problem):
            GgufOutput(path, "llama", overwrite=True)
    for end in ends:
        os.close(end)


def test_any_error_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), GgufOutput(path, "llama") as out:
            out.declare("a", (4,), "F32", 16)
            out.begin()
            assert len(leftovers(tmp_path)) == 1
            raise error
        assert os.listdir(tmp_path) == []


def test_too_little_space_is_found_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(FileError, match=r"no space left in .* are needed"), GgufOutput(path, "llama") as out:
        out.declare("a", (1 << 58,), "F32", 1 << 60)
        out.begin()
    assert os.listdir(tmp_path) == []


SCRIPT = """
    import resource, signal, sys
    from pathlib import Path
    from sterna.gguf_output import GgufOutput
    path, what = Path(sys.argv[1]), sys.argv[2]
    if what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    with GgufOutput(path, "llama") as out:
        out.declare("a", (1 << 18,), "F32", 1 << 20)
        out.begin()
        out.write("a", bytes(1 << 19))
        print("half", flush=True)
        if what != "full":
            signal.pause()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and signals")
@pytest.mark.parametrize("what", ["full", "SIGINT", "SIGKILL"])
def test_half_a_file_gets_no_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.gguf"
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), what]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if what != "full":
            assert process.stdout is not None and process.stdout.readline() == "half\n"
            process.send_signal(getattr(signal, what))
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not path.exists()
    # Nobody can clean up after SIGKILL.
    assert len(leftovers(tmp_path)) == (1 if what == "SIGKILL" else 0)
    if what == "full":
        assert "sterna.errors.FileError: cannot write" in errors and "no space left" in errors


def test_importing_costs_nothing() -> None:
    # Start-up time: neither numpy nor gguf for a module that every command may import.
    code = "import sys, sterna.gguf_output; print([m for m in ('gguf', 'numpy', 'sterna._core') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

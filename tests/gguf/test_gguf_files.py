"""Files that are no plain files, or change under the reader (class F)."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf_image import Tensor, seed, with_tensors
from sterna._core import Gguf
from sterna.errors import ArgumentError, FileError, ModelFormatError, UnsupportedModelError

SEED = seed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(SEED.build())
    return file


def refused(path: str | bytes | os.PathLike[str], message: str, error: type[Exception] = FileError) -> None:
    with pytest.raises(error, match=message) as caught:
        Gguf(path)
    assert str(caught.value).isprintable()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file") as caught:
        Gguf(tmp_path / "none.gguf")
    assert caught.value.errno == 2
    assert caught.value.filename == str(tmp_path / "none.gguf")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")


def test_symlink_loop(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(tmp_path / "a", "symbolic links")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/null"])
def test_device(tmp_path: Path, device: str) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(device)
    refused(link, "character device")
    refused(device, "character device")


def test_fifo_does_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    refused(fifo, "is a FIFO")


def test_memory_of_the_process() -> None:
    refused("/proc/self/mem", "an empty file", ModelFormatError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(path: Path) -> None:
    path.chmod(0)
    refused(path, "Permission denied")


def test_path_too_long() -> None:
    refused("/" + "a/" * 2100, "too long")


def test_path_with_newline_and_escapes(tmp_path: Path) -> None:
    refused(tmp_path / "a\nb\x1b[31m.gguf", r"a\\x0ab\\x1b\[31m")


def test_path_with_nul() -> None:
    with pytest.raises(ValueError, match="null byte"):
        Gguf("a\0b")


def test_path_that_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.gguf"
    refused(name, r"caf\\xe9")
    Path(os.fsdecode(name)).write_bytes(SEED.build())
    model = Gguf(name)
    assert os.fsencode(model.path) == name
    with pytest.raises(UnsupportedModelError, match=r"caf\\xe9"):
        model.require("nothing")


def test_sparse_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    image = with_tensors(Tensor("w", [2**38]), data=b"")
    with path.open("wb") as file:
        file.write(image.build())
        file.truncate(len(image.build()) + 2**40)
    model = Gguf(path)
    assert model.file_bytes > 2**40
    assert model.find("w").bytes == 2**40


def test_eight_exabytes_declared(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(with_tensors(Tensor("w", [2**61 - 8])).build())
    refused(path, "pass the end of the file", ModelFormatError)


def test_cut_at_page_edges(tmp_path: Path) -> None:
    path = tmp_path / "pages.gguf"
    image = with_tensors(*(Tensor(f"tensor.{i:04}", [8], offset=32 * i) for i in range(500)), data=bytes(32 * 500))
    path.write_bytes(image.build())
    for length in range(path.stat().st_size // 4096 * 4096, 0, -4096):
        os.truncate(path, length)
        refused(path, r"truncated|are left in the file", ModelFormatError)


def test_shrinks_after_opening(path: Path) -> None:
    model = Gguf(path)
    whole = model.read("four").tolist()
    os.truncate(path, model.find("four").offset + 5)
    with pytest.raises(FileError, match="when it was opened"):
        model.read("four")
    assert model.get("a.string") == "h\u00e4llo"
    path.write_bytes(SEED.build())
    assert model.read("four").tolist() == whole


def test_grows_after_opening(path: Path) -> None:
    model = Gguf(path)
    before = model.read("four").tolist()
    with path.open("ab") as file:
        file.write(b"more")
    assert model.read("four").tolist() == before


def test_replaced_or_removed_after_opening(path: Path) -> None:
    model = Gguf(path)
    before = model.read("four").tolist()
    other = path.with_name("other")
    other.write_bytes(b"another file")
    other.rename(path)
    assert model.read("four").tolist() == before
    path.unlink()
    assert model.read("four").tolist() == before


def test_overwritten_in_place(path: Path) -> None:
    """Other bytes are other numbers; no more than that."""
    model = Gguf(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert set(model.read("four")) == {255}


def test_descriptor_is_closed_and_not_inherited(path: Path) -> None:
    def descriptors() -> list[str]:
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]

    model = Gguf(path)
    (descriptor,) = descriptors()
    assert not os.get_inheritable(int(descriptor))
    del model
    assert not descriptors()
    path.write_bytes(b"GGUF")
    for _ in range(3):
        refused(path, "truncated", ModelFormatError)
    assert not descriptors()


def test_read_from_several_threads(path: Path) -> None:
    model = Gguf(path)
    names = [tensor.name for tensor in model.tensors]
    expected = {name: model.read(name).tobytes() for name in names}
    barrier = threading.Barrier(4)

    def work(_: int) -> bool:
        barrier.wait()
        return all(model.read(name).tobytes() == expected[name] for _ in range(200) for name in names)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_tensors_keep_the_file_alive(path: Path) -> None:
    tensors = Gguf(path).tensors
    assert [t.name for t in tensors] == ["token_embd.weight", "norm.weight", "cube", "four"]
    assert [t.shape for t in tensors] == [(2, 32), (32,), (2, 3, 4), (2, 2, 1, 2)]
    assert [t.format for t in tensors] == ["Q8_0", "F32", "F16", "F32"]


def test_missing_names(path: Path) -> None:
    model = Gguf(path)
    assert model.find("nothing") is None
    with pytest.raises(UnsupportedModelError, match='has no tensor "nothing"'):
        model.read("nothing")
    assert model.get("nothing") is None
    assert model.get("nothing", 3) == 3
    assert model.find_u32("nothing") is None
    with pytest.raises(ModelFormatError, match="is missing"):
        model.get_u32("nothing")
    with pytest.raises(ModelFormatError, match="is missing"):
        model.type_of("nothing")
    with pytest.raises(ArgumentError, match="element 3"):
        model.string_array_at("b.string", 3)


def test_arrays_are_copies(path: Path) -> None:
    model = Gguf(path)
    model.get("b.float32")[:] = 7
    assert np.array_equal(model.get("b.float32"), np.array([0, 1, 1], np.float32))

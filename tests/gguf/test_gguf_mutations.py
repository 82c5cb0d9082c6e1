"""A good file, cut at every byte and with every byte of its head changed: it opens, or gives a typed error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gguf_image import seed
from sterna._core import Gguf
from sterna.errors import ModelFormatError

SEED = seed()


def walk(model: Gguf) -> None:
    """Reads everything that the file holds."""
    for key in model.keys():  # noqa: SIM118 - Gguf is no mapping
        assert model.get(key) is not None
        assert model.offset_of(key) > 0
    for tensor in model.tensors:
        assert len(model.read(tensor.name)) == tensor.bytes


def test_the_seed_is_good(tmp_path: Path) -> None:
    path = tmp_path / "seed.gguf"
    path.write_bytes(SEED.build())
    walk(Gguf(path))


def test_cut_at_every_byte(tmp_path: Path) -> None:
    content = SEED.build()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content)
    for length in range(len(content) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(ModelFormatError) as caught:
            Gguf(path)
        assert caught.value.field
        assert caught.value.byte_offset is not None
        assert caught.value.byte_offset <= length


@pytest.mark.parametrize("mutation", ["zero", "ones", "flip-low-bit", "flip-high-bit", "add-one"])
def test_every_byte_changed(tmp_path: Path, mutation: str) -> None:
    change = {
        "zero": lambda byte: 0,
        "ones": lambda byte: 255,
        "flip-low-bit": lambda byte: byte ^ 1,
        "flip-high-bit": lambda byte: byte ^ 128,
        "add-one": lambda byte: (byte + 1) % 256,
    }[mutation]
    content = SEED.build()
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    opened = 0
    errors = []
    with path.open("r+b", buffering=0) as file:
        for at in range(len(SEED.head())):
            file.seek(at)
            file.write(bytes([change(content[at])]))
            try:
                walk(Gguf(path))
                opened += 1
            except ModelFormatError as error:
                errors.append(error)
            file.seek(at)
            file.write(content[at : at + 1])
    assert opened > 0
    assert errors
    assert all(error.field and str(error).isprintable() for error in errors)

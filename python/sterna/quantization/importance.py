"""Importance of input features, as llama.cpp's llama-imatrix measures it: the mean square of what each column of a
matrix is multiplied by.

Two forms of file: GGUF (`NAME.in_sum2` [num_matrices, k] and `NAME.counts`), and the older binary one, little endian:
i32 entries; per entry i32 length and name, i32 calls, i32 count and f32 sums; perhaps i32 chunks, i32 length and name
of the text. Source: tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sterna.errors import ArgumentError, FileError, ModelFormatError

Floats = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Importance by tensor name, flat: of a stack of matrices one after another."""

    path: Path
    values: dict[str, Floats]
    num_chunks: int = 0
    datasets: list[str] = field(default_factory=list)

    def of(self, name: str, num_matrices: int, k: int) -> Floats:
        """[num_matrices, k] for the tensor called `name`. ArgumentError when it is missing or of another width."""
        found = self.values.get(name)
        if found is None:
            raise ArgumentError(f"{self.path}: no importance for {name}")
        if found.size != num_matrices * k:
            raise ArgumentError(
                f"{self.path}: importance of {name} has {found.size} values, its matrices {num_matrices * k} columns"
            )
        return found.reshape(num_matrices, k)


def load_importance(path: Path) -> Importance:
    """Reads a file of either form. FileError; ModelFormatError with field and byte offset."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            content = b"" if magic == b"GGUF" else magic + file.read()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}", str(path), error.errno or 0) from error
    loaded = _from_gguf(path) if magic == b"GGUF" else _Binary(path, content).read()
    for name, values in loaded.values.items():
        if not np.isfinite(values).all() or (values < 0).any():
            bad = int(np.flatnonzero(~np.isfinite(values) | (values < 0))[0])
            raise ModelFormatError(
                f"{path}: importance of {name} is {values[bad]} for column {bad}: must be finite and not negative",
                str(path),
                name,
            )
    return loaded


def _from_gguf(path: Path) -> Importance:
    from sterna._core import Gguf

    file = Gguf(path)
    values: dict[str, Floats] = {}
    for tensor in file.tensors:
        if not tensor.name.endswith(_SUMS):
            continue
        name = tensor.name.removesuffix(_SUMS)
        counts_tensor = file.find(name + _COUNTS)
        if counts_tensor is None or tensor.format != "F32" or counts_tensor.format != "F32":
            raise ModelFormatError(
                f"{path}: {tensor.name} at byte {tensor.entry_offset}: must be F32 and have {name}{_COUNTS} beside it",
                str(path),
                tensor.name,
                tensor.entry_offset,
            )
        sums, counts = _floats(file, tensor.name), _floats(file, counts_tensor.name)
        if sums.size % counts.size:
            raise ModelFormatError(
                f"{path}: {tensor.name} at byte {tensor.entry_offset}: {sums.size} sums for {counts.size} matrices",
                str(path),
                tensor.name,
                tensor.entry_offset,
            )
        # An expert that no token was sent to has nothing to tell.
        per_matrix = sums.reshape(counts.size, -1)
        counts = counts[:, None]
        seen = counts > 0
        values[name] = np.where(seen, per_matrix / np.where(seen, counts, 1), np.float32(1)).reshape(-1)
    if not values:
        raise ModelFormatError(f"{path}: holds no importance (no tensor ends in {_SUMS})", str(path))
    datasets = file.get("imatrix.datasets", [])
    return Importance(path, values, file.find_u32("imatrix.chunk_count") or 0, list(datasets))


def _floats(file: object, name: str) -> Floats:
    raw: npt.NDArray[np.uint8] = file.read(name)  # type: ignore[attr-defined]
    return raw.view("<f4").astype(np.float32)


class _Binary:
    """Reads the older form, checking every length against what is left."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content, self._at = path, content, 0

    def read(self) -> Importance:
        values: dict[str, Floats] = {}
        for i in range(self._number("number of entries", least=1)):
            name = self._text(f"entry {i}: name")
            calls = self._number(f"entry {i} ({name}): calls")
            count = self._number(f"entry {i} ({name}): number of values", least=1)
            sums = np.frombuffer(self._take(4 * count, f"entry {i} ({name}): values"), "<f4").astype(np.float32)
            values[name] = sums / np.float32(calls) if calls > 0 else sums
        if self._at == len(self._content):
            return Importance(self._path, values)
        chunks = self._number("number of chunks")
        dataset = self._text("name of the text") if self._at < len(self._content) else ""
        return Importance(self._path, values, chunks, [dataset] if dataset else [])

    def _number(self, what: str, least: int = 0) -> int:
        at = self._at
        value = int(struct.unpack("<i", self._take(4, what))[0])
        if value < least:
            self._fail(what, at, f"is {value}")
        return value

    def _text(self, what: str) -> str:
        return self._take(self._number(what), what).decode("utf-8", "replace")

    def _take(self, count: int, what: str) -> bytes:
        left = len(self._content) - self._at
        if count > left:
            self._fail(what, self._at, f"takes {count} bytes, {left} are left (is it an importance file?)")
        self._at += count
        return self._content[self._at - count : self._at]

    def _fail(self, what: str, at: int, problem: str) -> None:
        raise ModelFormatError(f"{self._path}: {what} at byte {at}: {problem}", str(self._path), what, at)

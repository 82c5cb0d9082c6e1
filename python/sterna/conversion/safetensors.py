"""Reads safetensors files by rows with `pread`: nothing is mapped, and everything is checked before it is used.

Not the safetensors package: its numpy side knows no bfloat16, and it maps the file, so that one which shrinks meanwhile
would kill the process. Byte map: the format's own README (an u64 length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from sterna.conversion.files import open_regular
from sterna.errors import FileError, ModelFormatError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_EXTENT = 1 << 40
_MAX_DIMS = 8
_MAX_NAME = 512

# How many bytes an element takes, by dtype; those with a numpy type can be read here.
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_NUMPY = {"U8": "u1", "I8": "i1", "F16": "<f2", "BF16": "<u2", "F32": "<f4"}
FLOATS = frozenset({"F32", "F16", "BF16"})


class StoredTensor:
    """One tensor of a safetensors file: where it lies, and its rows."""

    def __init__(self, file: SafetensorsFile, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> None:
        self.file = file
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.offset = offset
        self.elements = math.prod(shape)
        self.bytes = self.elements * _SIZES[dtype]

    def fail(self, problem: str) -> NoReturn:
        """ModelFormatError about this tensor."""
        path = self.file.path
        raise ModelFormatError(f"{path}: tensor {self.name}: {problem}", str(path), self.name, self.offset)

    def rows(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Rows [begin, end) of the first dimension: float32 for floating-point types, otherwise the stored integers.

        A tensor without dimensions is one row. FileError, ModelFormatError (a file that is shorter than it was).
        """
        if self.dtype not in _NUMPY:
            self.fail(f"has dtype {self.dtype}, which is not read here")
        width = math.prod(self.shape[1:])
        stored = np.dtype(_NUMPY[self.dtype])
        data = np.empty((end - begin, *self.shape[1:]), stored)
        self.file.read_into(data, self.offset + begin * width * stored.itemsize, self.name)
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32) if self.dtype == "F16" else data

    def all(self) -> npt.NDArray[Any]:
        """The whole tensor, for small ones: in the shape of the file."""
        return self.rows(0, self.shape[0] if self.shape else 1).reshape(self.shape)


class SafetensorsFile:
    """An open safetensors file; `tensors` by name. FileError, ModelFormatError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular(path)
        try:
            self.bytes = os.fstat(self._descriptor).st_size
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, target: npt.NDArray[Any], offset: int, field: str) -> None:
        """Fills `target` from the bytes at `offset`."""
        view = memoryview(cast(Any, target)).cast("B") if target.size else memoryview(b"")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise FileError(f"{self.path}: {error.strerror or error}", str(self.path), error.errno or 0) from None
            if count == 0:
                self._fail(field, f"the file ends at byte {offset + done}, in the middle of it", offset + done)
            done += count

    def _fail(self, field: str, problem: str, at: int | None = None) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {field}: {problem}", str(self.path), field, at)

    def _read_header(self) -> dict[str, StoredTensor]:
        if self.bytes < 8:
            self._fail("header", f"the file has {self.bytes} bytes, too few for a safetensors file", 0)
        length = np.empty(1, "<u8")
        self.read_into(length, 0, "header")
        size = int(length[0])
        if size > min(MAX_HEADER_BYTES, self.bytes - 8):
            self._fail("header", f"its length is {size}; the file has {self.bytes} bytes", 0)
        raw = np.empty(size, np.uint8)
        self.read_into(raw, 8, "header")
        try:
            entries = json.loads(raw.tobytes().decode("utf-8"), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            self._fail("header", f"is not JSON ({error})", 8)
        if not isinstance(entries, dict):
            self._fail("header", "is not a JSON object", 8)
        entries.pop("__metadata__", None)
        tensors = {name: self._tensor(name, entry, 8 + size) for name, entry in entries.items()}
        self._check_extents(tensors.values(), 8 + size)
        return tensors

    def _tensor(self, name: str, entry: Any, data: int) -> StoredTensor:
        if len(name) > _MAX_NAME:
            self._fail(f"tensor {name[:60]!r}...", f"its name has {len(name)} characters, at most {_MAX_NAME}")
        if not isinstance(entry, dict):
            self._fail(f"tensor {name}", "its entry is not a JSON object")
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _SIZES:
            self._fail(f"tensor {name}", f"dtype is {dtype!r:.40}")
        if not _are_sizes(shape, _MAX_DIMS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
            self._fail(f"tensor {name}", f"shape {shape!r:.60} and data_offsets {offsets!r:.60} are not lists of sizes")
        begin, end = offsets
        tensor = StoredTensor(self, name, dtype, tuple(shape), data + begin)
        if end - begin != tensor.bytes:
            self._fail(
                f"tensor {name}", f"{dtype} {shape} takes {tensor.bytes} bytes, data_offsets {offsets} differ", data
            )
        if data + end > self.bytes:
            self._fail(f"tensor {name}", f"ends at byte {data + end}, the file at {self.bytes}", data + begin)
        return tensor

    def _check_extents(self, tensors: Iterable[StoredTensor], begin: int) -> None:
        """The tensors fill the data without holes and overlaps, as the format demands."""
        at = begin
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.bytes)):
            if tensor.offset != at:
                self._fail(f"tensor {tensor.name}", f"begins at byte {tensor.offset}, expected {at}", tensor.offset)
            at += tensor.bytes
        if at != self.bytes:
            self._fail("header", f"the tensors end at byte {at}, the file at {self.bytes}", at)


def _are_sizes(value: Any, most: int) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(item) is int and 0 <= item <= MAX_EXTENT for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{name!r:.60} stands there twice")
    return found

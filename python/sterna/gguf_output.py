"""`GgufOutput`: writes one GGUF file, tensor by tensor and all or nothing.

Not over `gguf.GGUFWriter`, which refuses empty arrays (a copy must not lose them), takes a tensor only as one whole
array and packs metadata element by element (0.4 s for a vocabulary of 256 k). The tests read what is written here
with `gguf.GGUFReader`. Byte map: ggml's gguf.md, version 3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sterna.atomic_file import AtomicFile
from sterna.errors import ArgumentError, FileError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import Gguf

Data: TypeAlias = "bytes | bytearray | memoryview | npt.NDArray[np.generic]"

# Type ids of values and how `struct` packs one; by the names that `Gguf.type_of` gives (gguf.h, enum gguf_type).
_NUMBERS = {
    "uint8": (0, "B"), "int8": (1, "b"), "uint16": (2, "H"), "int16": (3, "h"), "uint32": (4, "I"), "int32": (5, "i"),
    "float32": (6, "f"), "bool": (7, "?"), "uint64": (10, "Q"), "int64": (11, "q"), "float64": (12, "d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9

_DEFAULT_ALIGNMENT = 32
_FIRST_VARIANT = 1 << 16  # kFirstVariant (csrc/quant/format.h)
# Limits of ggml's reader (GGML_MAX_NAME with its final zero, GGML_MAX_DIMS).
_MAX_NAME_BYTES, _MAX_DIMS = 63, 4


@dataclass
class _Tensor:
    name: str
    shape: tuple[int, ...]  # k first, as the file has it
    format: int
    bytes: int
    written: int = 0


class GgufOutput:
    """A GGUF file in the making: metadata, declaration of all tensors, `begin`, then their data in the same order.

    Use it in a `with` block. The data go to a temporary file in the folder of `path`; a block that ends without an
    exception and with every declared byte written gives it its name, anything else removes it. FileError: `path` exists
    (and `overwrite` is False) or is no regular file, the folder is missing or full. ArgumentError: calls out of order,
    or data of another size than declared.
    """

    def __init__(self, path: Path, architecture: str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._file = AtomicFile(self.path, overwrite=overwrite)
        self._values: dict[str, bytes] = {}
        self._alignment = _DEFAULT_ALIGNMENT
        self._tensors: dict[str, _Tensor] = {}
        self._order: list[_Tensor] = []
        self._current = 0
        self.metadata("general.architecture", architecture, "string")

    # --- what the file will say

    def metadata(self, key: str, value: Any, type: str) -> None:
        """Sets `key`; `type` as `Gguf.type_of` names it ("uint32", "string", "array[float32]").

        Strings are str or bytes. An array of numbers is a sequence, or bytes: its elements in little endian. A second
        value for a key replaces the first one in its place.
        """
        self._before_begin("metadata")
        try:
            self._values[key] = _encode(value, type)
        except (struct.error, TypeError, OverflowError) as error:
            raise ArgumentError(f"metadata {key!r}: {value!r:.60} is no {type} ({error})") from None
        if key == "general.alignment":
            if value < 8 or value & (value - 1):
                raise ArgumentError(f"metadata 'general.alignment': {value} is not a power of two from 8 on")
            self._alignment = value

    def copy_metadata(self, file: Gguf, skip: Collection[str] = ()) -> None:
        """Copies every pair of `file` but those in `skip`, the architecture and what says that it was split.

        Raises FileError when `file` is the one being replaced.
        """
        for source in file.files:
            if self.path.exists() and os.path.samefile(source, self.path):
                raise FileError(f"{self.path}: source and destination are the same file", str(self.path))
        for key in file.keys():  # noqa: SIM118 (a method, not a dict's)
            if key in skip or key == "general.architecture" or key.startswith("split."):
                continue
            kind = file.type_of(key)
            if kind == "string":
                value: Any = file.get_bytes(key)
            elif kind == "array[string]":
                value = file.get_bytes_list(key)
            elif kind.startswith("array["):
                value = file.number_array(key)[1]
            else:
                value = file.get(key)
            self.metadata(key, value, kind)

    def declare(self, name: str, shape: Sequence[int], format: int | str, n_bytes: int) -> None:
        """Announces a tensor of `n_bytes` bytes; `shape` as GGUF has it, k first; `format` a ggml id or a name."""
        self._before_begin("declare")
        shape = tuple(int(extent) for extent in shape)
        if name in self._tensors:
            raise ArgumentError(f"tensor {name!r} is declared twice")
        if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
            raise ArgumentError(f"tensor {name!r}: its name has {len(name.encode())} bytes, at most {_MAX_NAME_BYTES}")
        if not 1 <= len(shape) <= _MAX_DIMS or min(shape) < 1:
            raise ArgumentError(f"tensor {name!r}: shape {shape} is not 1 to {_MAX_DIMS} positive extents")
        tensor = _Tensor(name, shape, format if isinstance(format, int) else _format_id(format), n_bytes)
        self._tensors[name] = tensor
        self._order.append(tensor)

    # --- the file

    def begin(self) -> None:
        """Writes the head. From here on only `write`."""
        self._before_begin("begin")
        head = self._head()
        self._file.open(len(head) + sum(self._padded(tensor.bytes) for tensor in self._order))
        self._file.write(head)

    def write(self, name: str, data: Data) -> None:
        """Appends to the data of `name`, a contiguous buffer; tensors follow each other as they were declared."""
        if not self._file.is_open:
            raise ArgumentError(f"write: tensor {name!r} before begin()")
        while self._current < len(self._order) and self._order[self._current].name != name:
            self._finish_tensor()
        if self._current == len(self._order):
            raise ArgumentError(f"write: tensor {name!r} is not declared, or its turn is over")
        tensor = self._order[self._current]
        view = memoryview(cast(Any, data))
        if not view.c_contiguous:
            raise ArgumentError(f"write: the data of tensor {name!r} are not contiguous")
        if tensor.written + view.nbytes > tensor.bytes:
            raise ArgumentError(
                f"write: tensor {name!r} gets {tensor.written + view.nbytes} bytes, declared are {tensor.bytes}"
            )
        if view.nbytes:
            self._file.write(view.cast("B"))
        tensor.written += view.nbytes

    def __enter__(self) -> GgufOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._file.discard()

    def _commit(self) -> None:
        if not self._file.is_open:
            raise ArgumentError(f"{self.path}: begin() was never called")
        while self._current < len(self._order):
            self._finish_tensor()
        self._file.commit()

    def _finish_tensor(self) -> None:
        tensor = self._order[self._current]
        if tensor.written != tensor.bytes:
            raise ArgumentError(
                f"write: tensor {tensor.name!r} got {tensor.written} bytes, declared are {tensor.bytes}"
            )
        self._file.write(bytes(self._padded(tensor.bytes) - tensor.bytes))
        self._current += 1

    def _head(self) -> bytes:
        head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(self._order), len(self._values)))
        for key, value in self._values.items():
            head += _string(key) + value
        offset = 0
        for tensor in self._order:
            head += _string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            head += struct.pack("<IQ", tensor.format, offset)
            offset += self._padded(tensor.bytes)
        return bytes(head) + bytes(self._padded(len(head)) - len(head))

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self._alignment) * self._alignment

    def _before_begin(self, call: str) -> None:
        if self._file.is_open:
            raise ArgumentError(f"{call}: the head of {self.path} is already written")


def _encode(value: Any, kind: str) -> bytes:
    """Type id and bytes of a value."""
    if kind in _NUMBERS:
        number, code = _NUMBERS[kind]
        return struct.pack(f"<I{code}", number, value)
    if kind == "string":
        return struct.pack("<I", _STRING) + _string(value)
    element = kind.removeprefix("array[").removesuffix("]")
    if element == "string":
        texts = [_string(text) for text in value]
        return struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(texts)
    if kind != f"array[{element}]" or element not in _NUMBERS:
        raise ArgumentError(f"metadata of type {kind!r} cannot be written")
    number, code = _NUMBERS[element]
    packed = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}{code}", *value)
    return struct.pack("<IIQ", _ARRAY, number, len(packed) // struct.calcsize(f"<{code}")) + packed


def _string(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def _format_id(name: str) -> int:
    """The number that files have for a format; for the reader's variants ("I2_S_ARM") that of the bytes ("I2_S")."""
    from sterna import _core

    of_files = {info.name: info.id for info in _core.formats() if info.id < _FIRST_VARIANT}
    upper = name.upper()
    bases = [base for base in of_files if upper == base or upper.startswith(base + "_")]
    if upper not in of_files and not (bases and upper in {info.name for info in _core.formats()}):
        raise ArgumentError(f"format: there is no {name!r}")
    return of_files[max(bases, key=len)]

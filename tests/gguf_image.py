"""Builds GGUF files that may lie about anything: what the malformed corpus is made of."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Value types (gguf.h, enum gguf_type).
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_NAMES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64")
TYPE_NAMES += ("int64", "float64")
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

# Tensor types (ggml.h, enum ggml_type).
TENSOR_F32, TENSOR_F16, TENSOR_Q4_0, TENSOR_Q8_0, TENSOR_Q4_K = 0, 1, 2, 8, 12


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string with its length, or with a `length` that is a lie."""
    raw = as_bytes(text)
    return u64(len(raw) if length is None else length) + raw


def number(kind: int, value: float) -> bytes:
    return struct.pack("<" + CODES[kind], value)


def array(element: int, payload: bytes, count: int) -> bytes:
    """The value of an array pair."""
    return u32(element) + u64(count) + payload


def numbers(element: int, values: Sequence[float]) -> bytes:
    return array(element, b"".join(number(element, v) for v in values), len(values))


def strings(values: Iterable[str | bytes]) -> bytes:
    parts = [string(v) for v in values]
    return array(STRING, b"".join(parts), len(parts))


@dataclass(frozen=True)
class Pair:
    """A key-value pair; `payload` is the value as the file holds it."""

    key: str | bytes
    kind: int
    payload: bytes
    key_length: int | None = None

    def raw(self) -> bytes:
        return string(self.key, self.key_length) + u32(self.kind) + self.payload

    @property
    def value_at(self) -> int:
        """Where the value stands, from the start of the pair."""
        return 8 + len(as_bytes(self.key)) + 4


def text(key: str, value: str | bytes) -> Pair:
    return Pair(key, STRING, string(value))


def scalar(key: str, kind: int, value: float) -> Pair:
    return Pair(key, kind, number(kind, value))


@dataclass(frozen=True)
class Tensor:
    """An entry of the tensor table; `dims` in the order of the file, row length first; `offset` into the data."""

    name: str | bytes
    dims: Sequence[int]
    kind: int = TENSOR_F32
    offset: int = 0
    name_length: int | None = None
    n_dims: int | None = None

    def raw(self) -> bytes:
        n_dims = len(self.dims) if self.n_dims is None else self.n_dims
        sizes = b"".join(u64(d) for d in self.dims)
        return string(self.name, self.name_length) + u32(n_dims) + sizes + u32(self.kind) + u64(self.offset)

    # Where the members stand, from the start of the entry.
    @property
    def n_dims_at(self) -> int:
        return 8 + len(as_bytes(self.name))

    @property
    def shape_at(self) -> int:
        return self.n_dims_at + 4

    @property
    def type_at(self) -> int:
        return self.shape_at + 8 * len(self.dims)

    @property
    def offset_at(self) -> int:
        return self.type_at + 4


@dataclass(frozen=True)
class Image:
    """A whole file. `alignment` is where the data really begin, whatever general.alignment says."""

    pairs: Sequence[Pair] = ()
    tensors: Sequence[Tensor] = ()
    data: bytes = b""
    alignment: int = 32
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    header: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        object.__setattr__(self, "header", self.magic + u32(self.version) + u64(n_tensors) + u64(n_pairs))

    def head(self) -> bytes:
        """Everything before the padding: header, pairs, tensor table."""
        return self.header + b"".join(p.raw() for p in self.pairs) + b"".join(t.raw() for t in self.tensors)

    def build(self) -> bytes:
        head = self.head()
        return head + bytes(-len(head) % self.alignment) + self.data

    def pair_at(self, index: int) -> int:
        return len(self.header) + sum(len(p.raw()) for p in self.pairs[:index])

    def value_at(self, index: int) -> int:
        return self.pair_at(index) + self.pairs[index].value_at

    def tensor_at(self, index: int) -> int:
        return self.pair_at(len(self.pairs)) + sum(len(t.raw()) for t in self.tensors[:index])


ARCHITECTURE = text("general.architecture", "llama")


def with_pairs(*pairs: Pair, architecture: bool = True, n_pairs: int | None = None) -> Image:
    """A small file with `pairs` after its architecture."""
    return Image(
        pairs=((ARCHITECTURE,) if architecture else ()) + pairs,
        tensors=(Tensor("w", [8]),),
        data=bytes(32),
        n_pairs=n_pairs,
    )


def with_tensors(*tensors: Tensor, data: bytes = bytes(256), n_tensors: int | None = None) -> Image:
    return Image(pairs=(ARCHITECTURE,), tensors=tensors, data=data, n_tensors=n_tensors)


def seed(version: int = 3) -> Image:
    """A good file with every value type, arrays of each, and tensors with and without blocks."""
    kinds = [kind for kind in range(13) if kind not in (STRING, ARRAY)]
    pairs = [ARCHITECTURE, scalar("general.alignment", U32, 64), text("a.string", "h\u00e4llo")]
    pairs += [scalar(f"a.{TYPE_NAMES[kind]}", kind, 1) for kind in kinds]
    pairs += [Pair(f"b.{TYPE_NAMES[kind]}", ARRAY, numbers(kind, [0, 1, 1])) for kind in kinds]
    pairs += [Pair("b.string", ARRAY, strings(["", "one", "\u732b"])), Pair("b.empty", ARRAY, numbers(U32, []))]
    tensors = [
        Tensor("token_embd.weight", [32, 2], TENSOR_Q8_0, 0),
        Tensor("norm.weight", [32], TENSOR_F32, 128),
        Tensor("cube", [4, 3, 2], TENSOR_F16, 256),
        Tensor("four", [2, 1, 2, 2], TENSOR_F32, 320),
    ]
    return Image(pairs, tensors, bytes(i % 251 for i in range(352)), alignment=64, version=version)

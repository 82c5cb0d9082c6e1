"""Typed, validating access to the `tokenizer.*` keys of a GGUF file: every getter checks the type and raises
ModelFormatError."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from sterna.errors import ModelFormatError

# A prefix of an enormous vocabulary costs memory before anything is checked; the largest published ones have 262,144
# tokens and 514,906 merges.
MAX_TOKENS = 1 << 21
MAX_MERGES = 1 << 21
# The longest token of a published vocabulary has under 1,000 bytes (runs of spaces, separators of ASCII art).
MAX_TOKEN_BYTES = 65_536

# The types of integers in arrays, as the struct module spells them.
_INTEGERS = {
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
}

_Default = TypeVar("_Default")


class Metadata(Protocol):
    """What a tokenizer needs from a GGUF file; `sterna._core.Gguf` has it."""

    @property
    def path(self) -> str:
        """Where the file is; used in messages only."""

    def keys(self) -> Iterable[str]:
        """The keys of all values."""

    def get(self, key: str, default: Any = None) -> Any:
        """A bool, int, float, str, list of str, or array of numbers."""

    def number_array(self, key: str) -> tuple[str, bytes]:
        """The element type ("float32", "int8", ...) and the little-endian bytes of an array of numbers.

        ModelFormatError for any other value.
        """

    def get_bytes_list(self, key: str) -> list[bytes]:
        """The strings of an array, undecoded. ModelFormatError for any other value; so does `array_length`."""

    def array_length(self, key: str) -> int:
        """Number of elements of an array."""

    def offset_of(self, key: str) -> int:
        """Where a value stands in the file, in bytes."""


class Fields:
    """The metadata of one file with typed getters; a missing key gives the default, a value of another type raises."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._keys = frozenset(metadata.keys())
        self.file = str(metadata.path)

    def fail(self, key: str, problem: str) -> ModelFormatError:
        """The error to raise about the value of `key`."""
        offset = self._metadata.offset_of(key) if key in self._keys else None
        return ModelFormatError(f"{self.file}: {key}: {problem}", self.file, key, offset)

    def has(self, key: str) -> bool:
        return key in self._keys

    def string(self, key: str, default: _Default) -> str | _Default:
        if key not in self._keys:
            return default
        value = self._metadata.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"a string is needed, not {_kind(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        if key not in self._keys:
            return default
        value = self._metadata.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"a bool is needed, not {_kind(value)}")
        return value

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """The id of a token, checked against the vocabulary; None where the key is missing."""
        if key not in self._keys:
            return None
        value = self._metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"a token id is needed, not {_kind(value)}")
        if not 0 <= value < vocab_size:
            raise self.fail(key, f"token id {value} is outside of the vocabulary of {vocab_size} tokens")
        return value

    def token_ids(self, key: str, vocab_size: int) -> list[int]:
        """A list of token ids, checked against the vocabulary; empty where the key is missing."""
        if key not in self._keys:
            return []
        kind, data = self._metadata.number_array(key)
        if kind not in _INTEGERS:
            raise self.fail(key, f"an array of integers is needed, not of {kind}")
        code = _INTEGERS[kind]
        ids = list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise self.fail(key, f"token id {token_id} is outside of the vocabulary of {vocab_size} tokens")
        return ids

    def token_types(self, key: str, vocab_size: int) -> bytes:
        """The type of each token, 0..6 (gguf.TokenType), a byte each."""
        data = self._numbers(key, "int32", vocab_size)
        types = data[0::4]
        if any(data[i::4].strip(b"\0") for i in (1, 2, 3)) or types.translate(None, bytes(range(7))):
            outside = next(value for (value,) in struct.iter_unpack("<i", data) if not 0 <= value <= 6)
            raise self.fail(key, f"unknown token type {outside}")
        return types

    def scores(self, key: str, vocab_size: int) -> bytes:
        """float32 [vocab_size], little endian, all finite."""
        data = self._numbers(key, "float32", vocab_size)
        # The exponent of a number that is not finite is all ones: the upper byte without its sign is 127, and the
        # highest bit of the next one is set.
        for upper in re.finditer(rb"[\x7f\xff]", data[3::4]):
            if data[4 * upper.start() + 2] >= 128:
                raise self.fail(key, f"the score of token {upper.start()} is not finite")
        return data

    def raw_bytes(self, key: str) -> bytes:
        """An array of 8-bit numbers as bytes; empty where the key is missing."""
        if key not in self._keys:
            return b""
        kind, data = self._metadata.number_array(key)
        if kind not in ("uint8", "int8"):
            raise self.fail(key, f"an array of 8-bit numbers is needed, not of {kind}")
        return data

    def strings(self, key: str, *, limit: int) -> list[bytes]:
        """An array of strings, undecoded; raises where the key is missing."""
        if key not in self._keys:
            raise self.fail(key, "is missing")
        length = self._metadata.array_length(key)
        if length > limit:
            raise self.fail(key, f"{length} strings are more than the limit of {limit}")
        return self._metadata.get_bytes_list(key)

    def _numbers(self, key: str, kind: str, length: int) -> bytes:
        """The bytes of an array of `length` numbers of 4 bytes each."""
        if key not in self._keys:
            raise self.fail(key, "is missing")
        actual, data = self._metadata.number_array(key)
        if actual != kind:
            raise self.fail(key, f"an array of {kind} is needed, not of {actual}")
        if len(data) != 4 * length:
            raise self.fail(key, f"has {len(data) // 4} values for {length} tokens")
        return data


def _kind(value: object) -> str:
    """Names the type of a metadata value in a message."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return f"an array of {dtype}"
    return {bool: "a bool", int: "an integer", float: "a float", str: "a string", list: "an array of strings"}.get(
        type(value), f"a {type(value).__name__}"
    )

"""Typed, validating access to the `tokenizer.*` keys of a GGUF file: every getter checks the type and raises
ModelFormatError."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sterna.errors import ModelFormatError

# A prefix of an enormous vocabulary costs memory before anything is checked; the largest published ones have 262,144
# tokens and 514,906 merges.
MAX_TOKENS = 1 << 21
MAX_MERGES = 1 << 21
# The longest token of a published vocabulary has under 1,000 bytes (runs of spaces, separators of ASCII art).
MAX_TOKEN_BYTES = 65_536

_Default = TypeVar("_Default")


class Metadata(Protocol):
    """What a tokenizer needs from a GGUF file; `sterna._core.Gguf` has it."""

    @property
    def path(self) -> str:
        """Where the file is; used in messages only."""

    def keys(self) -> Iterable[str]:
        """The keys of all values."""

    def get(self, key: str, default: Any = None) -> Any:
        """A bool, int, float, str, list of str, or one-dimensional numpy array."""

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
        if not isinstance(value, bool | np.bool_):
            raise self.fail(key, f"a bool is needed, not {_kind(value)}")
        return bool(value)

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """The id of a token, checked against the vocabulary; None where the key is missing."""
        if key not in self._keys:
            return None
        value = self._metadata.get(key)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self.fail(key, f"a token id is needed, not {_kind(value)}")
        if not 0 <= value < vocab_size:
            raise self.fail(key, f"token id {int(value)} is outside of the vocabulary of {vocab_size} tokens")
        return int(value)

    def token_ids(self, key: str, vocab_size: int) -> npt.NDArray[np.int64]:
        """A list of token ids, checked against the vocabulary; empty where the key is missing."""
        if key not in self._keys:
            return np.empty(0, np.int64)
        ids = self._numbers(key, np.integer, None).astype(np.int64)
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if len(outside):
            raise self.fail(key, f"token id {outside[0]} is outside of the vocabulary of {vocab_size} tokens")
        return ids

    def token_types(self, key: str, vocab_size: int) -> npt.NDArray[np.int32]:
        """int32 [vocab_size], each 0..6 (gguf.TokenType)."""
        types = self._numbers(key, np.int32, vocab_size)
        outside = types[(types < 0) | (types > 6)]
        if len(outside):
            raise self.fail(key, f"unknown token type {outside[0]}")
        return types

    def scores(self, key: str, vocab_size: int) -> npt.NDArray[np.float32]:
        """float32 [vocab_size], all finite."""
        scores = self._numbers(key, np.float32, vocab_size)
        if not np.isfinite(scores).all():
            raise self.fail(key, f"the score of token {int(np.argmin(np.isfinite(scores)))} is not finite")
        return scores

    def raw_bytes(self, key: str) -> bytes:
        """An array of 8-bit numbers as bytes; empty where the key is missing."""
        if key not in self._keys:
            return b""
        value = self._metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype not in (np.uint8, np.int8) or value.ndim != 1:
            raise self.fail(key, f"an array of 8-bit numbers is needed, not {_kind(value)}")
        return value.tobytes()

    def strings(self, key: str, *, limit: int) -> list[bytes]:
        """An array of strings, undecoded; raises where the key is missing."""
        if key not in self._keys:
            raise self.fail(key, "is missing")
        length = self._metadata.array_length(key)
        if length > limit:
            raise self.fail(key, f"{length} strings are more than the limit of {limit}")
        return self._metadata.get_bytes_list(key)

    def _numbers(self, key: str, dtype: Any, length: int | None) -> npt.NDArray[Any]:
        if key not in self._keys:
            raise self.fail(key, "is missing")
        value = self._metadata.get(key)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or not np.issubdtype(value.dtype, dtype):
            name = "integers" if dtype is np.integer else dtype.__name__
            raise self.fail(key, f"an array of {name} is needed, not {_kind(value)}")
        if length is not None and len(value) != length:
            raise self.fail(key, f"has {len(value)} values for {length} tokens")
        return value


def _kind(value: object) -> str:
    """Names the type of a metadata value in a message."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return {bool: "a bool", int: "an integer", float: "a float", str: "a string", list: "an array of strings"}.get(
        type(value), f"a {type(value).__name__}"
    )

"""Metadata in memory, as `sterna._core.Gguf` would give them, and small vocabularies that may be wrong in any way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sterna.errors import ModelFormatError
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class FakeMetadata:
    """Values by key; strings of arrays may be str or bytes."""

    path = "model.gguf"

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    def keys(self) -> Iterable[str]:
        return list(self.values)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def array_length(self, key: str) -> int:
        value = self.values[key]
        if not isinstance(value, list | np.ndarray | range):
            raise ModelFormatError("an array is needed", self.path, key, 0)
        return len(value)

    def number_array(self, key: str) -> tuple[str, bytes]:
        value = self.values[key]
        if not isinstance(value, np.ndarray) or value.ndim != 1:
            raise ModelFormatError("an array of numbers is needed", self.path, key, 0)
        return value.dtype.name, value.tobytes()

    def get_bytes_list(self, key: str) -> list[bytes]:
        value = self.values[key]
        if not isinstance(value, list):
            raise ModelFormatError("an array of strings is needed", self.path, key, 0)
        return [item.encode() if isinstance(item, str) else item for item in value]

    def offset_of(self, key: str) -> int:
        return 24 + list(self.values).index(key)

    def with_(self, changes: Mapping[str, Any]) -> FakeMetadata:
        """A copy with other values of `tokenizer.ggml.*` keys; None removes one."""
        values = self.values | {PREFIX + key: value for key, value in changes.items()}
        return FakeMetadata({key: value for key, value in values.items() if value is not None})


def byte_characters() -> list[str]:
    """The characters of GPT-2's byte-level encoding, by byte."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def bpe(
    pre: str = "gpt-2",
    extra: Mapping[str, int] | None = None,
    merges: Iterable[str] = (),
    **changes: Any,
) -> FakeMetadata:
    """A byte-pair vocabulary: 256 bytes, then `extra` texts with their types."""
    extra = extra or {}
    byte_level = pre not in PRE_TOKENIZERS or PRE_TOKENIZERS[pre].byte_level
    tokens = (byte_characters() if byte_level else byte_tokens()) + list(extra)
    types = [NORMAL if byte_level else BYTE] * 256 + list(extra.values())
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        "merges": list(merges),
    }
    return FakeMetadata({PREFIX + key: value for key, value in values.items()}).with_(changes)


def spm(extra: Mapping[str, int] | None = None, scores: Iterable[float] = (), **changes: Any) -> FakeMetadata:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, 256 bytes, "▁", a to z, then `extra` texts with their types."""
    extra = extra or {}
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens(), *letters, *extra]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(letters), *extra.values()]
    all_scores = [*([0.0] * (len(tokens) - len(extra))), *(list(scores) or [-float(i) for i in range(len(extra))])]
    values = {
        "model": "llama",
        "tokens": tokens,
        "scores": np.array(all_scores, np.float32),
        "token_type": np.array(types, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": False,
    }
    return FakeMetadata({PREFIX + key: value for key, value in values.items()}).with_(changes)

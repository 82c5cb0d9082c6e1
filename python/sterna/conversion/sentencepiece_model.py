"""Reads a tokenizer.model: the few fields of sentencepiece_model.proto that GGUF keeps, from the bytes themselves."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sterna.conversion.files import read_file
from sterna.conversion.tokenizer_json import TokenList
from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.tokenizer.metadata import MAX_TOKENS
from sterna.tokenizer.vocabulary import TokenType

_MAX_BYTES = 64 << 20
_BPE = 2  # TrainerSpec.ModelType
_KINDS = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
_NUMBER, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def read_sentencepiece(path: Path) -> TokenList:
    """The pieces of a BPE model. FileError, ModelFormatError; UnsupportedModelError for another kind of model."""
    data = read_file(path, _MAX_BYTES)
    tokens = TokenList(path, "llama", add_space_prefix=True)
    kind = 1  # the default of the format
    for number, value in _fields(path, data):
        if number == 1 and isinstance(value, bytes):
            _piece(path, value, tokens)
        elif number == 2 and isinstance(value, bytes):
            kind = next((found for at, found in _fields(path, value) if at == 3 and isinstance(found, int)), kind)
        elif number == 3 and isinstance(value, bytes):
            tokens.add_space_prefix = all(found != 0 for at, found in _fields(path, value) if at == 3)
    if not tokens.texts:
        _fail(path, "pieces", "there are none")
    if kind != _BPE:
        raise UnsupportedModelError(
            f"{path}: trainer_spec.model_type is {_KINDS.get(kind, kind)}; only BPE is converted"
        )
    return tokens


def _piece(path: Path, data: bytes, tokens: TokenList) -> None:
    text, score, type_ = b"", 0.0, 1
    for number, value in _fields(path, data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            type_ = value
    place = f"piece {len(tokens.texts)}"
    if len(tokens.texts) >= MAX_TOKENS:
        _fail(path, place, f"more than {MAX_TOKENS} pieces")
    if not math.isfinite(score):
        _fail(path, place, f"its score is {score}")
    if not 1 <= type_ <= 6:
        _fail(path, place, f"its type is {type_}")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        _fail(path, place, "its text is not UTF-8")
    tokens.texts.append(text)
    tokens.scores.append(score)
    tokens.types.append(TokenType(type_))  # the numbers are the same


def _fields(path: Path, data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a protobuf message: number, and an integer, a float or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(path, data, at)
        number, wire = key >> 3, key & 7
        if wire == _NUMBER:
            value, at = _varint(path, data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(path, data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            _fail(path, f"byte {at}", f"wire type {wire} is not one of protobuf's")
        if length > len(data) - at:
            _fail(path, f"byte {at}", f"a field of {length} bytes; {len(data) - at} are left")
        field = data[at : at + length]
        at += length
        yield number, struct.unpack("<f", field)[0] if wire == _FIXED32 else field


def _varint(path: Path, data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    _fail(path, f"byte {at}", "a number that does not end")


def _fail(path: Path, field: str, problem: str) -> NoReturn:
    raise ModelFormatError(f"{path}: {field}: {problem}", str(path), field)

"""SentencePiece vocabularies (BPE by score, and unigram) with the `sentencepiece` library, from a model that we
serialise."""

from __future__ import annotations

import re
from typing import Any

import sentencepiece

from sterna._core import sentencepiece_pieces
from sterna.errors import ModelFormatError
from sterna.tokenizer.encoder import guarded
from sterna.tokenizer.metadata import Fields
from sterna.tokenizer.vocabulary import TokenType, Vocabulary, byte_value

_TOKENS = "tokenizer.ggml.tokens"
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_SPACE_MARK = "▁".encode()
_LIBRARY_TYPES = bytes.maketrans(
    bytes((TokenType.UNDEFINED, TokenType.UNKNOWN)), bytes((TokenType.NORMAL, TokenType.CONTROL))
)


class SentencePieceEncoder:
    """BPE ("spm") or unigram encoding of one vocabulary."""

    def __init__(self, fields: Fields, vocab: Vocabulary, *, add_space_prefix: bool) -> None:
        scores = fields.scores("tokenizer.ggml.scores", vocab.vocab_size)
        charsmap = fields.raw_bytes(_CHARSMAP)
        if charsmap:
            from sterna.tokenizer.charsmap import check_charsmap

            check_charsmap(fields, _CHARSMAP, charsmap)
        elif fields.has(_CHARSMAP):
            raise fields.fail(_CHARSMAP, "is empty")
        byte_fallback = _check_byte_tokens(fields, vocab)
        unigram = vocab.kind == "unigram"
        self._unknown_id = _unknown_id(vocab)
        self._unknown_is_token = self._unknown_id < vocab.vocab_size
        if not (byte_fallback or self._unknown_is_token):
            raise fields.fail(_TOKENS, "there are neither byte tokens nor an unknown token")
        settings = _trainer_spec(unigram, byte_fallback, self._unknown_id) + _normalizer_spec(
            charsmap,
            # What a unigram model does with spaces at the beginning is the library's business; in the others a text
            # gets one more, whatever it begins with.
            add_prefix=add_space_prefix and unigram,
            remove_spaces=fields.flag("tokenizer.ggml.remove_extra_whitespaces", False),
        )
        self._prefix = " " if add_space_prefix and not unigram else ""

        def load(*, plain_spaces: bool) -> Any:
            library = sentencepiece.SentencePieceProcessor()
            pieces = _pieces(vocab, scores, self._unknown_id, plain_spaces=plain_spaces)
            library.LoadFromSerializedProto(pieces + settings)
            return library

        try:
            self._library = guarded(lambda: load(plain_spaces=False), vocab.file, _TOKENS)
        except ModelFormatError:
            # A user-defined run of spaces may also be there as an ordinary token, which then does its work.
            self._library = guarded(lambda: load(plain_spaces=True), vocab.file, _TOKENS)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.EncodeAsIds(self._prefix + text)
        return ids if self._unknown_is_token else [i for i in ids if i != self._unknown_id]


def _check_byte_tokens(fields: Fields, vocab: Vocabulary) -> bool:
    """True when there is a token for each byte, False when there is none for any. ModelFormatError otherwise."""
    values = set()
    for token_id in vocab.ids_of(TokenType.BYTE):
        value = byte_value(vocab.tokens[token_id])
        if value is None:
            raise fields.fail(
                _TOKENS, f"byte token {token_id} is {vocab.tokens[token_id][:80]!r}, not <0x00> to <0xFF>"
            )
        values.add(value)
    if values and len(values) < 256:
        missing = next(i for i in range(256) if i not in values)
        raise fields.fail(_TOKENS, f"there are byte tokens, but none for byte 0x{missing:02X}")
    return bool(values)


def _unknown_id(vocab: Vocabulary) -> int:
    """The token for what no other token covers. The library insists on one: a file without one gets it behind its
    tokens."""
    token_id = vocab.roles.get("unknown", vocab.vocab_size)
    if token_id < vocab.vocab_size and vocab.types[token_id] not in (TokenType.UNKNOWN, TokenType.CONTROL):
        return vocab.vocab_size
    return token_id


def _pieces(vocab: Vocabulary, scores: bytes, unknown_id: int, *, plain_spaces: bool) -> bytes:
    """The pieces of a model of the library; `scores` are float32."""
    tokens = list(vocab.tokens)
    # Our types are the library's (NORMAL = 1 ... BYTE = 6); undefined tokens are ordinary ones. There may be only one
    # unknown token: others are as good as control tokens, as no text becomes one.
    types = bytearray(vocab.types.translate(_LIBRARY_TYPES))
    for token_id in vocab.control_ids.values():
        types[token_id] = TokenType.CONTROL
    if b"" in tokens:
        for token_id, token in enumerate(tokens):
            if not token:
                tokens[token_id] = b"\1empty %d" % token_id
                types[token_id] = TokenType.CONTROL
    for found in re.finditer(bytes((TokenType.USER_DEFINED,)), bytes(types)):
        token_id = found.start()
        if tokens[token_id] == b"[PAD%d]" % token_id:
            types[token_id] = TokenType.CONTROL
        elif not plain_spaces:
            # The library looks for them in text whose spaces are marks already.
            tokens[token_id] = tokens[token_id].replace(b" ", _SPACE_MARK)
    if unknown_id == vocab.vocab_size:
        tokens.append(b"\1unknown")
        types.append(TokenType.UNKNOWN)
        scores += bytes(4)
    types[unknown_id] = TokenType.UNKNOWN
    return sentencepiece_pieces(tokens, scores, bytes(types))


def _trainer_spec(unigram: bool, byte_fallback: bool, unknown_id: int) -> bytes:
    """Field 2 of a ModelProto."""
    spec = _number(3, 1 if unigram else 2) + _number(35, int(byte_fallback)) + _number(40, unknown_id)
    return _message(2, spec)


def _normalizer_spec(charsmap: bytes, *, add_prefix: bool, remove_spaces: bool) -> bytes:
    """Field 3 of a ModelProto."""
    spec = _message(2, charsmap) if charsmap else b""
    return _message(3, spec + _number(3, int(add_prefix)) + _number(4, int(remove_spaces)) + _number(5, 1))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data

"""SentencePiece vocabularies (BPE by score, and unigram) with the `sentencepiece` library, from a model that we
serialise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from sterna.errors import ModelFormatError
from sterna.tokenizer.charsmap import check_charsmap
from sterna.tokenizer.encoder import guarded
from sterna.tokenizer.metadata import Fields
from sterna.tokenizer.pieces import byte_value
from sterna.tokenizer.vocabulary import TokenType, Vocabulary

_TOKENS = "tokenizer.ggml.tokens"
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_SPACE_MARK = "▁".encode()


class SentencePieceEncoder:
    """BPE ("spm") or unigram encoding of one vocabulary."""

    def __init__(self, fields: Fields, vocab: Vocabulary, *, add_space_prefix: bool) -> None:
        scores = fields.scores("tokenizer.ggml.scores", vocab.vocab_size)
        charsmap = fields.raw_bytes(_CHARSMAP)
        if charsmap:
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
    for token_id in np.flatnonzero(vocab.types == TokenType.BYTE).tolist():
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


def _pieces(vocab: Vocabulary, scores: npt.NDArray[np.float32], unknown_id: int, *, plain_spaces: bool) -> bytes:
    """The pieces of a ModelProto (sentencepiece_model.proto): field 1, each with score = 2, type = 3, piece = 1.

    Lengths are written as varints of three bytes, so that everything but the text has the same size for all pieces and
    is made for all at once: a vocabulary of 262,144 tokens takes milliseconds.
    """
    tokens = list(vocab.tokens)
    # Our types are the library's (NORMAL = 1 ... BYTE = 6); undefined tokens are ordinary ones.
    types = np.maximum(vocab.types, TokenType.NORMAL).astype(np.uint8)
    # There may be only one unknown token; others are as good as control tokens: no text becomes one.
    types[types == TokenType.UNKNOWN] = TokenType.CONTROL
    types[list(vocab.control_ids.values())] = TokenType.CONTROL
    rewritten: list[int] = np.flatnonzero(vocab.lengths == 0).tolist()
    for token_id in rewritten:
        tokens[token_id] = b"\1empty %d" % token_id
        types[token_id] = TokenType.CONTROL
    for token_id in np.flatnonzero(types == TokenType.USER_DEFINED).tolist():
        if tokens[token_id] == b"[PAD%d]" % token_id:
            types[token_id] = TokenType.CONTROL
        elif not plain_spaces:
            # The library looks for them in text whose spaces are marks already.
            tokens[token_id] = tokens[token_id].replace(b" ", _SPACE_MARK)
            rewritten.append(token_id)
    if unknown_id == vocab.vocab_size:
        tokens.append(b"\1unknown")
        rewritten.append(unknown_id)
        types = np.append(types, np.uint8(TokenType.UNKNOWN))
        scores = np.append(scores, np.float32(0))
    types[unknown_id] = TokenType.UNKNOWN

    lengths = np.append(vocab.lengths, np.zeros(len(tokens) - vocab.vocab_size, np.int64))
    for token_id in rewritten:
        lengths[token_id] = len(tokens[token_id])
    heads = np.empty((len(tokens), 15), np.uint8)
    heads[:, 0] = heads[:, 11] = 0x0A
    for column, length in ((1, lengths + 11), (12, lengths)):
        heads[:, column] = length & 127 | 128
        heads[:, column + 1] = length >> 7 & 127 | 128
        heads[:, column + 2] = length >> 14
    heads[:, 4] = 0x15
    heads[:, 5:9] = scores.astype("<f4").view(np.uint8).reshape(-1, 4)
    heads[:, 9] = 0x18
    heads[:, 10] = types
    parts: list[bytes] = [b""] * (2 * len(tokens))
    parts[0::2] = heads.view("V15").ravel().tolist()
    parts[1::2] = tokens
    return b"".join(parts)


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

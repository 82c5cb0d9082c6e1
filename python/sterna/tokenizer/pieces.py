"""The bytes that each token stands for: what decoding strings together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sterna.errors import ModelFormatError
from sterna.tokenizer.vocabulary import SEPARATOR, TokenType, Vocabulary, byte_value

_SPACE_MARK = "▁".encode()
_OTHER_TYPES = frozenset(TokenType) - {TokenType.NORMAL, TokenType.UNUSED, TokenType.UNDEFINED}
_NO_BYTE = 256


def _byte_characters() -> npt.NDArray[np.uint16]:
    """The byte behind each character of GPT-2's byte-level encoding, by code point, or _NO_BYTE: printable bytes of
    Latin-1 stand for themselves, the other 68 are U+0100 and up in their order (openai/gpt-2, encoder.py)."""
    table = np.full(0x146, _NO_BYTE, np.uint16)
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table[plain] = plain
    others = sorted(set(range(256)) - set(plain))
    table[0x100 : 0x100 + len(others)] = others
    return table


def pieces_of(vocab: Vocabulary, *, byte_level: bool) -> list[bytes]:
    """The bytes of each token, [vocab_size]; control tokens give their text.

    ModelFormatError for a malformed byte token.
    """
    pieces = _from_byte_level(vocab) if byte_level else _from_marked_spaces(vocab)
    for token_id in vocab.ids_of(*_OTHER_TYPES):
        token = vocab.tokens[token_id]
        if vocab.types[token_id] == TokenType.BYTE:
            value = byte_value(token)
            if value is None:
                raise ModelFormatError(
                    f"{vocab.file}: token {token_id} is no byte token", vocab.file, "tokenizer.ggml.tokens"
                )
            token = bytes((value,))
        pieces[token_id] = token
    return pieces


def _from_marked_spaces(vocab: Vocabulary) -> list[bytes]:
    pieces = vocab.joined.replace(_SPACE_MARK, b" ").split(SEPARATOR)
    if len(pieces) == vocab.vocab_size:
        return pieces
    return [token.replace(_SPACE_MARK, b" ") for token in vocab.tokens]


def _from_byte_level(vocab: Vocabulary) -> list[bytes]:
    """The bytes behind byte-level texts, all at once; a text with other characters (an added token) is itself."""
    characters = np.frombuffer(vocab.joined.decode().encode("utf-32-le"), "<u4")
    table = _byte_characters()
    values = table[np.minimum(characters, len(table) - 1)]
    # One character is one byte, so that a token ends in the bytes where it ends in the text.
    ends = np.append(np.flatnonzero(characters == 0), len(characters))
    if len(ends) != vocab.vocab_size:
        return _with_separators(vocab)
    starts = np.append(0, ends[:-1] + 1)
    data = values.astype(np.uint8).tobytes()
    pieces = [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    odd = np.flatnonzero((values == _NO_BYTE) & (characters != 0))
    for token_id in np.unique(np.searchsorted(ends, odd)).tolist():
        pieces[token_id] = vocab.tokens[token_id]
    return pieces


def _with_separators(vocab: Vocabulary) -> list[bytes]:
    """The same for a vocabulary where texts hold the separator, which is no character of the encoding: they are
    themselves."""
    tokens = [b"" if SEPARATOR in token else token for token in vocab.tokens]
    pieces = _from_byte_level(replace(vocab, tokens=tokens, joined=SEPARATOR.join(tokens)))
    return [piece if token else whole for piece, token, whole in zip(pieces, tokens, vocab.tokens, strict=True)]

"""The bytes that each token stands for: what decoding strings together."""

from __future__ import annotations

import re

from sterna.errors import ModelFormatError
from sterna.tokenizer.vocabulary import TokenType, Vocabulary

_SPACE_MARK = "▁".encode()
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_characters() -> dict[int, int]:
    """The character that GPT-2's byte-level encoding writes for each byte, as a table character -> byte: printable bytes of Latin-1
    stand for themselves, the other 68 are U+0100 and up in their order (openai/gpt-2, encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {0x100 + i: byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()


def byte_value(text: bytes) -> int | None:
    """The value of a byte token, "<0x0A>"; None for any other text."""
    found = _BYTE_TOKEN.match(text)
    return int(found[1], 16) if found else None


def pieces_of(vocab: Vocabulary, *, byte_level: bool) -> list[bytes]:
    """The bytes of each token, [vocab_size]; control tokens give their text. ModelFormatError for a malformed byte
    token."""
    pieces = list(vocab.tokens)
    types = vocab.types.tolist()
    for token_id, token in enumerate(pieces):
        token_type = types[token_id]
        if token_type in (TokenType.NORMAL, TokenType.UNUSED, TokenType.UNDEFINED):
            if not byte_level:
                pieces[token_id] = token.replace(_SPACE_MARK, b" ")
            elif not token.isalnum():
                pieces[token_id] = _from_byte_level(token)
        elif token_type == TokenType.BYTE:
            value = byte_value(token)
            if value is None:
                raise ModelFormatError(
                    f"{vocab.file}: token {token_id} is no byte token", vocab.file, "tokenizer.ggml.tokens"
                )
            pieces[token_id] = bytes((value,))
    return pieces


def _from_byte_level(token: bytes) -> bytes:
    """The bytes behind a byte-level text; a text with other characters (an added token) stands for itself."""
    text = token.decode()
    translated = text.translate(_BYTE_OF_CHARACTER)
    if any(ord(character) not in _BYTE_OF_CHARACTER for character in text):
        return token
    return translated.encode("latin-1")

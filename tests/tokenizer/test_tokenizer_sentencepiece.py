"""Models that the sentencepiece library trained, as GGUF metadata: the ids are those of the library's own model."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import sentencepiece
from fake_metadata import BYTE, CONTROL, NORMAL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED, FakeMetadata
from sterna._core import sentencepiece_pieces
from sterna.errors import ArgumentError, ModelFormatError
from sterna.tokenizer import Tokenizer

WORDS = [
    "wind",
    "tern",
    "terns",
    "flies",
    "flying",
    "Über",
    "naïve",
    "2026",
    "ﬁsh",
    "１２",
    "é",
    "e\u0301",
    "海鳥",
    "🐦",
]
CHARSMAP = PREFIX + "precompiled_charsmap"


@cache
def trained(kind: str, normalization: str) -> tuple[Any, bytes]:
    """A processor, and the character map of its model."""
    rng = random.Random(1)
    lines = [" ".join(rng.choice(WORDS) for _ in range(8)) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=360,
        byte_fallback=kind == "bpe",
        hard_vocab_limit=False,
        user_defined_symbols=["<tool>", "\n\n"],
        control_symbols=["<turn>"],
        normalization_rule_name=normalization,
        remove_extra_whitespaces=kind == "unigram",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return processor, _member(_member(model.getvalue(), 3), 2)


def _member(message: bytes, wanted: int) -> bytes:
    """A field of bytes of a protocol buffer."""
    place, found = 0, b""

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        tag = varint()
        if tag & 7 == 2:
            size = varint()
            if tag >> 3 == wanted:
                found = message[place : place + size]
            place += size
        elif tag & 7 == 5:
            place += 4
        else:
            varint()
    return found


def metadata_of(kind: str, normalization: str) -> FakeMetadata:
    processor, charsmap = trained(kind, normalization)
    size = processor.get_piece_size()
    types, tokens = [], []
    for i in range(size):
        piece = processor.id_to_piece(i)
        if processor.is_unknown(i):
            types.append(UNKNOWN)
        elif processor.is_control(i):
            types.append(CONTROL)
        elif processor.is_byte(i):
            types.append(BYTE)
        elif processor.is_unused(i):
            types.append(UNUSED)
        else:
            types.append(USER_DEFINED if piece in ("<tool>", "\n\n") else NORMAL)
        tokens.append(piece)
    values = {
        "model": "llama" if kind == "bpe" else "t5",
        "tokens": tokens,
        "scores": np.array([processor.get_score(i) for i in range(size)], np.float32),
        "token_type": np.array(types, np.int32),
        "unknown_token_id": processor.unk_id(),
        "bos_token_id": processor.bos_id(),
        "eos_token_id": processor.eos_id(),
        "add_space_prefix": True,
        "remove_extra_whitespaces": kind == "unigram",
    }
    if charsmap:
        values["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return FakeMetadata({PREFIX + key: value for key, value in values.items()})


@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_same_ids_as_the_library(kind: str, normalization: str) -> None:
    processor, charsmap = trained(kind, normalization)
    assert bool(charsmap) == (normalization != "identity")
    tokenizer = Tokenizer.from_gguf(metadata_of(kind, normalization))
    assert tokenizer.kind == {"bpe": "spm", "unigram": "unigram"}[kind]
    rng = random.Random(2)
    parts = [
        *WORDS,
        " ",
        "  ",
        "\n",
        "\n\n\n",
        "<tool>",
        "<turn>",
        "</s>",
        "<0x41>",
        "ℵ",
        "q",
        "\t",
        "\u3000",
        "\u200b",
    ]
    for _ in range(1000):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(1, 12)))
        assert tokenizer.encode(text) == processor.encode(text), text


def test_a_damaged_character_map_never_reaches_unchecked_memory() -> None:
    metadata = metadata_of("unigram", "nmt_nfkc")
    original = metadata.values[CHARSMAP]
    rng = np.random.default_rng(3)
    refused = 0
    for i in range(300):
        damaged = original.copy()
        places = rng.integers(0, len(damaged), 1 + i % 4)
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            tokenizer = Tokenizer.from_gguf(FakeMetadata(metadata.values | {CHARSMAP: damaged}))
        except ModelFormatError:
            refused += 1
        else:
            tokenizer.encode("Über ﬁsh １２ e\u0301 " + "".join(map(chr, rng.integers(32, 0x3000, 50))))
    assert 20 < refused < 300


def test_pieces_come_back_as_they_were_written() -> None:
    tokens = [b"<unk>", "\u2581a".encode(), b"b" * 127, b"c" * 128, b"d" * 1_000, b"e f"]
    scores = np.array([0, -1.5, 3e38, -3e-39, 7, 1], "<f4")
    types = bytes((2, 1, 3, 5, 1, 1))
    settings = b"\x12\x02\x18\x02"  # trainer_spec { model_type: BPE }
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(sentencepiece_pieces(tokens, scores.tobytes(), types) + settings)
    ids = range(len(tokens))
    assert [processor.IdToPiece(i).encode() for i in ids] == tokens
    assert [processor.GetScore(i) for i in ids] == scores.tolist()
    assert [i for i in ids if processor.IsUnknown(i)] == [0]
    assert [i for i in ids if processor.IsControl(i)] == [2]
    assert [i for i in ids if processor.IsUnused(i)] == [3]
    for wrong in ((tokens[1:], scores.tobytes(), types), (tokens, scores[1:].tobytes(), types), (tokens, b"", b"")):
        with pytest.raises(ArgumentError, match="texts"):
            sentencepiece_pieces(*wrong)

"""Checks the precompiled character map of a SentencePiece model, which the library follows without looking at bounds.

Layout (sentencepiece, src/normalizer.cc): u32 size of the trie in bytes; the trie, a double array of u32 units
(darts-clone); then replacement texts, each ended by NUL. A unit holds its label in bits 0..7, "has a value" in bit 8,
and the offset to its children in bits 10..30, times 256 if bit 9 is set; a child stands at `position ^ offset ^ label`.
The value stands at the child of label 0: the place of the replacement among the texts, with bit 31 set.
"""

from __future__ import annotations

import struct

import numpy as np

from sterna.tokenizer.metadata import Fields

# The map of NFKC and its relatives has 240 kB; keys are sequences of a few characters.
_MAX_BYTES = 16 << 20
_MAX_KEY_BYTES = 256


def check_charsmap(fields: Fields, key: str, data: bytes) -> None:
    """Raises ModelFormatError unless every walk through the trie stays inside of it and ends in a replacement."""
    if len(data) > _MAX_BYTES:
        raise fields.fail(key, f"{len(data)} bytes are more than the limit of {_MAX_BYTES}")
    if len(data) < 4:
        raise fields.fail(key, f"{len(data)} bytes cannot hold the size of the trie")
    (trie_bytes,) = struct.unpack_from("<I", data)
    if trie_bytes % 4 or trie_bytes < 1024 or trie_bytes >= len(data) - 4:
        raise fields.fail(key, f"a trie of {trie_bytes} bytes does not fit into {len(data)} bytes")
    texts = data[4 + trie_bytes :]
    if texts[-1] != 0:
        raise fields.fail(key, "the last replacement text does not end")
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        raise fields.fail(key, "a replacement text is not UTF-8") from error

    units = np.frombuffer(data, "<u4", trie_bytes // 4, 4).astype(np.int64)
    labels = np.arange(256)
    nodes = np.zeros(1, np.int64)  # the positions of one depth, the root first
    for _ in range(_MAX_KEY_BYTES):
        node_units = units[nodes]
        bases = nodes ^ ((node_units >> 10 & 0x1FFFFF) << ((node_units & 0x200) >> 6))
        # The library reads all 256 places where a child may stand.
        if (bases | 255).max() >= len(units):
            raise fields.fail(key, "the trie refers to places outside of it")
        values = units[bases[(node_units & 0x100) != 0]]
        if len(values) and ((values >> 31 == 0).any() or (values & 0x7FFFFFFF).max() >= len(texts)):
            raise fields.fail(key, "the trie refers to replacement texts outside of the map")
        places = bases[:, None] ^ labels[None, 1:]
        nodes = np.unique(places[(units[places] & 0x800000FF) == labels[None, 1:]])
        if not len(nodes):
            return
    raise fields.fail(key, "the trie goes in circles")

"""Byte-pair encoding with the `tokenizers` library: GPT-2's on bytes, and the plain kind with byte tokens."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from sterna.errors import ArgumentError, UnsupportedModelError
from sterna.tokenizer.encoder import guarded, is_fault
from sterna.tokenizer.metadata import MAX_MERGES, Fields
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, linear_pattern
from sterna.tokenizer.vocabulary import SEPARATOR, Vocabulary

_MERGES = "tokenizer.ggml.merges"
_TOKENS = "tokenizer.ggml.tokens"

_NO_SEPARATOR = bytes(set(range(256)) - {*SEPARATOR, *b" "})
_EMPTY_SIDE = re.compile(rb"(?:\A|\0) | (?:\0|\Z)")

# Long text is encoded in parts: the library keeps hundreds of bytes for each token of a part.
_PART_CHARS = 1 << 15
# Runs of characters that are words of their own, from this length on, are looked up instead of encoded.
_LONG_RUN = 64
# Where digits are grouped from the right, the pattern looks ahead to the end of a number at each digit: long ones are
# cut before.
_LONG_NUMBER = re.compile(rf"\d{{{3 * _LONG_RUN},}}")


def pre_tokenizer_of(vocab: Vocabulary) -> PreTokenizer:
    """The entry for tokenizer.ggml.pre. UnsupportedModelError when it is not known."""
    if vocab.pre not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{vocab.file}: the pre-tokenizer {vocab.pre!r} (tokenizer.ggml.pre) is not supported"
        )
    return PRE_TOKENIZERS[vocab.pre]


class BpeEncoder:
    """Byte-pair encoding of one vocabulary."""

    def __init__(self, fields: Fields, vocab: Vocabulary) -> None:
        self._pre = pre_tokenizer_of(vocab)
        self._alone = re.compile(f"{self._pre.alone}{{{_LONG_RUN},}}") if self._pre.alone else None
        self._boundary = re.compile(self._pre.boundary) if self._pre.boundary else None
        ids = dict(zip(_texts(vocab), range(vocab.vocab_size), strict=True))
        if len(ids) != vocab.vocab_size:
            _refuse_duplicates(fields, vocab)
        ids.pop("", None)
        for text in vocab.control_ids:
            del ids[text]
        merges, longest = _read_merges(fields)
        self._library = LibraryTokenizer(_build(fields, vocab, self._pre, ids, merges, longest))
        splits: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(linear_pattern(stage)), "isolated") for stage in self._pre.stages
        ]
        if self._pre.byte_level:
            splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._library.pre_tokenizer = pre_tokenizers.Sequence(splits)
        if vocab.user_defined_ids:
            added = [AddedToken(text, normalized=False) for text in vocab.user_defined_ids]
            guarded(lambda: self._library.add_tokens(added), vocab.file, _TOKENS)

    def encode(self, text: str) -> list[int]:
        if self._pre.nfc:
            text = unicodedata.normalize("NFC", text)
        if not self._pre.byte_level:
            text = text.replace(" ", "▁")
        ids: list[int] = []
        position = 0
        for run in self._alone.finditer(text) if self._alone else ():
            # The first of the run stays with what is before it, which may look at it.
            self._encode_long(text[position : run.start() + 1], ids)
            self._encode_run(text[run.start() + 1 : run.end()], ids)
            position = run.end()
        for run in _LONG_NUMBER.finditer(text) if self._pre.thousands else ():
            for cut in range(run.start() + len(run[0]) % 3, run.end(), 3 * _LONG_RUN):
                self._encode_long(text[position:cut], ids)
                position = cut
        self._encode_long(text[position:], ids)
        return ids

    def _encode_part(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            # The regular expressions of the library have limits: several million characters of white space and line
            # ends by turns.
            if is_fault(error):
                raise ArgumentError(f"a text of {len(text)} characters cannot be tokenized: {error}") from error
            raise
        return ids

    def _encode_run(self, run: str, ids: list[int]) -> None:
        """Characters each of which is a word of its own."""
        table = {character: self._encode_part(character) for character in set(run)}
        for character in run:
            ids += table[character]

    def _encode_long(self, text: str, ids: list[int]) -> None:
        """Any text, in parts cut where that changes nothing."""
        cuts = [0]
        while self._boundary and len(text) - cuts[-1] > _PART_CHARS:
            found = self._boundary.search(text, cuts[-1] + _PART_CHARS // 2)
            if not found:
                break
            cuts.append(found.start())
        for begin, end in pairwise([*cuts, len(text)]):
            ids += self._encode_part(text[begin:end])


def _texts(vocab: Vocabulary) -> list[str]:
    texts = vocab.joined.decode().split(SEPARATOR.decode())
    return texts if len(texts) == vocab.vocab_size else [token.decode() for token in vocab.tokens]


def _read_merges(fields: Fields) -> tuple[list[tuple[str, str]], int]:
    """The merges as pairs of token texts, and the bytes of the longest result. ModelFormatError."""
    merges = fields.strings(_MERGES, limit=MAX_MERGES)
    if not merges:
        return [], 0
    joined = SEPARATOR.join(merges)
    # One space in each, with something on both sides of it.
    spaces = joined.translate(None, _NO_SEPARATOR)
    regular = spaces == (b" " + SEPARATOR) * (len(merges) - 1) + b" " and not _EMPTY_SIDE.search(joined)
    longest = max(map(len, merges)) - 1
    try:
        text = joined.decode()
        if regular:
            words = text.replace(" ", SEPARATOR.decode()).split(SEPARATOR.decode())
            return list(zip(words[::2], words[1::2], strict=True)), longest
        # Only where tokens hold spaces themselves: the first space after the first character is the separator.
        pairs = [_split_merge(fields, i, merge.decode()) for i, merge in enumerate(merges)]
        return pairs, longest
    except UnicodeDecodeError as error:
        raise fields.fail(_MERGES, "a merge is not UTF-8") from error


def _split_merge(fields: Fields, index: int, merge: str) -> tuple[str, str]:
    cut = merge.find(" ", 1)
    if cut < 0 or cut == len(merge) - 1:
        raise fields.fail(_MERGES, f"merge {index} ({merge[:80]!r}) is not two texts with a space between")
    return merge[:cut], merge[cut + 1 :]


def _build(
    fields: Fields,
    vocab: Vocabulary,
    pre: PreTokenizer,
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    longest: int,
) -> models.BPE:
    """The library's model; `longest` is the length of the longest text that a merge makes, in bytes."""

    def build(merges: list[tuple[str, str]]) -> models.BPE:
        return models.BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges, byte_fallback=not pre.byte_level)

    usable_lengths = list(map(len, vocab.tokens))
    for token_id in vocab.control_ids.values():
        usable_lengths[token_id] = 0
    # The library refuses merges of what is not in the vocabulary, or panics where the result is longer than any token.
    if longest <= max(usable_lengths):
        try:
            return build(merges)
        except Exception:
            pass
    # Merges that would make a control token are left out, so that data never becomes one; others are faults of a file.
    usable = []
    for index, (left, right) in enumerate(merges):
        unknown = [text for text in (left, right, left + right) if text not in ids]
        if not unknown:
            usable.append((left, right))
        elif not any(text in vocab.control_ids for text in unknown):
            raise fields.fail(_MERGES, f"merge {index} is about {unknown[0][:80]!r}, which is not a token")
    return guarded(lambda: build(usable), vocab.file, _MERGES)


def _refuse_duplicates(fields: Fields, vocab: Vocabulary) -> None:
    """Raises when two tokens have the same text; empty texts are the gaps of a vocabulary."""
    seen: dict[bytes, int] = {}
    for token_id, token in enumerate(vocab.tokens):
        if token and seen.setdefault(token, token_id) != token_id:
            raise fields.fail(_TOKENS, f"tokens {seen[token]} and {token_id} have the same text {token[:80]!r}")

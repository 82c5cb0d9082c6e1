"""Finds the texts of control tokens in trusted text: leftmost, then longest, in time that does not depend on their
number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


class TextMatcher:
    """Looks for any of a set of texts.

    Vocabularies have thousands of control tokens that differ in their last characters only, so candidates are found by
    their first two characters, and then looked up by length, longest first.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        lengths: dict[str, set[int]] = {}
        for prefix, length in {(text[:2], len(text)) for text in ids}:
            lengths.setdefault(prefix, set()).add(length)
        # A text of one character is tried at every place where it occurs, whatever follows.
        self._lengths = {
            prefix: sorted(found | lengths.get(prefix[0], set()), reverse=True) for prefix, found in lengths.items()
        }
        prefixes = sorted(self._lengths, key=len, reverse=True)
        self._candidate = re.compile("|".join(map(re.escape, prefixes))) if prefixes else None

    def find_all(self, text: str) -> Iterator[tuple[int, int, int]]:
        """The matches in `text` as (begin, end, token id); they do not overlap."""
        if self._candidate is None:
            return
        position = 0
        while found := self._candidate.search(text, position):
            begin = found.start()
            for length in self._lengths[found.group()]:
                token_id = self._ids.get(text[begin : begin + length])
                if token_id is not None and begin + length <= len(text):
                    yield begin, begin + length, token_id
                    position = begin + length
                    break
            else:
                position = begin + 1

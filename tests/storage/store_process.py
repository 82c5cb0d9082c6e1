"""Programs that the tests of the store run as processes of their own: a writer to be killed, and one among several."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from sterna.prefix_store import PrefixStore

PAGE_BYTES = 40_000
IDENTITY = b"model layout 1"


def tokens_of(prefix: int, pages: int) -> list[int]:
    """Tokens of prefix number `prefix`; the first two pages are common to all."""
    return [(i if i < 128 else 1000 * prefix + i) for i in range(64 * pages)]


def page_of(prefix: int, number: int) -> bytes:
    """What the page with these tokens holds: it follows from them."""
    return random.Random(number if number < 2 else 1000 * prefix + number).randbytes(PAGE_BYTES)


def open_store(folder: str | Path, pages: int = 40) -> PrefixStore:
    """The store of these tests, with room for so many pages."""
    return PrefixStore(folder, identity=IDENTITY, page_bytes=PAGE_BYTES, quota=pages * (PAGE_BYTES + 400))


def work(folder: str, seed: int, rounds: int) -> int:
    """Saves and loads prefixes by chance; how many pages it got back. Whatever comes back is right."""
    store, choice, loaded = open_store(folder), random.Random(seed), 0
    for _ in range(rounds):
        prefix, pages = choice.randrange(8), choice.randrange(1, 9)
        tokens = tokens_of(prefix, pages)
        there = store.find(tokens)
        first = choice.randrange(there + 1)
        got = store.load(tokens, first, there - first)
        assert got == [page_of(prefix, first + i) for i in range(len(got))]
        loaded += len(got)
        store.save(tokens, first, [page_of(prefix, number) for number in range(first, pages)])
    return loaded


if __name__ == "__main__":
    print("ready", flush=True)
    for turn in range(1_000_000):
        work(sys.argv[1], int(sys.argv[2]) + turn, 1)

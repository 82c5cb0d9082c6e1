"""`load(prefix_cache=...)`: what requests have computed, kept in a folder for later requests and other processes."""

from __future__ import annotations

import atexit
import hashlib
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.errors import SternaError
from sterna.memory import PAGE_TOKENS
from sterna.prefix_store import PrefixStore

if TYPE_CHECKING:
    from sterna._core import Engine

_log = logging.getLogger(__name__)

# Of the layout of this engine's KV and of the arithmetic behind it: pages of another version are not used.
_VERSION = 1
# Pages that are copied at once, and conversations that wait to be written; more are not kept.
_PART_PAGES = 8
_MAX_PENDING = 64


class PrefixCache:
    """Moves pages between an engine's cache and a `PrefixStore`. A thread of its own writes; whoever asks reads."""

    def __init__(self, engine: Engine, path: str | Path, *, fingerprint: str, quota: int) -> None:
        identity = hashlib.sha256(repr((_VERSION, fingerprint, engine.kv_layout)).encode()).digest()
        self._engine = engine
        self._store = PrefixStore(path, identity=identity, page_bytes=engine.page_bytes, quota=quota)
        self._pending: queue.Queue[list[int] | None] = queue.Queue(_MAX_PENDING)
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()
        # A program that ends without close() has its pages written as well: before the engines are closed.
        self._at_exit = weakref.WeakMethod(self.close)
        atexit.register(_call, self._at_exit)

    def restore(self, tokens: Sequence[int]) -> None:
        """Brings what the folder has of these tokens into the engine's cache, where that has less."""
        # The last token is computed anyway.
        usable = tokens[: (len(tokens) - 1) // PAGE_TOKENS * PAGE_TOKENS]
        first = self._engine.cached_pages(usable)
        if first * PAGE_TOKENS >= len(usable):
            return
        count = self._store.find(usable)
        while first < count:
            pages = self._store.load(usable, first, min(_PART_PAGES, count - first))
            reached = self._engine.import_pages(usable, first, pages) if pages else first
            if reached < first + len(pages) or not pages:
                return
            first = reached

    def keep(self, tokens: list[int]) -> None:
        """Has the pages of these tokens written, soon."""
        if len(tokens) < PAGE_TOKENS:
            return
        with self._starting:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="sterna-prefix-cache", daemon=True)
                self._writer.start()
        try:
            self._pending.put_nowait(tokens)
        except queue.Full:
            _log.info("prefix cache: more conversations at once than can be written; one is not kept")

    def close(self) -> None:
        """Waits until what is pending has been written."""
        with self._starting:
            writer, self._writer = self._writer, None
        if writer is not None and writer.is_alive():
            self._pending.put(None)
            writer.join()

    def _write_all(self) -> None:
        while (tokens := self._pending.get()) is not None:
            try:
                self._write(tokens)
            except SternaError as error:  # the engine was closed meanwhile
                _log.info("prefix cache: not written: %s", error)

    def _write(self, tokens: list[int]) -> None:
        first = self._store.find(tokens)
        while (pages := self._engine.export_pages(tokens, first, _PART_PAGES)) and self._store.save(
            tokens, first, pages
        ):
            first += len(pages)


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()

"""`PrefixStore`: pages of the KV cache in a folder, found again by the tokens that they were computed from.

A page holds the keys and values of 64 tokens. They depend on every token before them, so a file is named by a chain of
digests, key(i) = blake2b(key(i - 1), tokens of page i), that begins with the identity: model, KV layout and versions.
A file is one page: the header below, then the payload. Nothing in it is believed: the header is known in advance to
the byte but for its checksum, and that covers all the rest.

Several processes may use one folder. A file has its name when it is complete; one that a crash or a lost power supply
left damaged is noticed when it is read, removed, and computed again. So nothing is synchronised to the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.errors import ArgumentError, FileError
from sterna.memory import PAGE_TOKENS
from sterna.page_bytes import DIGEST_BYTES, MAX_PAGE_BYTES, Page, byte_view, digest, little_endian, read_exactly

_log = logging.getLogger(__name__)

Tokens: TypeAlias = Sequence[int] | npt.NDArray[np.integer]

_MAGIC = b"sternakv"
_VERSION = 1
# Name and bytes of each part of the header; numbers are little-endian. The checksum is blake2b over header and payload.
_PARTS = (
    ("magic", len(_MAGIC)),
    ("version", 4),
    ("number of the page", 4),
    ("size of the page", 8),
    ("identity", DIGEST_BYTES),
    ("key", DIGEST_BYTES),
    ("tokens", 4 * PAGE_TOKENS),
)
_KNOWN_BYTES = sum(n_bytes for _, n_bytes in _PARTS)
_HEADER_BYTES = _KNOWN_BYTES + DIGEST_BYTES

_PAGE_NAME = re.compile(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}\.kv")
_PART_NAME = re.compile(r"\.[0-9a-f]{16}\.kv\.part")
# A page is written in less than a second. Whoever stood still for longer than this finds its file gone, and gives up.
_ORPHAN_SECONDS = 600.0


class PrefixStore:
    """Pages of prefixes below `path`, at most `quota` bytes of files; the least recently used go first.

    `identity` names whatever shapes the KV beside the tokens: the model's fingerprint, the layout, the version. Files
    of other identities in the folder are left alone, but count towards the quota and are evicted like any others.

    May be used by several threads. `tokens` are always those from position 0 on. FileError: the folder cannot be made.
    ArgumentError: sizes that make no sense, here and below.
    """

    def __init__(self, path: str | Path, *, identity: bytes, page_bytes: int, quota: int) -> None:
        if not 0 < page_bytes <= MAX_PAGE_BYTES:
            raise ArgumentError(f"page_bytes is {page_bytes}, must be from 1 to {MAX_PAGE_BYTES}")
        self.path = Path(path)
        self.page_bytes = page_bytes
        self.file_bytes = _HEADER_BYTES + page_bytes
        if quota < self.file_bytes:
            raise ArgumentError(f"{path}: a quota of {quota} bytes is below the {self.file_bytes} of one page")
        self.quota = quota
        self._identity = digest(_MAGIC, little_endian(_VERSION, 4), little_endian(page_bytes, 8), identity)
        self._warned = False
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for _ in self._files():  # removes what killed writers left
                pass
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None

    def find(self, tokens: Tokens) -> int:
        """How many whole pages of these tokens, from the first on, have a file."""
        count = 0
        for key, _ in self._chain(_checked(tokens)):
            if not self._file(key).is_file():
                break
            count += 1
        return count

    def load(self, tokens: Tokens, first: int, count: int) -> list[bytes]:
        """Pages `first` to `first + count - 1`, as far as they are there and whole. A bad file is removed."""
        array = _checked(tokens)
        _check_range(array, first, count)
        pages: list[bytes] = []
        now = time.time_ns()
        for number, (key, part) in enumerate(self._chain(array[: (first + count) * PAGE_TOKENS])):
            if number < first:
                continue
            page = self._read(number, key, part, now)
            if page is None:
                break
            pages.append(page)
        return pages

    def save(self, tokens: Tokens, first: int, pages: Sequence[Page]) -> int:
        """Writes pages `first`, `first + 1`, ... of these tokens but for those that are there; how many it wrote.

        A disk that is full, or a folder that is gone, is logged once and ends the work.
        """
        array = _checked(tokens)
        _check_range(array, first, len(pages))
        views = [byte_view(page) for page in pages]
        for number, view in enumerate(views, first):
            if len(view) != self.page_bytes:
                raise ArgumentError(f"page {number} has {len(view)} bytes, must have {self.page_bytes}")
        chain = list(self._chain(array[: (first + len(pages)) * PAGE_TOKENS]))
        now = time.time_ns()
        missing = []
        # Those before `first` too: nobody finds a page whose predecessors have been evicted.
        for number, (key, _) in enumerate(chain):
            there = self._touch(self._file(key), number, now)
            if not there and number >= first:
                missing.append(number)
        written = 0
        try:
            room = self._make_room(len(missing), {self._file(key).name for key, _ in chain}) if missing else 0
            for number in missing[:room]:
                self._write(number, *chain[number], views[number - first], now)
                written += 1
                self._warned = False
        except OSError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            _log.log(level, "%s: prefixes cannot be saved: %s", self.path, error.strerror or error)
        return written

    def _chain(self, tokens: npt.NDArray[np.int32]) -> Iterator[tuple[bytes, bytes]]:
        """Key and tokens, as bytes, of each whole page."""
        key = self._identity
        for begin in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
            part = tokens[begin : begin + PAGE_TOKENS].astype("<i4").tobytes()
            key = digest(key, part)
            yield key, part

    def _file(self, key: bytes) -> Path:
        return self.path / f"{key.hex()}.kv"

    def _known(self, number: int, key: bytes, part: bytes) -> bytes:
        """The header but for its checksum."""
        fixed = _MAGIC + little_endian(_VERSION, 4) + little_endian(number, 4) + little_endian(self.page_bytes, 8)
        return fixed + self._identity + key + part

    def _read(self, number: int, key: bytes, part: bytes, now: int) -> bytes | None:
        file = self._file(key)
        # No link is followed, and a pipe does not make anybody wait.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(file, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    problem = "is no regular file"
                elif status.st_size != self.file_bytes:
                    problem = f"has {status.st_size} bytes instead of {self.file_bytes}"
                else:
                    header = read_exactly(descriptor, _HEADER_BYTES)
                    page = read_exactly(descriptor, self.page_bytes)
                    problem = _difference(header, self._known(number, key, part), page)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:  # too many open files, no permission: it may be whole
            _log.info("%s: %s", file, error.strerror or error)
            return None
        if problem:
            _log.info("%s: %s; it is removed", file, problem)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        self._touch(file, number, now)
        return page

    def _touch(self, file: Path, number: int, now: int) -> bool:
        """Marks a page as used now, the later ones of a prefix a little before the earlier; whether it is there."""
        try:
            os.utime(file, ns=(now, _used(number, now)))
        except FileNotFoundError:
            return False
        except OSError:
            return file.exists()
        return True

    def _write(self, number: int, key: bytes, part: bytes, page: memoryview, now: int) -> None:
        known = self._known(number, key, part)
        temporary = self.path / f".{secrets.token_hex(8)}.kv.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                for data in (memoryview(known + digest(known, page)), page):
                    while data:
                        data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
            os.utime(temporary, ns=(now, _used(number, now)))
            os.replace(temporary, self._file(key))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, count: int, keep: set[str]) -> int:
        """Evicts until `count` more pages fit, or nothing is left but `keep`; how many do fit."""
        files = sorted(self._files())
        used = sum(n_bytes for _, _, n_bytes in files)
        for _, name, n_bytes in files:
            if used + count * self.file_bytes <= self.quota:
                break
            if name in keep or not _PAGE_NAME.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
                used -= n_bytes
        return max(0, min(count, (self.quota - used) // self.file_bytes))

    def _files(self) -> Iterator[tuple[int, str, int]]:
        """When it was last used (ns), name and size of each file that any store has made; removes orphans."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                is_part = _PART_NAME.fullmatch(entry.name)
                if not is_part and not _PAGE_NAME.fullmatch(entry.name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    if is_part and abs(time.time() - status.st_mtime) > _ORPHAN_SECONDS:
                        os.unlink(entry.path)
                        continue
                except OSError:  # somebody else removed it meanwhile, or it cannot be
                    continue
                yield status.st_mtime_ns, entry.name, status.st_size


def _used(number: int, now: int) -> int:
    # A microsecond for each page: the end of a prefix is evicted before its beginning, without which it is of no use.
    return now - 1000 * number


def _difference(header: bytes, known: bytes, page: bytes) -> str:
    """What is wrong with a file; nothing where it is whole."""
    begin = 0
    for name, n_bytes in _PARTS:
        if header[begin : begin + n_bytes] != known[begin : begin + n_bytes]:
            return f"has another {name}"
        begin += n_bytes
    if header[begin:] != digest(known, memoryview(page)):
        return "has a wrong checksum"
    return ""


def _checked(tokens: Tokens | Iterable[int]) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens)
    limits = np.iinfo(np.int32)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError("tokens is no list of integers")
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise ArgumentError("tokens holds a number that is no int32")
    return array.astype(np.int32)


def _check_range(tokens: npt.NDArray[np.int32], first: int, count: int) -> None:
    whole = len(tokens) // PAGE_TOKENS
    if first < 0 or count < 0 or first + count > whole:
        raise ArgumentError(f"{count} pages from page {first} on: {len(tokens)} tokens have {whole} whole pages")

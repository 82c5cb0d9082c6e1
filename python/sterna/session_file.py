"""The file of a saved session: turns as JSON, then pages of its KV cache, each with a checksum.

    "sterna session\\r\\n"   16 bytes: no text file begins so, and a transfer as text spoils it
    version                u32
    header                 u64 bytes of JSON, the JSON, blake2b of all before
    pages                  page_bytes each, and blake2b of the header's checksum, the page's number and the page

Numbers are little-endian, checksums have 32 bytes. Version 1 was the JSON alone: its files are read, without pages.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

from sterna.atomic_file import AtomicFile
from sterna.errors import ArgumentError, FileError
from sterna.memory import PAGE_TOKENS
from sterna.page_bytes import DIGEST_BYTES, MAX_PAGE_BYTES, Page, byte_view, digest, little_endian, read_exactly
from sterna.typed_reads import shown

_MAGIC = b"sterna session\r\n"
_VERSION = 2
_JSON_FORMAT, _JSON_VERSION = "sterna-session", 1
_START_BYTES = len(_MAGIC) + 4 + 8
_MAX_JSON_BYTES = 64 << 20
_MAX_TOKEN = 2**31 - 1


@dataclass(frozen=True)
class SessionHeader:
    """What a saved session holds beside its pages.

    `messages`: the turns, not looked at here. `tokens`: those whose KV the pages hold, from position 0 on; there may be
    more that fill no page. `kv_layout` names how the `page_bytes` of a page are arranged.
    """

    model_name: str
    fingerprint: str
    messages: Sequence[Mapping[str, Any]]
    tokens: Sequence[int] = ()
    kv_layout: str = ""
    page_bytes: int = 0
    num_pages: int = 0


def write_session(path: str | Path, header: SessionHeader, pages: Iterable[Page] = ()) -> None:
    """Writes a session, readable by its owner only. Whoever reads the file meanwhile sees the old one or the new one.

    `pages` gives `header.num_pages` of them, one at a time. FileError; ArgumentError where they are more or fewer.
    """
    model = {"name": header.model_name, "fingerprint": header.fingerprint}
    kv = {
        "layout": header.kv_layout,
        "page_bytes": header.page_bytes,
        "pages": header.num_pages,
        "tokens": [int(token) for token in header.tokens],
    }
    content = {"model": model, "messages": list(header.messages), "kv": kv}
    try:
        text = json.dumps(content, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: the turns cannot be written: {error}") from None
    if len(text) > _MAX_JSON_BYTES:
        raise ArgumentError(f"{path}: the turns take {len(text)} bytes, at most {_MAX_JSON_BYTES} can be read back")
    problem = _kv_problem(kv)
    if problem:
        raise ArgumentError(f"{path}: {problem}")
    start = _MAGIC + little_endian(_VERSION, 4) + little_endian(len(text), 8) + text
    checksum = digest(start)
    file = AtomicFile(path, overwrite=True, mode=0o600)
    try:
        file.open(len(start) + DIGEST_BYTES + header.num_pages * (header.page_bytes + DIGEST_BYTES))
        file.write(start)
        file.write(checksum)
        count = 0
        for count, page in enumerate(pages, 1):
            view = byte_view(page)
            if count > header.num_pages or len(view) != header.page_bytes:
                of = f"page {count} of {header.num_pages}"
                raise ArgumentError(f"{path}: {of} has {len(view)} bytes, must have {header.page_bytes}")
            file.write(view)
            file.write(_page_digest(checksum, count - 1, view))
        if count != header.num_pages:
            raise ArgumentError(f"{path}: {count} pages of {header.num_pages}")
        file.commit()
    finally:
        file.discard()


class SavedSession:
    """A session's file, open for reading: its header, and its pages when they are asked for. A context manager.

    `file` stands at the first page; None: no pages.
    """

    def __init__(self, path: str | Path, header: SessionHeader, file: BinaryIO | None, checksum: bytes) -> None:
        self.path = Path(path)
        self.header = header
        self._file = file
        self._first_page = file.tell() if file is not None else 0
        self._checksum = checksum

    def pages(self, kv_layout: str, page_bytes: int) -> Iterator[bytes]:
        """The pages in order, each checked when it is read; none where they are of another layout or size.

        ArgumentError names the page that is damaged; FileError.
        """
        header = self.header
        if self._file is None or (kv_layout, page_bytes) != (header.kv_layout, header.page_bytes):
            return
        n_bytes = page_bytes + DIGEST_BYTES
        for number in range(header.num_pages):
            try:
                self._file.seek(self._first_page + number * n_bytes)
                page = read_exactly(self._file.fileno(), page_bytes)
                checksum = read_exactly(self._file.fileno(), DIGEST_BYTES)
            except OSError as error:
                _raise_file_error(self.path, error)
            if checksum != _page_digest(self._checksum, number, page):
                raise ArgumentError(f"{self.path}: page {number} of the KV cache is damaged (wrong checksum)")
            yield page

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(path: str | Path, *, model_name: str, fingerprint: str) -> SavedSession:
    """Opens what `write_session` has written, or the JSON of version 1.

    FileError; ArgumentError for a file that is none, is damaged, or of another model than this one.
    """
    path = Path(path)
    file = _open_file(path)
    try:
        file_bytes = os.fstat(file.fileno()).st_size
        start = read_exactly(file.fileno(), _START_BYTES)
        if start.startswith(_MAGIC):
            content, checksum = _read_header(path, file, start, file_bytes)
            _check_kv(path, content, file.tell(), file_bytes)
        else:
            content, checksum = _read_json_file(path, file, start), b""
        header = _header(path, content)
        if header.fingerprint != fingerprint:
            raise ArgumentError(
                f"{path}: a conversation with another model ({header.model_name!r:.80}), not {model_name!r}"
            )
    except OSError as error:
        file.close()
        _raise_file_error(path, error)
    except BaseException:
        file.close()
        raise
    if header.num_pages:
        return SavedSession(path, header, file, checksum)
    file.close()
    return SavedSession(path, header, None, checksum)


def _open_file(path: Path) -> BinaryIO:
    try:
        # A pipe does not make anybody wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileError(f"{path} is no regular file", str(path), errno.EINVAL)
            return os.fdopen(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise
    except FileError:
        raise
    except OSError as error:
        _raise_file_error(path, error)


def _read_header(path: Path, file: BinaryIO, start: bytes, file_bytes: int) -> tuple[dict[str, Any], bytes]:
    """The JSON and its checksum; the file stands behind them."""
    version = int.from_bytes(start[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if len(start) == _START_BYTES and version != _VERSION:
        raise ArgumentError(f"{path}: format version {version} is not {_VERSION}")
    n_bytes = int.from_bytes(start[len(_MAGIC) + 4 :], "little")
    if len(start) < _START_BYTES or n_bytes > file_bytes - _START_BYTES - DIGEST_BYTES:
        raise ArgumentError(f"{path}: ends after {file_bytes} bytes, within its header")
    if n_bytes > _MAX_JSON_BYTES:
        raise ArgumentError(f"{path}: a header of {n_bytes} bytes, more than {_MAX_JSON_BYTES}")
    text = read_exactly(file.fileno(), n_bytes)
    checksum = read_exactly(file.fileno(), DIGEST_BYTES)
    if checksum != digest(start, text):
        raise ArgumentError(f"{path}: the header is damaged (wrong checksum)")
    return _parsed(path, text), checksum


def _read_json_file(path: Path, file: BinaryIO, start: bytes) -> dict[str, Any]:
    text = start + read_exactly(file.fileno(), _MAX_JSON_BYTES + 1 - len(start))
    if len(text) > _MAX_JSON_BYTES:
        raise ArgumentError(f"{path}: not a saved session: longer than {_MAX_JSON_BYTES >> 20} MiB")
    content = _parsed(path, text)
    if content.get("format") != _JSON_FORMAT:
        raise ArgumentError(f"{path}: not a saved session")
    if content.get("version") != _JSON_VERSION:
        raise ArgumentError(f"{path}: format version {shown(content.get('version'))} is not {_JSON_VERSION}")
    return {**content, "kv": {"layout": "", "page_bytes": 0, "pages": 0, "tokens": []}}


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: not a saved session (no JSON: {error})") from None
    if not isinstance(content, dict):
        raise ArgumentError(f"{path}: not a saved session")
    return content


def _check_kv(path: Path, content: Mapping[str, Any], begin: int, file_bytes: int) -> None:
    """That what the header says about the pages makes sense, and fits the size of the file."""
    kv = content.get("kv")
    problem = _kv_problem(kv)
    if problem:
        raise ArgumentError(f"{path}: {problem}")
    assert isinstance(kv, dict)
    expected = begin + kv["pages"] * (kv["page_bytes"] + DIGEST_BYTES)
    if file_bytes != expected:
        fault = "ends after" if file_bytes < expected else "goes on behind its last page:"
        raise ArgumentError(f"{path}: {fault} {file_bytes} bytes, must have {expected}")


def _kv_problem(kv: object) -> str:
    """What is wrong with the part of a header about the cache; nothing where it is right."""
    if not isinstance(kv, dict) or not isinstance(kv.get("layout"), str):
        return "the layout of the KV cache is missing"
    tokens, pages, page_bytes = kv.get("tokens"), kv.get("pages"), kv.get("page_bytes")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token <= _MAX_TOKEN for token in tokens):
        return "tokens is no list of token ids"
    if type(pages) is not int or not 0 <= pages <= len(tokens) // PAGE_TOKENS:
        return f"{shown(pages)} pages of {PAGE_TOKENS} tokens for {len(tokens)} tokens"
    if type(page_bytes) is not int or not min(pages, 1) <= page_bytes <= MAX_PAGE_BYTES:
        return f"page_bytes is {shown(page_bytes)}"
    return ""


def _header(path: Path, content: Mapping[str, Any]) -> SessionHeader:
    model, messages = content.get("model"), content.get("messages")
    if not isinstance(model, dict):
        model = {}
    name, fingerprint = model.get("name"), model.get("fingerprint")
    if not isinstance(messages, list):
        raise ArgumentError(f"{path}: messages is no list")
    kv = content["kv"]
    return SessionHeader(
        model_name=name if isinstance(name, str) else "",
        fingerprint=fingerprint if isinstance(fingerprint, str) else "",
        messages=messages,
        tokens=kv["tokens"],
        kv_layout=kv["layout"],
        page_bytes=kv["page_bytes"],
        num_pages=kv["pages"],
    )


def _page_digest(header_checksum: bytes, number: int, page: bytes | memoryview) -> bytes:
    return digest(header_checksum, little_endian(number, 8), page)


def _raise_file_error(path: Path, error: OSError) -> NoReturn:
    raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None

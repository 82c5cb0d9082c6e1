"""The file of a saved session: what was written comes back, or an error names the file and what is wrong with it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sterna import session_file
from sterna.errors import ArgumentError, FileError
from sterna.session_file import SessionHeader, open_session, write_session

PAGE_BYTES = 3000
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße \U0001f426 \ud800 \x00"},
    {"role": "assistant", "content": "Hello.", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 0.1}}}]},
]
PAGES = [random.Random(number).randbytes(PAGE_BYTES) for number in range(3)]
HEADER = SessionHeader("Tern 1B", "f00d", MESSAGES, list(range(200)), "cpu f16 1", PAGE_BYTES, 3)
START_BYTES = 28  # magic, version, length


def opened(path: Path, fingerprint: str = "f00d") -> tuple[SessionHeader, list[bytes]]:
    with open_session(path, model_name="Tern 1B", fingerprint=fingerprint) as saved:
        return saved.header, list(saved.pages("cpu f16 1", PAGE_BYTES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "talk.session"
    write_session(file, HEADER, PAGES)
    return file


def with_json(path: Path, change: Any) -> None:
    """Writes the header anew with its JSON changed, and every checksum right."""
    data = path.read_bytes()
    end = START_BYTES + int.from_bytes(data[20:28], "little")
    content = json.loads(data[START_BYTES:end])
    content = change(content) or content
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    start = data[:20] + len(text).to_bytes(8, "little") + text
    checksum = hashlib.blake2b(start, digest_size=32).digest()
    pages = b""
    for number, page in enumerate(PAGES):
        digest = hashlib.blake2b(checksum + number.to_bytes(8, "little") + page, digest_size=32)
        pages += page + digest.digest()
    path.write_bytes(start + checksum + pages)


def test_round_trip(path: Path) -> None:
    assert opened(path) == (HEADER, PAGES)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_test_can_write_a_header_anew(path: Path) -> None:
    with_json(path, lambda content: None)
    assert opened(path) == (HEADER, PAGES)


def test_without_pages(tmp_path: Path) -> None:
    for tokens in ([], [1, 2, 3]):
        header = SessionHeader("Tern 1B", "f00d", MESSAGES, tokens)
        write_session(tmp_path / "s", header)
        assert opened(tmp_path / "s") == (header, [])


def test_pages_one_at_a_time(tmp_path: Path) -> None:
    def pages() -> Iterator[np.ndarray[Any, Any]]:
        for page in PAGES:
            yield np.frombuffer(page, np.uint8)

    write_session(tmp_path / "s", HEADER, pages())
    assert opened(tmp_path / "s") == (HEADER, PAGES)
    with open_session(tmp_path / "s", model_name="", fingerprint="f00d") as saved:
        lazily = saved.pages("cpu f16 1", PAGE_BYTES)
        assert next(lazily) == PAGES[0]
        assert list(saved.pages("cpu f16 1", PAGE_BYTES)) == PAGES  # does not disturb the first
        assert list(lazily) == PAGES[1:]


@pytest.mark.parametrize(("layout", "page_bytes"), [("cpu f16 2", PAGE_BYTES), ("cpu f16 1", 2999), ("", 0)])
def test_pages_of_another_layout_are_not_given(path: Path, layout: str, page_bytes: int) -> None:
    with open_session(path, model_name="", fingerprint="f00d") as saved:
        assert list(saved.pages(layout, page_bytes)) == []
        assert saved.header.messages == MESSAGES


def test_another_model(path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"talk.session: a conversation with another model \('Tern 1B'\), not 'Gull'"
    ):
        open_session(path, model_name="Gull", fingerprint="beef")


def test_json_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    model = {"name": "Tern 1B", "fingerprint": "f00d"}
    data = {"format": "sterna-session", "version": 1, "model": model, "messages": MESSAGES}
    path.write_text(json.dumps(data, indent=1))
    assert opened(path) == (SessionHeader("Tern 1B", "f00d", MESSAGES, []), [])
    with pytest.raises(ArgumentError, match="another model"):
        opened(path, "beef")
    for change, match in (
        ({"version": 2}, "format version 2 is not 1"),
        ({"version": None}, "format version None"),
        ({"format": "other"}, "not a saved session"),
        ({"messages": {}}, "messages is no list"),
        ({"model": None}, "another model"),
        ({"kv": {"pages": 7}}, None),  # there was no such thing
    ):
        path.write_text(json.dumps({**data, **change}))
        if match is None:
            assert opened(path)[1] == []
            continue
        with pytest.raises(ArgumentError, match=f"old.json: .*{match}"):
            opened(path)


WRONG_CONTENT = {
    "nothing": (b"", "not a saved session"),
    "text": (b"hello", "not a saved session"),
    "a list": (b"[1]", "not a saved session"),
    "open brace": (b"{", "no JSON"),
    "deep": (b'{"a":' * 100_000, "no JSON"),
    "not UTF-8": (b'{"\xff": 1}', "no JSON"),
    "long number": (b'{"a": ' + b"9" * 10_000 + b"}", "no JSON"),
    "empty object": (b"{}", "not a saved session"),
    "a model": (b"GGUF" + bytes(100), "not a saved session"),
    "lines ended anew": (b"sterna session\n" + bytes(100), "not a saved session"),
    "magic alone": (b"sterna session\r\n", "within its header"),
    "half a version": (b"sterna session\r\n\x02\x00", "within its header"),
    "version 3": (b"sterna session\r\n\x03\x00\x00\x00" + bytes(100), "format version 3 is not 2"),
    "long header": (b"sterna session\r\n\x02\x00\x00\x00" + b"\xff" * 100, "within its header"),
}


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_what_is_no_session(tmp_path: Path, name: str) -> None:
    content, match = WRONG_CONTENT[name]
    path = tmp_path / "wrong"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=f"wrong: .*{match}"):
        opened(path)


def test_headers_longer_than_anybody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_file, "_MAX_JSON_BYTES", 1 << 20)
    path = tmp_path / "long"
    for start in (b"sterna session\r\n\x02\x00\x00\x00" + ((1 << 20) + 1).to_bytes(8, "little"), b"{"):
        path.write_bytes(start)
        os.truncate(path, 2 << 20)
        with pytest.raises(ArgumentError, match=r"more than|longer than"):
            opened(path)
    with pytest.raises(ArgumentError, match="can be read back"):
        write_session(path, SessionHeader("", "", [{"content": "x" * (1 << 20)}]))


def test_every_bit_of_the_header_counts(path: Path) -> None:
    good = path.read_bytes()
    end = len(good) - 3 * (PAGE_BYTES + 32)
    choice = random.Random(3)
    for place in range(end):
        data = bytearray(good)
        data[place] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ArgumentError, match="talk.session"):
            opened(path)


def test_flipped_bits_of_pages(path: Path) -> None:
    good = path.read_bytes()
    begin = len(good) - 3 * (PAGE_BYTES + 32)
    choice = random.Random(4)
    places = [begin, begin + PAGE_BYTES - 1, begin + PAGE_BYTES, len(good) - 1]
    for place in [*places, *(choice.randrange(begin, len(good)) for _ in range(60))]:
        data = bytearray(good)
        data[place] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        page = (place - begin) // (PAGE_BYTES + 32)
        with open_session(path, model_name="", fingerprint="f00d") as saved:
            assert saved.header == HEADER
            pages = saved.pages("cpu f16 1", PAGE_BYTES)
            assert [next(pages) for _ in range(page)] == PAGES[:page]
            with pytest.raises(ArgumentError, match=f"talk.session: page {page} .*damaged"):
                next(pages)
            # Whoever does not want them is not held up.
            assert list(saved.pages("another", PAGE_BYTES)) == []


def test_every_length(path: Path) -> None:
    good = path.read_bytes()
    end = len(good) - 3 * (PAGE_BYTES + 32)
    for length in [*range(end + 2), *range(end, len(good), 97), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(ArgumentError, match=r"not a saved session|ends after"):
            opened(path)
    for more in (b"\0", good):
        path.write_bytes(good + more)
        with pytest.raises(ArgumentError, match="goes on behind its last page"):
            opened(path)


def test_pages_in_another_order_or_of_another_session(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    record = PAGE_BYTES + 32
    begin = len(good) - 3 * record
    first, second = good[begin : begin + record], good[begin + record : begin + 2 * record]
    path.write_bytes(good[:begin] + second + first + good[begin + 2 * record :])
    with pytest.raises(ArgumentError, match="page 0"):
        opened(path)
    other = SessionHeader("Tern 1B", "f00d", MESSAGES, list(range(1, 201)), "cpu f16 1", PAGE_BYTES, 3)
    write_session(tmp_path / "other", other, PAGES)
    path.write_bytes((tmp_path / "other").read_bytes()[:begin] + good[begin:])
    with pytest.raises(ArgumentError, match=r"page 0|damaged"):
        opened(path)


def kv(**change: Any) -> Any:
    return lambda content: content["kv"].update(change)


WRONG_HEADERS = {
    "no JSON": (lambda content: b"{", "no JSON"),
    "a list": (lambda content: b"[]", "not a saved session"),
    "no cache": (lambda content: content.pop("kv") and None, "layout"),
    "cache is a list": (lambda content: content.update(kv=[]), "layout"),
    "layout": (kv(layout=None), "layout"),
    "no tokens": (kv(tokens=None), "no list of token ids"),
    "a token of text": (kv(tokens=["a"] * 200), "no list of token ids"),
    "a token of a fraction": (kv(tokens=[0.5] * 200), "no list of token ids"),
    "a token below 0": (kv(tokens=[-1] * 200), "no list of token ids"),
    "a token of 32 bits": (kv(tokens=[2**31] * 200), "no list of token ids"),
    "true as a token": (kv(tokens=[True] * 200), "no list of token ids"),
    "too few tokens": (kv(tokens=list(range(191))), "3 pages of 64 tokens for 191 tokens"),
    "too few pages": (kv(pages=2), "goes on behind"),
    "too many pages": (kv(pages=4, tokens=list(range(256))), "ends after"),
    "pages below 0": (kv(pages=-1), "-1 pages"),
    "pages as text": (kv(pages="3"), "'3' pages"),
    "true pages": (kv(pages=True), "True pages"),
    "no size": (kv(page_bytes=0), "page_bytes is 0"),
    "size below 0": (kv(page_bytes=-PAGE_BYTES), "page_bytes is -3000"),
    "huge size": (kv(page_bytes=2**62), "page_bytes is 4611"),
    "fractional size": (kv(page_bytes=3000.0), "page_bytes is 3000.0"),
    "another size": (kv(page_bytes=PAGE_BYTES + 1), "ends after"),
    "no messages": (lambda content: content.pop("messages") and None, "messages is no list"),
    "no model": (lambda content: content.pop("model") and None, "another model"),
    "fingerprint is a number": (lambda content: content["model"].update(fingerprint=1), "another model"),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_headers_that_make_no_sense(path: Path, name: str) -> None:
    change, match = WRONG_HEADERS[name]
    with_json(path, change)
    with pytest.raises(ArgumentError, match=f"talk.session: .*{match}"):
        opened(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes and folders")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing", "folder/missing", "pipe/x"):
        with pytest.raises(FileError, match=name):
            opened(tmp_path / name)
    for name in ("pipe", "folder", "nowhere/s"):
        with pytest.raises(FileError, match=name):
            write_session(tmp_path / name, HEADER, PAGES)
    assert {entry.name for entry in tmp_path.iterdir()} == {"pipe", "folder"}


@pytest.mark.parametrize(
    ("pages", "match"),
    [
        (PAGES[:2], "2 pages of 3"),
        ([*PAGES, PAGES[0]], "page 4 of 3"),
        ([PAGES[0], b"short"], "page 2 of 3 has 5 bytes, must have 3000"),
        ([], "0 pages of 3"),
    ],
)
def test_wrong_pages_leave_the_old_file(path: Path, pages: list[bytes], match: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match=match):
        write_session(path, HEADER, pages)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["talk.session"]


def test_headers_that_cannot_be_written(tmp_path: Path) -> None:
    for header in (
        SessionHeader("", "", [{"content": b"bytes"}]),
        SessionHeader("", "", MESSAGES, [1] * 63, "l", PAGE_BYTES, 1),
        SessionHeader("", "", MESSAGES, [-1] * 64, "l", PAGE_BYTES, 1),
        SessionHeader("", "", MESSAGES, [1] * 64, "l", 0, 1),
    ):
        with pytest.raises(ArgumentError, match=str(tmp_path)):
            write_session(tmp_path / "s", header, [bytes(PAGE_BYTES)])
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write, calls = path.read_bytes(), os.write, [0]

    def full(descriptor: int, data: memoryview) -> int:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(FileError, match="no space left"):
            write_session(path, HEADER, PAGES)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(FileError, match="no space left"):
            write_session(path, HEADER, PAGES)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["talk.session"]


def test_interrupted_writer_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()

    def pages() -> Iterator[bytes]:
        yield PAGES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_session(path, HEADER, pages())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["talk.session"]
    assert opened(path) == (HEADER, PAGES)


def test_a_file_that_is_replaced_or_cut_while_it_is_read(path: Path) -> None:
    with open_session(path, model_name="", fingerprint="f00d") as saved:
        pages = saved.pages("cpu f16 1", PAGE_BYTES)
        assert next(pages) == PAGES[0]
        write_session(path, SessionHeader("Tern 1B", "f00d", []))
        assert list(pages) == PAGES[1:]
    write_session(path, HEADER, PAGES)
    with open_session(path, model_name="", fingerprint="f00d") as saved:
        os.truncate(path, path.stat().st_size - PAGE_BYTES)
        pages = saved.pages("cpu f16 1", PAGE_BYTES)
        assert [next(pages), next(pages)] == PAGES[:2]
        with pytest.raises(ArgumentError, match="page 2"):
            next(pages)

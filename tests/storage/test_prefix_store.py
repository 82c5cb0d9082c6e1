"""PrefixStore: what comes back is what was saved for these tokens, or nothing, whatever happened to the folder."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import store_process
from sterna.errors import ArgumentError, FileError
from sterna.prefix_store import PrefixStore
from store_process import PAGE_BYTES, open_store, page_of, tokens_of

HEADER_BYTES = 376
FILE_BYTES = HEADER_BYTES + PAGE_BYTES
# Where each part of the header lies.
PARTS = {
    "magic": (0, 8),
    "version": (8, 12),
    "number of the page": (12, 16),
    "size of the page": (16, 24),
    "identity": (24, 56),
    "key": (56, 88),
    "tokens": (88, 344),
    "checksum": (344, 376),
}


def pages_of(prefix: int, count: int, first: int = 0) -> list[bytes]:
    return [page_of(prefix, number) for number in range(first, first + count)]


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def file_of(folder: Path, number: int, prefix: int = 0) -> Path:
    """The file of one page, found by what it holds."""
    found = [file for file in folder.iterdir() if file.read_bytes()[HEADER_BYTES:] == page_of(prefix, number)]
    assert len(found) == 1
    return found[0]


def test_round_trip(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tokens = [*tokens_of(3, 4), 1, 2, 3]  # three more tokens are no page
    assert store.find(tokens) == 0
    assert store.save(tokens, 0, pages_of(3, 4)) == 4
    assert store.find(tokens) == 4
    assert store.find(tokens[:191]) == 2
    assert store.load(tokens, 0, 4) == pages_of(3, 4)
    assert store.load(tokens, 1, 2) == pages_of(3, 2, 1)
    assert store.load(tokens, 4, 0) == []
    assert store.save(tokens, 0, pages_of(3, 4)) == 0
    assert all(file.stat().st_size == FILE_BYTES for file in tmp_path.iterdir())
    again = open_store(tmp_path)
    assert again.load(np.asarray(tokens, np.int32), 0, 4) == pages_of(3, 4)


def test_only_its_own_prefix(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(tokens_of(1, 4), 0, pages_of(1, 4))
    assert store.find(tokens_of(2, 4)) == 2
    assert store.load(tokens_of(2, 4), 0, 4) == pages_of(2, 2)
    # The tokens of a page alone do not make it: what is before it counts.
    assert store.find(tokens_of(1, 4)[64:]) == 0
    changed = tokens_of(1, 4)
    changed[0] += 1
    assert store.find(changed) == 0


@pytest.mark.parametrize("change", [{"identity": b"model layout 2"}, {"identity": b""}, {"page_bytes": PAGE_BYTES - 1}])
def test_other_models_are_left_alone(tmp_path: Path, change: dict[str, object]) -> None:
    open_store(tmp_path).save(tokens_of(1, 3), 0, pages_of(1, 3))
    before = names(tmp_path)
    options = {"identity": store_process.IDENTITY, "page_bytes": PAGE_BYTES, "quota": 10**7, **change}
    other = PrefixStore(tmp_path, **options)  # type: ignore[arg-type]
    assert other.find(tokens_of(1, 3)) == 0
    assert other.load(tokens_of(1, 3), 0, 3) == []
    assert names(tmp_path) == before


def test_pages_before_the_first_need_not_be_given(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.save(tokens_of(0, 4), 2, pages_of(0, 2, 2)) == 2
    assert store.find(tokens_of(0, 4)) == 0
    assert store.save(tokens_of(0, 4), 0, pages_of(0, 4)) == 2
    assert store.load(tokens_of(0, 4), 0, 4) == pages_of(0, 4)


def test_any_bytes_make_a_page(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    array = np.frombuffer(page_of(0, 0), np.uint8)
    pages = [array.copy(), bytearray(page_of(0, 1)), memoryview(page_of(0, 2)), array.copy().reshape(100, -1)]
    assert store.save(tokens_of(0, 4), 0, pages) == 4
    assert store.load(tokens_of(0, 4), 0, 4) == [*pages_of(0, 3), page_of(0, 0)]
    with pytest.raises(ArgumentError, match="contiguous"):
        store.save(tokens_of(0, 1), 0, [np.zeros(2 * PAGE_BYTES, np.uint8)[::2]])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_header_is_checked(tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 2)
    begin, end = PARTS[part]
    choice = random.Random(begin)
    for place in sorted({begin, end - 1, choice.randrange(begin, end), choice.randrange(begin, end)}):
        store.save(tokens, 0, pages_of(0, 2))
        file = file_of(tmp_path, 1)
        data = bytearray(file.read_bytes())
        data[place] ^= 1 << choice.randrange(8)
        file.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.INFO, "sterna"):
            assert store.load(tokens, 0, 2) == pages_of(0, 1)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert part in caplog.text and file.name in caplog.text
        assert not file.exists()


def test_flipped_bits_of_the_payload(tmp_path: Path) -> None:
    store, tokens, choice = open_store(tmp_path), tokens_of(0, 1), random.Random(5)
    for place in [0, PAGE_BYTES - 1, *(choice.randrange(PAGE_BYTES) for _ in range(30))]:
        store.save(tokens, 0, pages_of(0, 1))
        file = file_of(tmp_path, 0)
        data = bytearray(file.read_bytes())
        data[HEADER_BYTES + place] ^= 1 << choice.randrange(8)
        file.write_bytes(data)
        assert store.load(tokens, 0, 1) == []
        assert not file.exists()


SIZES = [0, 1, 7, 8, 343, 344, 375, 376, 377, 4096, FILE_BYTES - 1, FILE_BYTES + 1, 2 * FILE_BYTES]


@pytest.mark.parametrize("size", SIZES)
def test_files_of_another_size(tmp_path: Path, size: int) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 3)
    store.save(tokens, 0, pages_of(0, 3))
    file = file_of(tmp_path, 1)
    os.truncate(file, size)
    assert store.load(tokens, 0, 3) == pages_of(0, 1)
    assert not file.exists()
    assert store.find(tokens) == 1
    assert store.save(tokens, 1, pages_of(0, 2, 1)) == 1
    assert store.load(tokens, 0, 3) == pages_of(0, 3)


def test_parts_of_a_file_that_never_reached_the_disk(tmp_path: Path) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 1)
    for begin, end in [(0, FILE_BYTES), (0, 4096), (4096, 8192), (FILE_BYTES - 4096, FILE_BYTES)]:
        store.save(tokens, 0, pages_of(0, 1))
        file = file_of(tmp_path, 0)
        data = bytearray(file.read_bytes())
        data[begin:end] = bytes(end - begin)
        file.write_bytes(data)
        assert store.load(tokens, 0, 1) == []


def test_files_under_the_names_of_others(tmp_path: Path) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 3)
    store.save(tokens, 0, pages_of(0, 3))
    first, second = file_of(tmp_path, 0), file_of(tmp_path, 1)
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert store.load(tokens, 1, 2) == []
    assert store.load(tokens, 0, 3) == []


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "loop", "dangling"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "store"
    store, tokens = open_store(folder), tokens_of(0, 2)
    store.save(tokens, 0, pages_of(0, 2))
    file = file_of(folder, 1)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"link": elsewhere, "loop": file, "dangling": tmp_path / "nothing"}[kind])
    store.find(tokens)
    assert store.load(tokens, 0, 2) == pages_of(0, 1)
    store.save(tokens, 1, pages_of(0, 1, 1))
    assert elsewhere.exists() and not (tmp_path / "nothing").exists()


def test_a_file_vanishes_between_find_and_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 3)
    store.save(tokens, 0, pages_of(0, 3))
    assert store.find(tokens) == 3
    file_of(tmp_path, 1).unlink()
    with caplog.at_level(logging.INFO, "sterna"):
        assert store.load(tokens, 0, 3) == pages_of(0, 1)
    assert not caplog.records


def test_a_file_that_cannot_be_opened_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tokens = open_store(tmp_path), tokens_of(0, 2)
    store.save(tokens, 0, pages_of(0, 2))

    def too_many(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", too_many)
        assert store.load(tokens, 0, 2) == []
    assert store.load(tokens, 0, 2) == pages_of(0, 2)


def set_age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_quota_evicts_the_least_recently_used(tmp_path: Path) -> None:
    store = open_store(tmp_path, pages=6)
    # The first two pages are common: six files hold three prefixes of three, three and four pages less two shared twice.
    for age, prefix in ((300, 1), (200, 2), (100, 3)):
        store.save(tokens_of(prefix, 3), 0, pages_of(prefix, 3))
        for number in range(3):
            set_age(file_of(tmp_path, number, prefix), age)
    assert len(names(tmp_path)) == 5
    assert store.load(tokens_of(1, 3), 0, 3) == pages_of(1, 3)  # used just now
    assert store.save(tokens_of(4, 4), 0, pages_of(4, 4)) == 2
    assert len(names(tmp_path)) == 6
    assert [store.find(tokens_of(prefix, 4)) for prefix in (1, 2, 3, 4)] == [3, 2, 3, 4]
    assert store.save(tokens_of(5, 5), 0, pages_of(5, 5)) == 3
    # The end of a prefix goes before its beginning.
    assert [store.find(tokens_of(prefix, 5)) for prefix in (1, 2, 3, 4, 5)] == [2, 2, 2, 3, 5]


def test_quota_smaller_than_a_prefix(tmp_path: Path) -> None:
    store = open_store(tmp_path, pages=3)
    store.save(tokens_of(1, 3), 0, pages_of(1, 3))
    assert store.save(tokens_of(2, 9), 0, pages_of(2, 9)) == 1
    assert store.find(tokens_of(2, 9)) == 3
    assert store.save(tokens_of(2, 9), 3, pages_of(2, 6, 3)) == 0
    assert store.load(tokens_of(2, 9), 0, 3) == pages_of(2, 3)


def test_quota_counts_all_that_is_ours(tmp_path: Path) -> None:
    stranger, part = tmp_path / "notes.txt", tmp_path / f".{'ab' * 8}.kv.part"
    stranger.write_bytes(bytes(50 * FILE_BYTES))
    set_age(stranger, 1e6)
    other = PrefixStore(tmp_path, identity=b"other", page_bytes=2 * PAGE_BYTES, quota=10**9)
    other.save(tokens_of(1, 2), 0, [bytes(2 * PAGE_BYTES)] * 2)
    for file in tmp_path.glob("*.kv"):
        set_age(file, 50)
    part.write_bytes(bytes(FILE_BYTES))  # somebody writes it just now
    store = open_store(tmp_path, pages=4)
    assert store.save(tokens_of(2, 3), 0, pages_of(2, 3)) == 3
    assert other.find(tokens_of(1, 2)) == 0
    assert stranger.exists() and part.exists()
    assert store.save(tokens_of(2, 4), 0, pages_of(2, 4)) == 0


def test_leftovers_of_killed_writers(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(tokens_of(1, 1), 0, pages_of(1, 1))
    old, ahead, fresh, foreign = (
        tmp_path / f for f in (f".{'0' * 16}.kv.part", f".{'1' * 16}.kv.part", f".{'2' * 16}.kv.part", ".x.part")
    )
    for file in (old, ahead, fresh, foreign):
        file.write_bytes(b"?")
    set_age(old, 1e4)
    set_age(ahead, -1e4)
    set_age(foreign, 1e4)
    open_store(tmp_path)
    assert [file.exists() for file in (old, ahead, fresh, foreign)] == [False, False, True, True]
    assert store.find(tokens_of(1, 1)) == 1


def full_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes so many bytes more."""
    write, left = os.write, [count]

    def limited(descriptor: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("room", [0, 100, HEADER_BYTES, FILE_BYTES - 1, FILE_BYTES, 2 * FILE_BYTES + 500])
def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    store, tokens = open_store(tmp_path), tokens_of(1, 4)
    with monkeypatch.context() as patch:
        full_after(room, patch)
        assert store.save(tokens, 0, pages_of(1, 4)) == room // FILE_BYTES
        assert store.save(tokens, 0, pages_of(1, 4)) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text and str(tmp_path) in caplog.text
    assert len(names(tmp_path)) == store.find(tokens) == room // FILE_BYTES
    assert store.save(tokens, 0, pages_of(1, 4)) == 4 - room // FILE_BYTES
    assert store.load(tokens, 0, 4) == pages_of(1, 4)


def test_folder_vanishes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "store"
    store, tokens = open_store(folder), tokens_of(1, 2)
    folder.rmdir()
    assert store.find(tokens) == 0
    assert store.load(tokens, 0, 2) == []
    assert [store.save(tokens, 0, pages_of(1, 2)) for _ in range(3)] == [0, 0, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_folder_that_is_only_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    store, tokens = open_store(folder), tokens_of(1, 2)
    assert folder.stat().st_mode & 0o777 == 0o700
    store.save(tokens, 0, pages_of(1, 2))
    folder.chmod(0o500)
    if os.geteuid() == 0:  # whom no permission stops
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        opened = os.open

        def read_only(path: str, flags: int, *mode: int) -> int:
            if flags & os.O_CREAT:
                raise denied
            return opened(path, flags, *mode)

        def no(*_: object, **__: object) -> None:
            raise denied

        monkeypatch.setattr(os, "open", read_only)
        for name in ("unlink", "utime", "replace"):
            monkeypatch.setattr(os, name, no)
    store = open_store(folder)
    assert store.load(tokens, 0, 2) == pages_of(1, 2)
    assert store.save(tokens_of(1, 3), 2, pages_of(1, 1, 2)) == 0
    assert store.find(tokens_of(1, 3)) == 2
    folder.chmod(0o700)


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for path in (file, file / "store"):
        with pytest.raises(FileError, match="file"):
            open_store(path)


def test_wrong_arguments(tmp_path: Path) -> None:
    for options in ({"page_bytes": 0}, {"page_bytes": -1}, {"page_bytes": 1 << 40}, {"quota": FILE_BYTES - 1}):
        with pytest.raises(ArgumentError):
            PrefixStore(tmp_path, **{"identity": b"", "page_bytes": PAGE_BYTES, "quota": 10**7, **options})
    store, tokens = open_store(tmp_path), tokens_of(0, 2)
    for first, count in ((-1, 1), (0, 3), (2, 1), (0, -1)):
        with pytest.raises(ArgumentError, match="whole pages"):
            store.load(tokens, first, count)
    with pytest.raises(ArgumentError, match="whole pages"):
        store.save(tokens, 1, pages_of(0, 2))
    with pytest.raises(ArgumentError, match="page 1 has 5 bytes"):
        store.save(tokens, 0, [page_of(0, 0), b"short"])
    for wrong in ([1.5] * 64, [2**31] * 64, [2**80] * 64, ["a"] * 64, [[1] * 64], [True] * 64):
        with pytest.raises(ArgumentError, match="tokens"):
            store.find(wrong)  # type: ignore[arg-type]
    assert names(tmp_path) == set()


def test_several_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        loaded = pool.starmap(store_process.work, [(str(tmp_path), seed, 120) for seed in range(3)])
    assert sum(loaded) > 100
    assert all(name.endswith(".kv") for name in names(tmp_path))
    # Each of them keeps to the quota but for what the others write at the same moment: at most seven pages each.
    assert len(names(tmp_path)) <= 40 + 2 * 7


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    choice, loaded = random.Random(11), 0
    for turn in range(10):
        command = [sys.executable, store_process.__file__, str(tmp_path), str(turn * 1000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(choice.uniform(0, 0.05))
            process.kill()
        assert process.returncode < 0
        for file in tmp_path.glob("*.kv"):
            assert file.stat().st_size == FILE_BYTES
        loaded += store_process.work(str(tmp_path), turn, 5)
    assert loaded
    for part in tmp_path.glob(".*.part"):
        set_age(part, 1e4)
    open_store(tmp_path)
    assert not list(tmp_path.glob(".*.part"))

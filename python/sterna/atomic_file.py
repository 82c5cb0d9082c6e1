"""`AtomicFile`: a file that has its name when it is complete, and none before."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import NoReturn

from sterna.errors import FileError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class AtomicFile:
    """`open`, `write` and `commit`; `discard` in any case. Until `commit` the data are in a temporary file beside it.

    `mode`: its permissions, less those that the umask takes away. FileError: `path` exists (and `overwrite` is False)
    or is no regular file, its folder is missing or full.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, mode: int = 0o666) -> None:
        self.path = Path(path)
        # A link stays a link: what it points to is replaced.
        self.final = Path(os.path.realpath(self.path))
        self._overwrite = overwrite
        self._mode = mode
        self._descriptor: int | None = None
        self._temporary: Path | None = None
        self._check_destination()

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    def open(self, n_bytes: int) -> None:
        """Begins a file that will have that many bytes."""
        folder = self.final.parent
        try:
            if shutil.disk_usage(folder).free < n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._temporary = folder / f".sterna-{secrets.token_hex(6)}.part"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._temporary, flags, self._mode)
        except OSError as error:
            self._fail(error, n_bytes)

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        assert self._descriptor is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self._fail(error)

    def commit(self) -> None:
        """Gives the file its name."""
        assert self._descriptor is not None
        assert self._temporary is not None
        # Somebody else may have made one meanwhile.
        self._check_destination()
        try:
            os.fsync(self._descriptor)
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
            os.replace(self._temporary, self.final)
        except OSError as error:
            self._fail(error)
        self._temporary = None
        if os.name == "posix":
            # The file is there; not every file system, and no folder without read permission, can be synchronised.
            with contextlib.suppress(OSError):
                folder = os.open(self.final.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def discard(self) -> None:
        """Removes what was not committed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _check_destination(self) -> None:
        try:
            mode = self.path.stat().st_mode  # not of `final`: that of a pipe below /dev/fd names no file
        except FileNotFoundError:
            if not self.final.parent.is_dir():
                raise FileError(
                    f"{self.path}: there is no folder {self.final.parent}", str(self.path), errno.ENOENT
                ) from None
            return
        except OSError as error:
            self._fail(error)
        if not stat.S_ISREG(mode):
            raise FileError(f"{self.path} is no regular file", str(self.path), errno.EINVAL)
        if not self._overwrite:
            raise FileError(f"{self.path} exists already", str(self.path), errno.EEXIST)

    def _fail(self, error: OSError, needed: int | None = None) -> NoReturn:
        problem = error.strerror or str(error)
        if error.errno in _DISK_FULL:
            more = f"; {needed / 1e6:.0f} MB are needed" if needed else ""
            problem = f"no space left in {self.final.parent} ({problem}{more})"
        raise FileError(f"cannot write {self.path}: {problem}", str(self.path), error.errno or 0) from error

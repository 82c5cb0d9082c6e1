"""Opens files of a repository: regular ones only, since another kind may never end, or never begin."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sterna.errors import FileError, ModelFormatError


def open_regular(path: Path) -> int:
    """A descriptor for reading. FileError where there is none, or no regular file."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not block
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path}: is no regular file", str(path))
    return descriptor


def read_file(path: Path, most: int) -> bytes:
    """A whole file. FileError; ModelFormatError where it has more than `most` bytes."""
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read(most + 1)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None
    if len(data) > most:
        raise ModelFormatError(f"{path}: has more than {most} bytes", str(path))
    return data

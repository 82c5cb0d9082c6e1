"""What files with pages of the KV cache share: bytes of a page, exact reads, little-endian numbers and checksums."""

from __future__ import annotations

import hashlib
import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.errors import ArgumentError

Page: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

DIGEST_BYTES = 32
# The largest models have about 32 MiB a page.
MAX_PAGE_BYTES = 1 << 30


def byte_view(page: Page) -> memoryview:
    """The bytes of a page without a copy. ArgumentError where they do not lie one behind the other."""
    try:
        return memoryview(page.data if isinstance(page, np.ndarray) else page).cast("B")
    except TypeError as error:
        raise ArgumentError(f"a page is no contiguous bytes: {error}") from None


def digest(*parts: bytes | memoryview) -> bytes:
    """blake2b over all parts: about 1 GB/s, and no two contents that anybody could find have the same."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def little_endian(value: int, n_bytes: int) -> bytes:
    """An unsigned number as it stands in a file."""
    return value.to_bytes(n_bytes, "little")


def read_exactly(descriptor: int, n_bytes: int) -> bytes:
    """So many bytes, fewer only at the end of the file. OSError."""
    data = os.read(descriptor, n_bytes)
    while len(data) < n_bytes and (more := os.read(descriptor, n_bytes - len(data))):
        data += more
    return data

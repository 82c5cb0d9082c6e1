"""The calling thread's floating-point control register, as another library may leave it."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import platform
import sys
from collections.abc import Iterator

FLUSH_TO_ZERO = 0x8000
SUBNORMALS_ARE_ZERO = 0x0040
ROUND_UP = 0x4000

_MXCSR = 28  # its offset in the fenv_t of glibc on x86-64
available = sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"


def control() -> int:
    """MXCSR without its sticky flags."""
    environment = ctypes.create_string_buffer(32)
    _libm().fegetenv(environment)
    return int.from_bytes(environment.raw[_MXCSR:], "little") & ~0x3F


@contextlib.contextmanager
def float_control(bits: int) -> Iterator[None]:
    """Sets bits of MXCSR for the block."""
    found = ctypes.create_string_buffer(32)
    _libm().fegetenv(found)
    changed = ctypes.create_string_buffer(found.raw, 32)
    changed[_MXCSR:] = (control() | bits).to_bytes(4, "little")
    _libm().fesetenv(changed)
    try:
        yield
    finally:
        _libm().fesetenv(found)


def _libm() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("m"))

"""What the algorithms have in common: an encoder turns text without control tokens into token ids, with a library's
help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sterna.errors import ModelFormatError

_Result = TypeVar("_Result")


class Encoder(Protocol):
    """One algorithm over one vocabulary."""

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, which is valid Unicode, not empty, and all data: no control token is ever among them.
        The tokens of `text`, which is valid Unicode, not empty, and all data: no control token is ever among them."""


def guarded(build: Callable[[], _Result], file: str, field: str) -> _Result:
    """Calls a library on data of a file; what it raises, panics included, becomes ModelFormatError about `field`."""
    try:
        return build()
    except BaseException as error:
        if is_fault(error):
            raise ModelFormatError(f"{file}: {field}: {error}", file, field) from error
        raise


def is_fault(error: BaseException) -> bool:
    """True for what a library raises about its data; a Rust panic is no Exception, but a BaseException."""
    if isinstance(error, MemoryError | ModelFormatError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"

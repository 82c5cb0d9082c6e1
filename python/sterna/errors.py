"""Every error that sterna raises on purpose: one base class, and the fitting built-in beside it."""

from __future__ import annotations


class SternaError(Exception):
    """Base of all errors of sterna."""


class ModelFormatError(SternaError, ValueError):
    """A model file that is malformed; names the file, the field and the byte offset of the field.

    `byte_offset` is None where the fault is not at one place of the file (a vocabulary that contradicts itself).
    """

    def __init__(self, message: str, file: str = "", field: str = "", byte_offset: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.field = field
        self.byte_offset = byte_offset


class FileError(SternaError, OSError):
    """A file that cannot be opened, read or written; `errno` and `filename` are those of OSError."""

    def __init__(self, message: str, file: str = "", error_number: int = 0) -> None:
        super().__init__(message)
        self.filename = file
        self.errno = error_number or None

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedModelError(SternaError, ValueError):
    """A well-formed model that this version cannot run."""


class ArgumentError(SternaError, ValueError):
    """An argument out of range or of the wrong shape."""


class ContextOverflowError(SternaError, ValueError):
    """A prompt longer than the context."""


class MemoryBudgetError(SternaError, MemoryError):
    """Something would not fit into the memory budget; nothing was allocated."""


class DeviceError(SternaError, OSError):
    """A device, or an instruction set, that is not there."""


class NumericError(SternaError, ArithmeticError):
    """NaN or infinity where a number is needed."""


class QueueFullError(SternaError, RuntimeError):
    """A request that found too many others waiting; try again when some have ended."""


class DeadlineError(SternaError, TimeoutError):
    """A request that did not end within its `timeout`."""


class TemplateError(SternaError, ValueError):
    """A chat template that is malformed, raises, or exceeds its budget."""


class DownloadError(SternaError, OSError):
    """A model that cannot be fetched: unreachable, missing, or not what its checksum says."""

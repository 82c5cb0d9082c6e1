"""What tells models apart whose KV cache or conversations must not be mixed up."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sterna.errors import FileError

if TYPE_CHECKING:
    from sterna._core import Gguf, Program

# Of each tensor, at its beginning, in its middle and at its end.
_SAMPLE_BYTES = 64


def fingerprint(file: Gguf, program: Program) -> str:
    """A digest of the program, the tensor table and samples of every tensor; gigabytes of weights are not read.

    Fine-tunes of one model differ in most weights, so in some of these. FileError.
    """
    digest = hashlib.sha256(program.text().encode())
    opened = []
    try:
        for name in file.files:
            opened.append(open(name, "rb", buffering=0))  # noqa: SIM115 - closed below, all of them
        for tensor in file.tensors:
            size, offset, handle = tensor.bytes, tensor.offset, opened[tensor.file]
            count = min(_SAMPLE_BYTES, size)
            digest.update(f"{tensor.name} {tensor.format} {size}".encode())
            for at in (0, (size - count) // 2, size - count):
                handle.seek(offset + at)
                digest.update(handle.read(count))
    except OSError as error:
        raise FileError(f"{file.path}: {error.strerror or error}", file.path, error.errno or 0) from None
    finally:
        for handle in opened:
            handle.close()
    return digest.hexdigest()

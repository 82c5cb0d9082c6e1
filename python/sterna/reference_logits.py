"""The file of a reference run's log-probabilities, in the format of llama-perplexity: written whole or not at all.

Byte map (ggml-org/llama.cpp, tools/perplexity/perplexity.cpp, --kl-divergence-base), all little endian: "_logits_", the
window length n_ctx, the vocabulary's size and the number of windows as int32, then the tokens of all windows as int32,
then a row for each scored position n_ctx / 2 .. n_ctx - 2 of each window. A row is a step and the smallest
log-probability as float32, then for each token how many steps above that it lies, as uint16, and one more uint16 where
their number is odd. Log-probabilities more than 16 below the largest are raised to that.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from sterna.atomic_file import AtomicFile
from sterna.errors import FileError, ModelFormatError

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_RANGE = np.float32(16)
_STEPS = np.float32(65535)
_MAX_VOCAB = 1 << 24
# Log-probabilities are not below that (16 below the largest, which is not below 1 / _MAX_VOCAB), nor, but for the
# rounding of their sum, above 0.
_LEAST, _MOST = -40.0, 0.01

Tokens = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]


def rows_per_window(context: int) -> int:
    """The scored positions of a window: those from context / 2 on that have a token after them."""
    return context - 1 - context // 2


def _row_type(vocab_size: int) -> np.dtype[Any]:
    words = vocab_size + vocab_size % 2
    return np.dtype([("step", "<f4"), ("smallest", "<f4"), ("steps", "<u2", (words,))])


class ReferenceLogits:
    """An open file of reference log-probabilities. FileError; ModelFormatError where it is none, or cut off."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            self._fail_io(error)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ReferenceLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        header = self._read(_HEADER.size) if size >= _HEADER.size else b""
        if header[: len(_MAGIC)] != _MAGIC:
            self._fail("header", "is not that of a file of log-probabilities (llama-perplexity's, or --save-logits)", 0)
        _, self.context, self.vocab_size, self.windows = _HEADER.unpack(header)
        for name, value, low, high in (
            ("n_ctx", self.context, 4, 1 << 30),
            ("n_vocab", self.vocab_size, 1, _MAX_VOCAB),
            ("n_chunk", self.windows, 1, 1 << 30),
        ):
            if not low <= value <= high:
                self._fail(name, f"is {value}, expected {low} to {high}", 8)
        self._type = _row_type(self.vocab_size)
        self._data = _HEADER.size + 4 * self.windows * self.context
        expected = self._data + self.windows * rows_per_window(self.context) * self._type.itemsize
        if size != expected:
            self._fail("n_chunk", f"{self.windows} windows take {expected} bytes, the file has {size}", 16)
        tokens = np.frombuffer(self._read(4 * self.windows * self.context), "<i4")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            self._fail("tokens", f"one of them is not in the vocabulary of {self.vocab_size}", _HEADER.size)
        self.tokens: Tokens = tokens.reshape(self.windows, self.context).astype(np.int32)

    def rows(self, window: int, begin: int, end: int) -> Rows:
        """Log-probabilities of the scored positions [begin, end) of a window, float32 [end - begin, vocab_size]."""
        at = self._data + (window * rows_per_window(self.context) + begin) * self._type.itemsize
        try:
            self._file.seek(at)
        except OSError as error:
            self._fail_io(error)
        stored = np.frombuffer(self._read((end - begin) * self._type.itemsize), self._type)
        step, smallest = stored["step"], stored["smallest"]
        # Of NaN no comparison is true.
        if not ((step >= 0) & (step < 1) & (smallest > _LEAST) & (smallest < _MOST)).all():
            self._fail("rows", f"a step or a smallest value of window {window} is none of log-probabilities", at)
        steps = stored["steps"][:, : self.vocab_size].astype(np.float32)
        values: Rows = steps * step[:, None] + smallest[:, None]
        if values.max() > _MOST:
            self._fail("rows", f"a log-probability of window {window} is {values.max():.6g}", at)
        return values

    def _read(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            self._fail_io(error)
        if len(data) != count:
            self._fail("rows", "the file ends in the middle of them", self._file.tell())
        return data

    def _fail(self, field: str, problem: str, at: int) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {field}: {problem}", str(self.path), field, at)

    def _fail_io(self, error: OSError) -> NoReturn:
        raise FileError(f"{self.path}: {error.strerror or error}", str(self.path), error.errno or 0) from None


class ReferenceLogitsOutput:
    """Writes such a file in a `with` block; it gets its name when the block ends well and all rows are there."""

    def __init__(self, path: str | Path, tokens: Tokens, vocab_size: int) -> None:
        """`tokens` are int32 [windows, context]. FileError, also where `path` is a file of another kind."""
        self._file = AtomicFile(path, overwrite=True)
        _check_kind(self._file.path)
        self._type = _row_type(vocab_size)
        self._vocab_size = vocab_size
        windows, context = tokens.shape
        self._missing = windows * rows_per_window(context)
        self._head = _HEADER.pack(_MAGIC, context, vocab_size, windows) + tokens.astype("<i4").tobytes()

    def __enter__(self) -> ReferenceLogitsOutput:
        try:
            self._file.open(len(self._head) + self._missing * self._type.itemsize)
            self._file.write(self._head)
        except BaseException:
            self._file.discard()
            raise
        return self

    def add(self, logits: Rows) -> None:
        """The next rows, float32 [n, vocab_size]."""
        rows = np.zeros(len(logits), self._type)
        largest = logits.max(axis=1, keepdims=True)
        smallest = np.maximum(logits.min(axis=1, keepdims=True), largest - _RANGE)
        # The precision of each operation is that of llama-perplexity.
        total = np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)
        rows["smallest"] = (smallest - largest - np.log(total).astype(np.float32))[:, 0]
        step = (largest - smallest) / _STEPS
        rows["step"] = step[:, 0]
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
        rows["steps"][:, : self._vocab_size] = np.rint(np.maximum(logits - smallest, 0) * inverse)
        self._missing -= len(rows)
        self._file.write(rows.tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    raise ValueError(f"{self._missing} rows were not written")
                self._file.commit()
        finally:
            self._file.discard()


def _check_kind(path: Path) -> None:
    """Only a file like it is replaced: not the model, given by mistake."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None
    raise FileError(f"{path} exists already, and is no file of log-probabilities", str(path))

"""`quantize`: writes a model in other formats, tensor by tensor."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sterna import _core
from sterna.errors import ArgumentError, UnsupportedModelError
from sterna.gguf_output import GgufOutput
from sterna.quantization.assignment import assign, format_info
from sterna.quantization.importance import Importance, load_importance
from sterna.quantization.mixes import EMBEDDINGS, MIXES, OUTPUT, find_mix

if TYPE_CHECKING:
    from sterna._core import Gguf, TensorInfo

__all__ = ["MIXES", "Quantized", "quantize"]

_log = logging.getLogger(__name__)

MAX_THREADS = 1024
# Weights that a thread takes at a time, and bytes that are copied at a time.
_CHUNK_WEIGHTS = 1 << 19
_CHUNK_BYTES = 1 << 23
# GGML_QNT_VERSION (ggml.h): how the bytes of the formats are to be read.
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote."""

    path: Path
    type: str
    source_bytes: int  # of the source's tensors
    bytes: int  # of the tensors
    num_weights: int
    formats: dict[str, int]  # tensors per format
    fallbacks: list[tuple[str, str, str]]  # tensor, format that the type wants, format that fits its rows
    requantized: list[str]  # tensors that were quantised already

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.num_weights


def quantize(
    src: str | Path,
    dst: str | Path,
    type: str,
    *,
    imatrix: str | Path | None = None,
    head: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    i2s_order: str = "x86",
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Quantized:
    """Writes the model `src` (a path, or a name as `load` takes it) to the GGUF file `dst` in the file type `type`.

    type: a format (Q8_0, IQ4_XS, TQ2_0, ...) or a mix of several (Q4_K_M, Q5_K_M, ...) as llama.cpp has them; MIXES
        lists all. One-dimensional tensors and routers keep their format; matrices whose rows are no whole blocks get
        one of smaller blocks (`Quantized.fallbacks`).
    imatrix: an importance file of llama.cpp's llama-imatrix, of either form; the squared error is weighed by it.
    head: format of embedding and output, instead of the type's.
    overwrite: replace `dst` where it exists.
    threads: that compute; None is one per CPU. The bytes do not depend on it.
    i2s_order: how an I2_S source's codes are arranged, as `load` has it.
    progress: called with ("quantize", bytes written, bytes in all).

    `dst` appears when it is complete. Memory: some 4 MB per thread, whatever the size of the model. A source that is
    quantised already loses twice; that is logged as a warning. Raises SternaError: FileError, ModelFormatError,
    UnsupportedModelError, ArgumentError, NumericError (a weight that is not finite, or too large for its format).
    """
    from sterna.hub import resolve

    name, mix = find_mix(type)
    head = _checked_head(head)
    workers = _checked_threads(threads)
    importance = load_importance(Path(imatrix)) if imatrix is not None else None
    file = _core.Gguf(resolve(src).path, i2s_order=i2s_order)
    assignment = assign(file, mix, head=head, has_importance=importance is not None)
    tensors = [_Tensor(file, tensor, assignment.formats[tensor.name], importance) for tensor in file.tensors]
    requantized = [t.name for t in tensors if t.is_changed and format_info(t.source.format).scales != "none"]
    total = sum(tensor.bytes for tensor in tensors)
    with GgufOutput(Path(dst), file.get_string("general.architecture"), overwrite=overwrite) as out:
        out.copy_metadata(file)
        _tell_losses(file, requantized, assignment.fallbacks)
        out.metadata("general.file_type", mix.file_type, "uint32")
        out.metadata("general.quantization_version", _QUANTIZATION_VERSION, "uint32")
        if importance is not None:
            _describe_importance(out, importance)
        for each in tensors:
            out.declare(each.name, each.source.shape[::-1], each.format, each.bytes)
        out.begin()
        done = 0
        for tensor, data in _in_order((chunk for each in tensors for chunk in each.chunks()), workers):
            out.write(tensor, data)
            done += data.nbytes
            if progress is not None:
                progress("quantize", done, total)
    return Quantized(
        path=Path(dst),
        type=name,
        source_bytes=sum(tensor.bytes for tensor in file.tensors),
        bytes=total,
        num_weights=sum(tensor.num_weights for tensor in tensors),
        formats=dict(Counter(tensor.format for tensor in tensors)),
        fallbacks=assignment.fallbacks,
        requantized=requantized,
    )


def _tell_losses(file: Gguf, requantized: list[str], fallbacks: list[tuple[str, str, str]]) -> None:
    if requantized:
        _log.warning(
            "%s is quantised already (%d tensors, %s as %s): quantising again loses more than quantising the original",
            file.path, len(requantized), requantized[0], file.require(requantized[0]).format,
        )  # fmt: skip
    for tensor, wanted, given in fallbacks:
        width = file.require(tensor).shape[-1]
        _log.info("%s: rows of %d weights are no whole blocks of %s, it becomes %s", tensor, width, wanted, given)


def _checked_head(head: str | None) -> str | None:
    if head is None:
        return None
    name = head.upper()
    known = [info.name for info in _core.formats() if _core.can_quantize(info.name)]
    if name not in known:
        raise ArgumentError(f"head: there is no {head!r}; there are {', '.join(known)}")
    return name


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return _core.available_cpus()
    if not 1 <= threads <= MAX_THREADS:
        raise ArgumentError(f"threads is {threads}, must be from 1 to {MAX_THREADS}")
    return threads


def _describe_importance(out: GgufOutput, importance: Importance) -> None:
    """The keys that llama-quantize leaves (tools/quantize/quantize.cpp)."""
    out.metadata("quantize.imatrix.file", importance.path.name, "string")
    if importance.datasets:
        out.metadata("quantize.imatrix.dataset", importance.datasets[0], "string")
    out.metadata("quantize.imatrix.entries_count", len(importance.values), "uint32")
    if importance.num_chunks:
        out.metadata("quantize.imatrix.chunks_count", importance.num_chunks, "uint32")


Bytes = npt.NDArray[np.uint8]
_Chunk = tuple[str, Callable[[], Bytes]]


class _Tensor:
    """A tensor on its way from one format to another: its size there, and the work in pieces."""

    def __init__(self, file: Gguf, source: TensorInfo, format: str, importance: Importance | None) -> None:
        self.name, self.source, self.format = source.name, source, format
        self._file = file
        self.is_changed = format != source.format
        self._k = source.shape[-1]
        self.num_weights = int(np.prod(source.shape, dtype=np.int64))
        info = format_info(format)
        self.bytes = self.num_weights // info.block_size * info.block_bytes if self.is_changed else source.bytes
        self._importance: npt.NDArray[np.float32] | None = None
        if not self.is_changed:
            return
        if not _has_floats(source):
            raise UnsupportedModelError(
                f"{file.path}: {source.name} is {source.format}, which has no weights to quantise"
            )
        if importance is not None and _core.takes_importance(format):
            # llama-imatrix leaves these out, unless it was asked for them.
            is_head = self.name in EMBEDDINGS or self.name == OUTPUT
            if not (is_head and self.name not in importance.values):
                matrices = self.num_weights // (self._k * (source.shape[-2] if len(source.shape) > 1 else 1))
                self._importance = importance.of(self.name, matrices, self._k)

    def chunks(self) -> Iterator[_Chunk]:
        """Pieces of the tensor in order; a piece gives its bytes when it is called."""
        if not self.is_changed:
            for start in range(0, self.bytes, _CHUNK_BYTES):
                yield self.name, self._copy(start, min(_CHUNK_BYTES, self.bytes - start))
            return
        rows = self.source.shape[-2] if len(self.source.shape) > 1 else 1
        step = max(1, _CHUNK_WEIGHTS // self._k)
        for matrix in range(self.num_weights // (rows * self._k)):
            weights = None if self._importance is None else self._importance[matrix]
            for row in range(0, rows, step):
                yield self.name, self._convert(matrix * rows + row, min(step, rows - row), weights)

    def _copy(self, start: int, count: int) -> Callable[[], Bytes]:
        return lambda: self._file.read(self.name, start, count)

    def _convert(self, row: int, rows: int, importance: npt.NDArray[np.float32] | None) -> Callable[[], Bytes]:
        source = format_info(self.source.format)
        row_bytes = self._k // source.block_size * source.block_bytes

        def convert() -> Bytes:
            raw = self._file.read(self.name, row * row_bytes, rows * row_bytes)
            if source.tail_bytes:  # one scale behind all rows
                raw = np.concatenate([raw, self._file.read(self.name, self.source.bytes - source.tail_bytes)])
            weights = _core.dequantize(raw, source.name).reshape(rows, self._k)
            return _core.quantize(weights, self.format, importance, what=self.name, first=row * self._k)

        return convert


def _has_floats(tensor: TensorInfo) -> bool:
    info = format_info(tensor.format)
    return tensor.format in ("F32", "F16", "BF16", "F64") or info.scales != "none"


def _in_order(chunks: Iterator[_Chunk], workers: int) -> Iterator[tuple[str, Bytes]]:
    """The results of the chunks in their order, computed by `workers` threads that run a little ahead."""
    waiting: deque[tuple[str, Future[Bytes]]] = deque()
    executor = ThreadPoolExecutor(workers, "quantize")
    try:
        for name, work in chunks:
            waiting.append((name, executor.submit(work)))
            if len(waiting) > workers + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for name, future in waiting:
            yield name, future.result()
    finally:
        # Also after Ctrl-C: what has begun takes some milliseconds more, the rest is dropped.
        executor.shutdown(wait=True, cancel_futures=True)

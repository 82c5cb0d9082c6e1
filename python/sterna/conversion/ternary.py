"""Ternary matrices of a repository, each as codes -1, 0, 1 by rows and one scale: packed, masters, or ternary floats.

Packed as in huggingface/transformers, integrations/bitnet.py (pack_weights); masters are quantised as BitLinear does on
every call (arXiv:2402.17764, equations 1 to 3; transformers' WeightQuant).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sterna.conversion.safetensors import FLOATS, StoredTensor

# Elements of a tensor that are in memory at once, in a few copies of up to 4 bytes each.
CHUNK_ELEMENTS = 1 << 19

# The smallest scale that transformers lets a matrix of masters have.
_SMALLEST_MEAN = np.float32(1e-5)
_CODES_PER_BYTE = 4

Codes = npt.NDArray[np.int8]


class TernaryMatrix(Protocol):
    """[n, k] = codes * scale."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def scale(self) -> float:
        """A float32, above 0 unless every code is 0."""

    def codes(self, begin: int, end: int) -> Codes:
        """Rows [begin, end), int8 [end - begin, k]."""


def row_chunks(rows: int, width: int, granule: int = 1) -> Iterator[tuple[int, int]]:
    """[begin, end) pairs that cover the rows; each but the last has a multiple of `granule` rows."""
    step = max(1, CHUNK_ELEMENTS // max(1, width * granule)) * granule
    for begin in range(0, rows, step):
        yield begin, min(rows, begin + step)


def read_scale(tensor: StoredTensor, divides: bool) -> float:
    """What the codes are multiplied by, from a `weight_scale`: itself, or (`divides`) its reciprocal."""
    if tensor.dtype not in FLOATS or tensor.elements != 1:
        tensor.fail(f"is {tensor.dtype} {list(tensor.shape)}, expected one floating-point number")
    value = float(tensor.all().reshape(()))
    if not (np.isfinite(value) and value > 0):
        tensor.fail(f"is {value}, expected a finite number above 0")
    scale = float(np.float32(1.0 / value if divides else value))
    if not (np.isfinite(scale) and scale > 0):
        tensor.fail(f"is {value}, whose reciprocal no float32 holds")
    return scale


@dataclass(frozen=True)
class PackedMatrix:
    """uint8 [n / 4, k]: bits 2q and 2q + 1 of row i hold row i + q * n / 4, as code + 1."""

    tensor: StoredTensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.tensor.shape
        return rows * _CODES_PER_BYTE, width

    def codes(self, begin: int, end: int) -> Codes:
        quarter = self.tensor.shape[0]
        parts = []
        while begin < end:
            q, row = divmod(begin, quarter)
            count = min(end - begin, quarter - row)
            stored = (self.tensor.rows(row, row + count) >> (2 * q)) & 3
            if (stored == 3).any():
                i, column = (int(at[0]) for at in np.nonzero(stored == 3))
                self.tensor.fail(f"row {begin + i}, column {column} has code 3, which is no ternary weight")
            parts.append(stored.astype(np.int8) - np.int8(1))
            begin += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class FloatMatrix:
    """Floats that become the nearest of -1, 0, 1 when multiplied by `inverse`."""

    tensor: StoredTensor
    scale: float
    inverse: np.float32

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.tensor.shape
        return rows, width

    def codes(self, begin: int, end: int) -> Codes:
        scaled = self.tensor.rows(begin, end) * self.inverse
        return np.clip(np.rint(scaled, out=scaled), -1, 1).astype(np.int8)


@dataclass(frozen=True)
class FloatSurvey:
    """What one pass over a matrix of floats finds: all of them are finite."""

    mean: np.float32  # of the magnitudes
    smallest: float  # magnitude but 0; infinity where all are 0
    largest: float

    @property
    def is_ternary(self) -> bool:
        """Whether all values are 0 or one magnitude."""
        return self.largest == 0 or self.smallest == self.largest


def survey(tensor: StoredTensor) -> FloatSurvey:
    """Reads a matrix of floats once. ModelFormatError for NaN or infinity."""
    total, smallest, largest = 0.0, np.inf, 0.0
    for begin, end in row_chunks(*tensor.shape):
        values = np.abs(tensor.rows(begin, end))
        check_finite(tensor, values, begin)
        total += float(values.sum(dtype=np.float64))
        largest = max(largest, float(values.max(initial=0.0)))
        smallest = min(smallest, float(values.min(where=values > 0, initial=np.inf)))
    return FloatSurvey(np.float32(total / max(1, tensor.elements)), smallest, largest)


def masters(tensor: StoredTensor, found: FloatSurvey) -> FloatMatrix:
    """Quantised by the mean magnitude; the arithmetic, a reciprocal and its reciprocal in float32, is transformers'."""
    inverse = np.float32(1) / max(found.mean, _SMALLEST_MEAN)
    return FloatMatrix(tensor, float(np.float32(1) / inverse), inverse)


def ternary_floats(tensor: StoredTensor, found: FloatSurvey, factor: float = 1.0) -> FloatMatrix:
    """Of floats that are ternary as they stand, times a factor of the whole layer."""
    magnitude = found.largest or 1.0
    with np.errstate(over="ignore"):
        scale, inverse = np.float32(magnitude * factor), np.float32(1) / np.float32(magnitude)
    if not np.isfinite(inverse):
        tensor.fail(f"its values are 0 and {magnitude:.6g}, whose reciprocal no float32 holds")
    return FloatMatrix(tensor, float(scale), inverse)


def check_finite(tensor: StoredTensor, values: npt.NDArray[np.float32], first_row: int) -> None:
    """ModelFormatError that says where NaN or infinity stands."""
    finite = np.isfinite(values)
    if not finite.all():
        place = [int(at[0]) for at in np.nonzero(~finite)]
        place[0] += first_row
        tensor.fail(f"holds {values[~finite][0]} at {place}")

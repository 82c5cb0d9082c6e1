"""What `sterna inspect` says about ternary and 1-bit tensors: their codes and scales, faults, and the order of I2_S."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import Gguf, TensorInfo, TernaryScan

_SCANNED = frozenset({"TQ1_0", "TQ2_0", "I2_S", "I2_S_ARM", "Q1_0", "Q2_0", "Q2_0_G128"})
_I2_S = frozenset({"I2_S", "I2_S_ARM"})

# The norm whose output a matrix multiplies: its weights say how large each column's input is.
_NORMS = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "attn_output": "attn_sub_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "ffn_down": "ffn_sub_norm",
}
_MOST_ROWS = 1024  # of a matrix that are looked at
_MOST_MATRICES = 64
_GROUP = 128  # both orders permute columns within such groups
_CERTAIN = 5.0  # standard deviations


@dataclass(frozen=True)
class Scanned:
    """One tensor, and what is in it."""

    tensor: TensorInfo
    scan: TernaryScan

    def fault(self) -> str | None:
        """Why a loader refuses the tensor, or why its weights may not be what was meant."""
        tensor, scan = self.tensor, self.scan
        if scan.bad_scales:
            return f"tensor {tensor.name} has {scan.bad_scales} scales that are NaN or infinite"
        if scan.first_fourth is not None and tensor.format in {*_I2_S, "TQ2_0"}:
            row, column = divmod(scan.first_fourth, tensor.shape[-1])
            meaning = "means nothing" if tensor.format in _I2_S else "no ternary quantiser writes and stands for 2"
            return (
                f"tensor {tensor.name} has the code 3, which {meaning}, {scan.codes[3]} times, first in row {row}, "
                f"column {column}"
            )
        if scan.unused_bytes:
            return f"tensor {tensor.name} has {scan.unused_bytes} bytes that no ternary quantiser writes"
        return None


def scan_tensors(file: Gguf) -> list[Scanned]:
    """All ternary and 1-bit tensors of a file, which are read whole. FileError."""
    tensors = [tensor for tensor in file.tensors if tensor.format in _SCANNED]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scans = list(pool.map(lambda tensor: file.scan_ternary(tensor.name), tensors))
    return [Scanned(tensor, scan) for tensor, scan in zip(tensors, scans, strict=True) if scan is not None]


def summarise(scanned: list[Scanned]) -> list[dict[str, Any]]:
    """A row for each format: its tensors, the share of each code in percent, how many tensors have one scale."""
    rows = []
    for name in dict.fromkeys(item.tensor.format for item in scanned):
        scans = [item.scan for item in scanned if item.tensor.format == name]
        totals = [sum(scan.codes[code] for scan in scans) for code in range(4)]
        count = sum(totals)
        row: dict[str, Any] = {"format": name, "tensors": len(scans)}
        for label, total in zip(("-1", "0", "1", "fourth"), totals, strict=True):
            row[label] = round(100 * total / count, 2) if count else 0.0
        row["one_scale"] = sum(scan.one_scale for scan in scans)
        row["scales"] = f"{min(s.least_scale for s in scans):.4g} to {max(s.largest_scale for s in scans):.4g}"
        rows.append(row)
    return rows


@dataclass(frozen=True)
class OrderSigns:
    """How well the columns of I2_S matrices go with the norms before them, if they are in one order or the other.

    Training leaves more nonzero weights in some columns than in others, which goes with the weight that the norm gives
    their input. The numbers are mean correlations; `noise` is how large they are by chance.
    """

    x86: float
    arm: float
    noise: float
    matrices: int

    @property
    def fits(self) -> str | None:
        """The order that the weights speak for; None where they say nothing."""
        better, worse = max(abs(self.x86), abs(self.arm)), min(abs(self.x86), abs(self.arm))
        if better < _CERTAIN * self.noise or better < 2 * worse:
            return None
        return "x86" if abs(self.x86) > abs(self.arm) else "arm"


def order_signs(file: Gguf) -> OrderSigns | None:
    """What the I2_S matrices of a file say about their order; None where there are none with a norm."""
    import numpy as np

    tensors = {tensor.name: tensor for tensor in file.tensors}
    sums, columns, matrices = {"x86": 0.0, "arm": 0.0}, 0, 0
    for name, tensor in tensors.items():
        parts = name.split(".")
        if tensor.format not in _I2_S or len(parts) != 4 or parts[2] not in _NORMS or matrices == _MOST_MATRICES:
            continue
        norm = tensors.get(f"blk.{parts[1]}.{_NORMS[parts[2]]}.weight")
        k = tensor.shape[-1]
        if norm is None or norm.format != "F32" or tuple(norm.shape) != (k,) or len(tensor.shape) != 2:
            continue
        norm_weights = np.abs(file.read(norm.name).view("<f4").astype(np.float64))
        if not np.isfinite(norm_weights).all():
            continue
        weights = _within_groups(norm_weights)
        counts = _count_nonzero(file.read(tensor.name), tensor.shape[0], k)
        for order, span in (("x86", 32), ("arm", 16)):
            # A byte has the columns span apart, the first in its upper bits.
            density = counts.reshape(4, k // (4 * span), span).transpose(1, 0, 2).reshape(k)
            sums[order] += _correlation(_within_groups(density), weights)
        columns += k
        matrices += 1
    if matrices == 0:
        return None
    noise = float(1 / np.sqrt(columns))
    return OrderSigns(sums["x86"] / matrices, sums["arm"] / matrices, noise, matrices)


def _count_nonzero(data: npt.NDArray[np.uint8], rows: int, k: int) -> npt.NDArray[np.float64]:
    """How many of the first rows are not zero, [4, k / 4]: by field of a byte, upper bits first, and byte."""
    import numpy as np

    codes = data[: rows * k // 4].reshape(rows, k // 4)[:_MOST_ROWS]
    return np.stack([((codes >> shift & 3) != 1).sum(axis=0) for shift in (6, 4, 2, 0)]).astype(np.float64)


def _within_groups(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Without what all columns of a group have in common, which no order changes."""
    groups = values.reshape(-1, _GROUP)
    centred: npt.NDArray[np.float64] = (groups - groups.mean(axis=1, keepdims=True)).reshape(-1)
    return centred


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    length = float((a @ a) * (b @ b)) ** 0.5
    return float(a @ b) / length if length > 0 else 0.0

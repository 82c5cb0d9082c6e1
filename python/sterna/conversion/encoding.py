"""The bytes of what a conversion writes: ternary formats from codes and a scale, floating-point tensors by chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.conversion.safetensors import StoredTensor
from sterna.conversion.ternary import Codes, check_finite
from sterna.errors import ModelFormatError, UnsupportedModelError

Bytes = npt.NDArray[np.uint8]

# Removed from ggml, and so no name of the gguf package: id 36 is that of microsoft/BitNet.
I2_S_ID = 36
_I2_S_GROUP = 128
_I2_S_TAIL_BYTES = 32


@dataclass(frozen=True)
class TernaryType:
    """A ternary format of GGUF: `id` of the tensor type, `file_type` of a file of it (llama.h, llama_ftype)."""

    name: str
    id: int
    file_type: int
    block: int  # elements that a row must have a multiple of
    block_bytes: int

    def tensor_bytes(self, rows: int, width: int) -> int:
        tail = _I2_S_TAIL_BYTES if self.id == I2_S_ID else 0
        return rows * width // self.block * self.block_bytes + tail


TERNARY_TYPES = {
    type_.name: type_
    for type_ in (
        TernaryType("TQ1_0", 34, 36, 256, 54),
        TernaryType("TQ2_0", 35, 37, 256, 66),
        TernaryType("I2_S", I2_S_ID, 40, _I2_S_GROUP, 32),
    )
}
# Of embedding and output head: ggml's ids.
HEAD_TYPES = {"F32": 0, "F16": 1, "BF16": 30, "Q8_0": 8}


def check_width(name: str, width: int, type_: TernaryType) -> None:
    """UnsupportedModelError where rows of that width do not fill blocks."""
    if width % type_.block:
        other = "" if width % _I2_S_GROUP else "; I2_S can hold it"
        raise UnsupportedModelError(
            f"{name}: rows of {width} weights do not fill blocks of {type_.block}, which {type_.name} has{other}"
        )


def stored_scale(tensor: StoredTensor, scale: float, type_: TernaryType) -> float:
    """The scale as the format holds it: float32 in I2_S, float16 in the others. ModelFormatError where it cannot."""
    if not (np.isfinite(scale) and scale > 0):
        tensor.fail(f"its scale is {scale:.6g} in float32")
    if type_.id == I2_S_ID:
        return scale
    with np.errstate(over="ignore"):
        rounded = float(np.float16(scale))
    if not np.isfinite(rounded) or rounded == 0:
        tensor.fail(f"its scale is {scale:.6g}, which the float16 of {type_.name} does not hold; I2_S does")
    return rounded


def encode_codes(codes: Codes, scale: float, type_: TernaryType) -> Bytes:
    """Whole rows. TQ1_0 and TQ2_0 as `gguf.quants` defines them, with the scale in every block."""
    if type_.id == I2_S_ID:
        # x86 order: byte j of a group holds codes j, j + 32, j + 64 and j + 96 from the high bits down.
        q = (codes.view(np.uint8) + np.uint8(1)).reshape(-1, 4, 32)
        packed: Bytes = np.bitwise_or.reduce(q << np.array([[6], [4], [2], [0]], np.uint8), axis=1)
        return packed
    import gguf
    from gguf.quants import quantize

    blocks: Bytes = quantize(codes.astype(np.float32), gguf.GGMLQuantizationType(type_.id))
    blocks = blocks.reshape(-1, type_.block_bytes)
    # A block of zeros would get scale 0; with one scale everywhere a tensor is recognised as one of a single scale.
    blocks[:, -2:] = np.array([scale], "<f2").view(np.uint8)
    return blocks


def scale_tail(scale: float) -> Bytes:
    """What follows the codes of a whole tensor in I2_S: the scale, and room up to 32 bytes."""
    return np.frombuffer(np.array([scale], "<f4").tobytes().ljust(_I2_S_TAIL_BYTES, b"\0"), np.uint8)


@dataclass
class Rounding:
    """How many values of a tensor a narrower type changed, and by how much at most."""

    changed: int = 0
    largest: float = 0.0


def head_bytes(rows: int, width: int, head: str) -> int:
    """Bytes of a floating-point or Q8_0 tensor."""
    if head == "Q8_0":
        return rows * width // 32 * 34
    return rows * width * (4 if head == "F32" else 2)


def encode_floats(
    tensor: StoredTensor, values: npt.NDArray[np.float32], first_row: int, head: str, rounding: Rounding
) -> Bytes:
    """Rows of a tensor in one of HEAD_TYPES; counts in `rounding` what that changes. ModelFormatError."""
    check_finite(tensor, values, first_row)
    if head == "F32":
        return np.ascontiguousarray(values, "<f4").view(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        stored, rounded = _rounded(values, head)
    if not np.isfinite(rounded).all():
        other = "F32" if head == "BF16" else "BF16"
        value = values[~np.isfinite(rounded)][0]
        tensor.fail(f"holds {value:.6g}, which {head} does not; use {other} for the head")
    difference = np.abs(values - rounded)
    rounding.changed += int(np.count_nonzero(difference))
    rounding.largest = max(rounding.largest, float(difference.max(initial=0.0)))
    return stored


def _rounded(values: npt.NDArray[np.float32], head: str) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """The bytes of a narrower type, and the values that they stand for."""
    if head == "F16":  # as gguf.quants, at a fraction of its time
        narrow = values.astype("<f2")
        return narrow.view(np.uint8), narrow.astype(np.float32)
    import gguf
    from gguf.quants import dequantize, quantize

    stored: Bytes = quantize(values, gguf.GGMLQuantizationType[head])
    return stored, dequantize(stored, gguf.GGMLQuantizationType[head])


def check_head(tensor: StoredTensor, head: str) -> None:
    """ModelFormatError where Q8_0 cannot hold the rows."""
    if head == "Q8_0" and tensor.shape[-1] % 32:
        raise ModelFormatError(f"{tensor.name}: rows of {tensor.shape[-1]} do not fill the blocks of 32 of Q8_0")

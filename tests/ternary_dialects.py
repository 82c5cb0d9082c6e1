"""Ternary and 1-bit tensors in every dialect, written and read in numpy from the descriptions alone, and files of them.

The decoders are the oracle for formats that the `gguf` package does not know: I2_S, Q2_0 and Q1_0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

# Type ids as in the tensor table of a file.
TYPES = {
    "F32": 0, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36, "I2_S_ARM": 36, "Q1_0": 41, "Q2_0": 42, "Q2_0_G128": 42,
}  # fmt: skip
# Dialects of tensors with three codes.
TERNARY = ["TQ1_0", "TQ2_0", "I2_S", "I2_S_ARM", "Q2_0", "Q2_0_G128"]
# Weights that share a scale in a block; I2_S has one scale for a tensor.
BLOCKS = {"TQ1_0": 256, "TQ2_0": 256, "Q1_0": 128, "Q2_0": 64, "Q2_0_G128": 128}
SPANS = {"I2_S": 32, "I2_S_ARM": 16}  # bytes that a group of 4 x as many weights takes


def encode(dialect: str, codes: Codes, scales: float | Floats, tail: bytes = bytes(28)) -> Bytes:
    """A tensor [n, k] of codes -1, 0, 1 (and 2, where the dialect has it), flat.

    scales: one number, or for dialects with blocks one for each, [n * k / block]. `tail`: what follows I2_S's scale.
    """
    if dialect in SPANS:
        span = SPANS[dialect]
        fields = (codes.reshape(-1, 4, span) + 1).astype(np.uint8)
        packed = fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]
        return np.concatenate([packed.reshape(-1), np.frombuffer(struct.pack("<f", float(scales)) + tail, np.uint8)])
    if dialect.startswith("TQ"):
        blocks = codes.reshape(-1, 256).astype(np.float32)
        filled = np.concatenate(
            [np.ones((len(blocks), 256), np.float32), blocks], axis=1
        )  # a block of all ones has scale 1
        data = gguf.quants.quantize(filled, GGMLQuantizationType[dialect])[
            :, -{"TQ1_0": 54, "TQ2_0": 66}[dialect] :
        ].copy()
        data[:, -2:] = _halves(scales, len(data))
        return data.reshape(-1)
    size = BLOCKS[dialect]
    blocks = codes.reshape(-1, size)
    if dialect == "Q1_0":
        assert set(np.unique(codes)) <= {-1, 1}
        packed = np.packbits(blocks > 0, axis=1, bitorder="little")
    else:
        fields = (blocks.reshape(len(blocks), -1, 4) + 1).astype(np.uint8)
        packed = fields[..., 0] | fields[..., 1] << 2 | fields[..., 2] << 4 | fields[..., 3] << 6
    return np.concatenate([_halves(scales, len(blocks)), packed], axis=1).reshape(-1)


def _halves(scales: float | Floats, count: int) -> Bytes:
    return np.broadcast_to(np.asarray(scales, np.float32), (count,)).astype("<f2").view(np.uint8).reshape(count, 2)


def decode(dialect: str, data: Bytes) -> Floats:
    """The weights of a whole tensor, flat."""
    data = np.ascontiguousarray(data).reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        if dialect in SPANS:
            (scale,) = struct.unpack("<f", data[-32:-28].tobytes())
            return np.float32(scale) * _i2_s_codes(data[:-32], SPANS[dialect])
        size = BLOCKS[dialect]
        blocks = data.reshape(-1, 2 + size // (8 if dialect == "Q1_0" else 4))
        scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        if dialect == "Q1_0":
            codes = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
        else:
            codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(blocks), -1) - np.float32(
                1
            )
        return (scale * codes.astype(np.float32)).reshape(-1)


def _i2_s_codes(data: Bytes, span: int) -> Floats:
    fields = data.reshape(-1, 1, span) >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    return fields.reshape(-1).astype(np.float32) - 1


@dataclass(frozen=True)
class RawTensor:
    """An entry of a tensor table with its bytes; `dims` as in the file, the row length first."""

    name: str
    dims: tuple[int, ...]
    type: int
    data: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.dims))


@dataclass(frozen=True)
class RawFile:
    """A GGUF file whose metadata are bytes, so that tensors of any type can be put beside them."""

    num_pairs: int
    pairs: bytes
    tensors: tuple[RawTensor, ...]

    @staticmethod
    def read(path: Path) -> RawFile:
        """A file of formats that the `gguf` package knows."""
        reader = gguf.GGUFReader(path)
        first = min(int(tensor.field.offset) for tensor in reader.tensors)
        raw = path.read_bytes()
        tensors = tuple(
            RawTensor(t.name, tuple(int(d) for d in t.shape), int(t.tensor_type), t.data.tobytes())
            for t in reader.tensors
        )
        return RawFile(struct.unpack_from("<Q", raw, 16)[0], raw[24:first], tensors)

    def with_matrices(self, change: Callable[[RawTensor], RawTensor]) -> RawFile:
        """With the matrices of the layers changed."""

        def is_matrix(tensor: RawTensor) -> bool:
            return tensor.name.startswith("blk.") and len(tensor.dims) >= 2 and "ffn_gate_inp" not in tensor.name

        return replace(self, tensors=tuple(change(t) if is_matrix(t) else t for t in self.tensors))

    def with_pairs(self, **changes: bytes) -> RawFile:
        """With some bytes of the metadata replaced by as many others."""
        pairs = self.pairs
        for old, new in changes.items():
            assert len(old) == len(new) and pairs.count(old.encode()) >= 1
            pairs = pairs.replace(old.encode(), new)
        return replace(self, pairs=pairs)

    def write(self, path: Path) -> Path:
        table, data = b"", b""
        for tensor in self.tensors:
            data += bytes(-len(data) % 32)
            name = tensor.name.encode()
            table += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.dims))
            table += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.type, len(data))
            data += tensor.data
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), self.num_pairs) + self.pairs + table
        path.write_bytes(head + bytes(-len(head) % 32) + data + bytes(-len(data) % 32))
        return path


def ternary_twin(source: RawFile, dialect: str, *, scale: float | None = None, signs_only: bool = False) -> RawFile:
    """The same model with its ternary matrices (TQ2_0, one scale each) in another dialect.

    scale: of every matrix, instead of its own. signs_only: zeros become ones.
    """

    def change(tensor: RawTensor) -> RawTensor:
        assert tensor.type == TYPES["TQ2_0"]
        raw = np.frombuffer(tensor.data, np.uint8)
        values = gguf.quants.dequantize(raw.reshape(-1, 66), GGMLQuantizationType.TQ2_0)
        own = np.abs(values).max()
        codes = np.rint(values / own).astype(np.int8)
        if signs_only:
            codes = np.where(codes == 0, np.int8(1), codes)
        data = encode(dialect, codes, float(own) if scale is None else scale)
        return replace(tensor, type=TYPES[dialect], data=data.tobytes())

    return source.with_matrices(change)

"""Adapters of random numbers for the tiny models, and models with an adapter worked into their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Pairs = dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def random_pairs(model: Path, seed: int, rank: int = 4, weights: tuple[str, ...] = ("attn_", "ffn_")) -> Pairs:
    """a [rank, k] and b [n, rank] for the matrices of all layers whose names begin so."""
    random = np.random.default_rng(seed)
    pairs: Pairs = {}
    for tensor in gguf.GGUFReader(model).tensors:
        layer_name = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if len(tensor.shape) != 2 or not layer_name.startswith(weights):
            continue
        k, n = (int(extent) for extent in tensor.shape)
        a = random.normal(0, k**-0.5, (rank, k)).astype(np.float32)
        pairs[tensor.name] = a, random.normal(0, 0.5, (n, rank)).astype(np.float32)
    return pairs


def write_adapter(path: Path, pairs: Pairs, *, alpha: float = 8.0, architecture: str = "llama", **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    fields = {"general.type": "adapter", "adapter.type": "lora", **keys}
    for key, value in fields.items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_merged(source: Path, target: Path, pairs: Pairs, factor: float) -> Path:
    """The model of `source`, F32, with w + factor * b a in place of each w."""
    reader = gguf.GGUFReader(source)
    data = bytearray(source.read_bytes())
    for tensor in reader.tensors:
        if tensor.name in pairs:
            a, b = pairs[tensor.name]
            merged = tensor.data.astype(np.float64) + factor * (b.astype(np.float64) @ a)
            raw = merged.astype(np.float32).tobytes()
            data[tensor.data_offset : tensor.data_offset + len(raw)] = raw
    target.write_bytes(data)
    return target

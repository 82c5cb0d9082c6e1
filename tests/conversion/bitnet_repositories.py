"""The repositories of tools/make_bitnet_repositories.py, made once a session, and their conversions."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import sterna
import ternary_dialects

DATA = Path(__file__).parent.parent / "data" / "convert"
LINEARS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_keep: list[tempfile.TemporaryDirectory[str]] = []


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "make_bitnet_repositories.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


maker: Any = _load()


@cache
def folder() -> Path:
    _keep.append(tempfile.TemporaryDirectory(prefix="sterna-convert-"))
    return Path(_keep[-1].name)


@cache
def repository(name: str) -> Path:
    """The repository of a kind; not to be changed."""
    path = folder() / name
    maker.write_repository(path, name)
    return path


def converted(name: str, type: str = "TQ2_0", head: str = "F32") -> Path:
    """The file that a kind becomes."""
    path = folder() / f"{name}.{type}.{head}.gguf"
    if not path.exists():
        sterna.convert(repository(name), path, type=type, head=head, masters=maker.KINDS[name].masters_argument)
    return path


@cache
def reference(name: str) -> dict[str, npt.NDArray[Any]]:
    """transformers' results; they belong to these very weights."""
    with np.load(DATA / f"{name}.npz") as file:
        found = dict(file)
    assert str(found["sha256"]) == maker.digest(name)
    return found


def raw_tensors(path: Path) -> dict[str, tuple[tuple[int, ...], npt.NDArray[np.uint8]]]:
    """Shape (rows first) and bytes of each tensor: `gguf` reads no files with I2_S."""
    file = sterna._core.Gguf(str(path))
    data = np.fromfile(path, np.uint8)
    found = {}
    for tensor in file.tensors:
        found[tensor.name] = (tuple(tensor.shape), data[tensor.offset : tensor.offset + tensor.bytes])
    return found


def matrix(path: Path, name: str, type: str) -> npt.NDArray[np.float32]:
    """The weights of a ternary tensor, [n, k], by decoders that the runtime does not share."""
    shape, data = raw_tensors(path)[name]
    if type == "I2_S":
        return ternary_dialects.decode("I2_S", data).reshape(shape)
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type]).reshape(shape)

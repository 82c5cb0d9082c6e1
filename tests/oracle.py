"""Reads the models of the oracle folder: tensors through the `gguf` package, and the logits of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
import numpy.typing as npt
import ternary_dialects
from reference import reference_dir
from sterna._core import Gguf

F32 = npt.NDArray[np.float32]
SUBSET = Path(__file__).parent / "data" / "oracle"

# Models in float32, which must give the logits of transformers. One a line, so that branches merge.
FLOAT_MODELS = [
    "arcee",
    "baichuan",
    "bloom",
    "chatglm",
    "codeshell",
    "cohere2",
    "command-r",
    "command-r-plus",
    "deepseek-v2",
    "deepseek-v2-lite",
    "deepseek-v3",
    "deepseek2-groups",
    "deepseek2-unsplit",
    "deepseek3-yarn",
    "dots1",
    "ernie",
    "ernie4_5-moe",
    "exaone",
    "exaone4",
    "exaone4-1.2b",
    "falcon-40b",
    "falcon-7b",
    "falcon-h1",
    "falcon-mamba",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4",
    "gemma4-small",
    "glm4",
    "glm4moe",
    "gpt-oss-q",
    "gpt-oss-small",
    "gpt-oss-trunc",
    "gpt2",
    "gptneo",
    "gptneox",
    "gptneox-sequential",
    "granite",
    "granite-hybrid",
    "granite-hybrid-small",
    "granitemoe",
    "grok1",
    "hunyuan",
    "hunyuan-moe",
    "internlm2",
    "jamba",
    "lfm2",
    "lfm2-small",
    "llama-256",
    "llama-yarn",
    "llama2",
    "llama3",
    "llama4",
    "llama4-small",
    "mamba",
    "mamba2",
    "mamba2-small",
    "minicpm",
    "minimax-m2",
    "ministral3",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "nemotron-h",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "openelm",
    "orion",
    "persimmon",
    "phi2",
    "phi3",
    "phi3-longrope",
    "phi3-small",
    "phi3-swa",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2moe-small",
    "qwen3",
    "qwen3-5",
    "qwen3moe",
    "qwen3moe-small",
    "qwen3next",
    "qwen3next-small",
    "seed-oss",
    "smollm3",
    "stablelm",
    "stablelm-12b",
    "starcoder",
    "starcoder2",
]


@dataclass(frozen=True)
class Case:
    """One sequence: token ids [n], and what the reference gives, [n, vocab_size]."""

    tokens: npt.NDArray[np.int32]
    logits: F32


def folder(name: str) -> Path:
    """Where an oracle lies: $STERNA_REFERENCE, or the subset, which has some of its own."""
    found = reference_dir("oracle") / name
    return found if found.exists() else SUBSET / name


def model_path(name: str) -> Path:
    """The GGUF file of an oracle, which may be missing where only a subset is at hand."""
    return folder(name) / "model.gguf"


def cases(name: str, kind: str = "logits") -> Iterator[Case]:
    """The sequences of an oracle; `kind` is "logits" or "logits_a8" (int8 activations, BitNet)."""
    with np.load(folder(name) / "reference.npz") as arrays:
        for i in range(sum(key.startswith("tokens_") for key in arrays)):
            yield Case(arrays[f"tokens_{i}"], arrays[f"{kind}_{i}"])


def tensors(path: Path) -> dict[str, F32]:
    """All tensors of a file as float32, by name without ".weight"."""
    if path.parent.name.endswith((".Q1_0", ".Q2_0")):  # gguf 0.19 knows the size of one and nothing of the other
        return _one_and_two_bit_tensors(path)
    result = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        result[tensor.name.removesuffix(".weight")] = values.astype(np.float32)
    return result


def _one_and_two_bit_tensors(path: Path) -> dict[str, F32]:
    file = Gguf(path)
    result = {}
    for tensor in file.tensors:
        data = file.read(tensor.name)
        values = data.view(np.float32) if tensor.format == "F32" else ternary_dialects.decode(tensor.format, data)
        result[tensor.name.removesuffix(".weight")] = values.reshape(tensor.shape)
    return result


def quantised_twin(source: Path, target: Path, format: str = "TQ2_0") -> None:
    """Writes the same model with the matrices of its layers in another format: not routers, norms and what has no whole blocks.

    A ternary format loses nothing where they are ternary.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType[format]
        is_matrix = len(tensor.shape) >= 2 and tensor.shape[0] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        if tensor.name.startswith("blk.") and is_matrix and not re.search("ffn_gate_inp|norm", tensor.name):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ternary_model(name: str, folder: Path) -> Path:
    """The TQ2_0 twin of an oracle: as it stands beside it, or made in `folder`."""
    path = model_path(f"{name}.TQ2_0")
    if not path.exists():
        path = folder / f"{name}.gguf"
        quantised_twin(model_path(name), path)
    return path


def relative_rms(pairs: list[tuple[F32, F32]]) -> float:
    """||y - reference|| / ||reference|| over all positions of all sequences; pairs of (y, reference)."""
    error = sum(float(np.sum((y.astype(np.float64) - reference) ** 2)) for y, reference in pairs)
    return float(np.sqrt(error / sum(float(np.sum(reference.astype(np.float64) ** 2)) for _, reference in pairs)))


class Record(Protocol):
    """pytest's record_property: what docs/models.md is made of."""

    def __call__(self, name: str, value: object, /) -> None: ...


def record_pairs(record: Record, pairs: list[tuple[F32, F32]], *, kv_dtype: str) -> None:
    """Notes the error of a model and its positions with another most likely token."""
    record("kv_dtype", kv_dtype)
    record("error", relative_rms(pairs))
    record("misses", differing_argmax(pairs))
    record("positions", sum(len(y) for y, _ in pairs))


def differing_argmax(pairs: list[tuple[F32, F32]]) -> int:
    """Positions whose most likely token is not the reference's."""
    return sum(int(np.sum(y.argmax(axis=1) != reference.argmax(axis=1))) for y, reference in pairs)

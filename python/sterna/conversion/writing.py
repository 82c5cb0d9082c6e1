"""The tensors of the GGUF file, planned from the repository before anything is written, then streamed by rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sterna.conversion.encoding import (
    HEAD_TYPES,
    I2_S_ID,
    Bytes,
    Rounding,
    TernaryType,
    check_head,
    check_width,
    encode_codes,
    encode_floats,
    head_bytes,
    scale_tail,
    stored_scale,
)
from sterna.conversion.families import LINEARS, Family
from sterna.conversion.hyperparameters import HyperParameters
from sterna.conversion.repository import Repository
from sterna.conversion.safetensors import FLOATS, StoredTensor
from sterna.conversion.scheme import Scheme
from sterna.conversion.ternary import row_chunks
from sterna.errors import UnsupportedModelError

_T = TypeVar("_T", bound=np.generic)

# What a repository may hold beside the weights: buffers that transformers computes itself.
_IGNORED = (".rotary_emb.inv_freq",)


@dataclass
class Losses:
    """What the formats of the output could not hold exactly."""

    scales: dict[str, float] = field(default_factory=dict)  # tensor -> relative change of its scale
    floats: dict[str, Rounding] = field(default_factory=dict)


class OutputTensor(Protocol):
    """One tensor of the output: announced first, then written in pieces."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """k first, as GGUF has it."""

    @property
    def format(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    def pieces(self, losses: Losses) -> Iterator[Bytes]: ...


@dataclass(frozen=True)
class LinearOutput:
    """A ternary matrix."""

    name: str
    repository: Repository
    scheme: Scheme
    module: str
    rows: int
    width: int
    type: TernaryType
    heads: int  # whose rows are reordered; 0: none

    @property
    def shape(self) -> tuple[int, ...]:
        return self.width, self.rows

    @property
    def format(self) -> int:
        return self.type.id

    @property
    def n_bytes(self) -> int:
        return self.type.tensor_bytes(self.rows, self.width)

    def pieces(self, losses: Losses) -> Iterator[Bytes]:
        weight = self.repository.tensor(f"{self.module}.weight")
        matrix = self.scheme.matrix(self.repository, self.module, (self.rows, self.width))
        scale = stored_scale(weight, matrix.scale, self.type)
        if scale != matrix.scale:
            losses.scales[self.name] = abs(scale / matrix.scale - 1)
        head_dim = self.rows // self.heads if self.heads else 1
        for begin, end in row_chunks(self.rows, self.width, head_dim):
            codes = matrix.codes(begin, end)
            yield encode_codes(interleave_halves(codes, head_dim) if self.heads else codes, scale, self.type)
        if self.type.id == I2_S_ID:
            yield scale_tail(scale)


@dataclass(frozen=True)
class FloatOutput:
    """A vector, or a matrix of embeddings, in floating point (or Q8_0)."""

    name: str
    tensor: StoredTensor
    type: str
    heads: int = 0  # of a vector whose elements are reordered as the rows of a matrix are

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.tensor.shape))

    @property
    def format(self) -> int:
        return HEAD_TYPES[self.type]

    @property
    def n_bytes(self) -> int:
        rows = self.tensor.elements // self.tensor.shape[-1]
        return head_bytes(rows, self.tensor.shape[-1], self.type)

    def pieces(self, losses: Losses) -> Iterator[Bytes]:
        rounding = Rounding()
        width = self.tensor.shape[1] if len(self.tensor.shape) > 1 else 1
        granule = self.tensor.shape[0] // self.heads if self.heads else 1
        for begin, end in row_chunks(self.tensor.shape[0], width, granule):
            values = self.tensor.rows(begin, end)
            if self.heads:
                values = interleave_halves(values, granule)
            yield encode_floats(self.tensor, values, begin, self.type, rounding)
        if rounding.changed:
            losses.floats[self.name] = rounding


@dataclass(frozen=True)
class MadeOutput:
    """A small tensor that is computed, not read."""

    name: str
    values: npt.NDArray[np.float32]
    format: int = HEAD_TYPES["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def n_bytes(self) -> int:
        return self.values.nbytes

    def pieces(self, losses: Losses) -> Iterator[Bytes]:
        yield np.ascontiguousarray(self.values, "<f4").view(np.uint8)


def interleave_halves(rows: npt.NDArray[_T], head_dim: int) -> npt.NDArray[_T]:
    """The halves of each head, which rope turns against each other in transformers, become neighbours."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def plan_outputs(
    repository: Repository, family: Family, sizes: HyperParameters, scheme: Scheme, type_: TernaryType, head: str
) -> list[OutputTensor]:
    """Every tensor of the output, names, types and shapes of all inputs checked.

    ModelFormatError for one that is missing or malformed, UnsupportedModelError for one that has no place in GGUF.
    """
    used: set[str] = set()

    def floats(name: str, source: str, shape: tuple[int, ...], form: str = "F32", heads: int = 0) -> FloatOutput:
        tensor = repository.tensor(source)
        used.add(source)
        if tensor.dtype not in FLOATS or tensor.shape != shape:
            tensor.fail(f"is {tensor.dtype} {list(tensor.shape)}, expected floating point {list(shape)}")
        return FloatOutput(f"{name}.weight" if not name.endswith(".bias") else name, tensor, form, heads)

    def matrix(name: str, source: str) -> FloatOutput:
        output = floats(name, source, (sizes.vocab_size, sizes.hidden_size), head)
        check_head(output.tensor, head)
        return output

    outputs: list[OutputTensor] = [matrix("token_embd", "model.embed_tokens.weight")]
    if sizes.rope_factors is not None:
        outputs.append(MadeOutput("rope_freqs.weight", sizes.rope_factors))
    for i in range(sizes.num_hidden_layers):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        for source, name in family.norms.items():
            outputs.append(floats(f"{block}.{name}", f"{layer}.{source}.weight", (sizes.norm_size(name),)))
        for source, name in LINEARS.items():
            module, (n, k) = f"{layer}.{source}", sizes.linear_shape(name)
            weight = scheme.weight(repository, module, (n, k))
            check_width(f"{weight.file.path}: tensor {weight.name}", k, type_)
            used |= {weight.name, f"{module}.weight_scale"}
            heads = {"attn_q": sizes.num_attention_heads, "attn_k": sizes.num_key_value_heads}.get(name, 0)
            heads = heads if family.interleaved else 0
            if scheme.norm_eps is not None:
                outputs.append(floats(f"{block}.{name}.input_norm", f"{module}.rms_norm.weight", (k,)))
            outputs.append(LinearOutput(f"{block}.{name}.weight", repository, scheme, module, n, k, type_, heads))
            if family.biases and f"{module}.bias" in repository.tensors:
                outputs.append(floats(f"{block}.{name}.bias", f"{module}.bias", (n,), heads=heads))
    outputs.append(floats("output_norm", "model.norm.weight", (sizes.hidden_size,)))
    if sizes.tie_word_embeddings:
        used.add("lm_head.weight")
    else:
        outputs.append(matrix("output", "lm_head.weight"))
    for name, tensor in repository.tensors.items():
        if name not in used and not name.endswith(_IGNORED):
            raise UnsupportedModelError(f"{tensor.file.path}: tensor {name} has no place in this architecture's GGUF")
    return outputs

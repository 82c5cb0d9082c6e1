"""What a model file works with: the Config read from GGUF metadata, the Weights of the file, the Batch; and `register`.

Metadata and the tensor table are untrusted: ranges and relations are checked here, once, before anything is computed
from them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, Self, TypeVar

from sterna import ops
from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.metadata import MAX_CONTEXT as MAX_CONTEXT
from sterna.metadata import MAX_EXTENT as MAX_EXTENT
from sterna.metadata import MAX_HEADS as MAX_HEADS
from sterna.metadata import MAX_LAYERS as MAX_LAYERS
from sterna.metadata import Metadata as Metadata
from sterna.metadata import ModelFile
from sterna.ops import Value
from sterna.rope_spec import RopeSpec as RopeSpec
from sterna.rope_spec import read_rope
from sterna.typed_reads import shown

# Keys that change what a decoder computes, with the values that do not: nothing is left out silently.
NEUTRAL_VALUES: dict[str, tuple[float, ...]] = {
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "rope.scaling.yarn_ext_factor": (1, -1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
}

# Those of weights as they are packed: a Q2_0 tensor with one scale and three codes is a Q2_0_TERNARY one.
TERNARY_FORMATS = frozenset(
    {
        "TQ1_0",
        "TQ2_0",
        "I2_S",
        "I2_S_ARM",
        "I2_S_TERNARY",
        "I2_S_ARM_TERNARY",
        "Q1_0_TERNARY",
        "Q2_0_TERNARY",
        "Q2_0_G128_TERNARY",
    }
)


@dataclass(frozen=True)
class DecoderConfig:
    """Hyper-parameters of a decoder, in the words of Hugging Face. A model file may subclass it for keys of its own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int  # behind them, to guess further tokens: not computed
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    value_head_dim: int
    intermediate_size: int
    rms_norm_eps: float  # 0: the norms are others (sterna.layer_norm)
    input_norm_eps: float  # of norms inside linear layers (sterna.bitlinear)
    max_position_embeddings: int
    sliding_window: int  # 0: none
    rope: RopeSpec

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**decoder_fields(metadata))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """What the usual tensors must look like, by name without layer, or with it where the layers differ."""
        hidden, intermediate = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        k = self.num_key_value_heads * self.head_dim
        v = self.num_key_value_heads * self.value_head_dim
        o = self.num_attention_heads * self.value_head_dim
        inputs = {"attn_q": hidden, "attn_k": hidden, "attn_v": hidden, "attn_output": o}
        inputs |= {"ffn_gate": hidden, "ffn_up": hidden, "ffn_down": intermediate}
        return {
            **{f"{name}.input_norm": (k,) for name, k in inputs.items()},
            "token_embd": (self.vocab_size, hidden),
            "output": (self.vocab_size, hidden),
            "output_norm": (hidden,),
            "output.bias": (self.vocab_size,),
            "output_norm.bias": (hidden,),
            "position_embd": (self.max_position_embeddings, hidden),
            "token_embd_norm": (hidden,),
            "token_embd_norm.bias": (hidden,),
            "attn_norm": (hidden,),
            "attn_norm.bias": (hidden,),
            "attn_norm_2": (hidden,),
            "attn_norm_2.bias": (hidden,),
            "attn_qkv": (q + k + v, hidden),
            "attn_qkv.bias": (q + k + v,),
            "attn_q": (q, hidden),
            "attn_k": (k, hidden),
            "attn_v": (v, hidden),
            "attn_output": (hidden, o),
            "attn_q.bias": (q,),
            "attn_k.bias": (k,),
            "attn_v.bias": (v,),
            "attn_output.bias": (hidden,),
            "attn_q_norm": (self.head_dim,),
            "attn_k_norm": (self.head_dim,),
            "attn_sub_norm": (o,),
            "post_attention_norm": (hidden,),
            "ffn_norm": (hidden,),
            "ffn_norm.bias": (hidden,),
            "ffn_gate": (intermediate, hidden),
            "ffn_up": (intermediate, hidden),
            "ffn_down": (hidden, intermediate),
            "ffn_gate.bias": (intermediate,),
            "ffn_up.bias": (intermediate,),
            "ffn_down.bias": (hidden,),
            "ffn_sub_norm": (intermediate,),
            "post_ffw_norm": (hidden,),
            "rope_freqs": (self.rope.rotary_dim // 2,),
            "rope_factors_short": (self.rope.rotary_dim // 2,),
            "rope_factors_long": (self.rope.rotary_dim // 2,),
        }


def decoder_fields(m: Metadata, handles: Collection[str] = (), *, hybrid: bool = False) -> dict[str, Any]:
    """GGUF metadata (keys as in its specification) -> the fields of DecoderConfig: the one place that maps them.

    `handles` names those of NEUTRAL_VALUES that the model file implements; others raise UnsupportedModelError when set.
    With "attention.layer_norm_epsilon" in it there are no RMS norms; with "attention.sliding_window" 0 stands for none;
    sizes in it may differ from layer to layer, and the field is the largest.
    In a `hybrid`, layers may have no heads or no feed-forward network; the sizes are those of the layers that have.
    """
    _refuse_unknown_variants(m, handles)
    least = 0 if hybrid else 1
    layers = m.integer("block_count", 1, MAX_LAYERS)
    nextn = m.integer("nextn_predict_layers", 0, layers - 1, 0)
    hidden = m.integer("embedding_length", 1, MAX_EXTENT)

    def size(name: str, high: int, default: int | None = None) -> int:
        if name in handles:
            return max(m.by_layer(name, layers, least, high, default))
        return m.per_layer(name, layers, least, high, default)

    heads = size("attention.head_count", MAX_HEADS)
    kv_heads = size("attention.head_count_kv", MAX_HEADS, heads)
    if (heads == 0) != (kv_heads == 0):
        m.fail("attention.head_count_kv", f"is {kv_heads}, attention.head_count {heads}")
    if not heads:
        return _fields_without_attention(m, layers, hidden)
    if heads % kv_heads:
        m.fail("attention.head_count", f"is {heads}, no multiple of attention.head_count_kv {kv_heads}")
    if not m.has("attention.key_length") and hidden % heads:
        m.fail("attention.head_count", f"is {heads}, does not divide embedding_length {hidden}")
    head_dim = m.integer("attention.key_length", 1, MAX_EXTENT, hidden // heads)
    context = m.integer("context_length", 1, MAX_CONTEXT)
    other_norms = "attention.layer_norm_epsilon" in handles
    window = "attention.sliding_window"
    return {
        "vocab_size": _vocab_size(m),
        "hidden_size": hidden,
        "num_hidden_layers": layers - nextn,
        "num_nextn_predict_layers": nextn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "value_head_dim": m.integer("attention.value_length", 1, MAX_EXTENT, head_dim),
        "intermediate_size": size("feed_forward_length", MAX_EXTENT),
        "rms_norm_eps": 0.0 if other_norms else m.number("attention.layer_norm_rms_epsilon", high=1.0),
        "input_norm_eps": m.number("input_norm_rms_epsilon", 1e-6, high=1.0),
        "max_position_embeddings": context,
        "sliding_window": m.integer(window, 0 if window in handles else 1, MAX_CONTEXT) if m.has(window) else 0,
        "rope": read_rope(m, head_dim, context),
    }


def _fields_without_attention(m: Metadata, layers: int, hidden: int) -> dict[str, Any]:
    return {
        "vocab_size": _vocab_size(m),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 0,
        "num_key_value_heads": 0,
        "head_dim": 0,
        "value_head_dim": 0,
        "intermediate_size": m.per_layer("feed_forward_length", layers, 0, MAX_EXTENT, 0),
        "rms_norm_eps": m.number("attention.layer_norm_rms_epsilon", high=1.0),
        "input_norm_eps": 1e-6,
        "max_position_embeddings": m.integer("context_length", 1, MAX_CONTEXT),
        "sliding_window": 0,
        "rope": RopeSpec(10000.0, 0),
    }


def _refuse_unknown_variants(m: Metadata, handles: Collection[str]) -> None:
    for name, neutral in NEUTRAL_VALUES.items():
        value = m.file.get(m.key(name), neutral[0])
        if name not in handles and not (isinstance(value, int | float) and value in neutral):
            raise UnsupportedModelError(
                f"{m.file.path}: {m.key(name)} is {shown(value)}: no model file implements this"
            )


def _vocab_size(m: Metadata) -> int:
    """Rows of the embedding; vocabulary and metadata must agree with it."""
    shape = m.shape("token_embd.weight")
    if shape is None or len(shape) != 2:
        problem = "is missing" if shape is None else f"has shape {list(shape)}"
        raise ModelFormatError(f"{m.file.path}: token_embd.weight: {problem}", m.file.path, "token_embd.weight")
    rows = shape[0]
    declared = m.integer("vocab_size", 1, MAX_EXTENT, rows)
    if declared != rows:
        m.fail("vocab_size", f"is {declared}, token_embd.weight has {rows} rows")
    if m.has("tokenizer.ggml.tokens"):
        tokens = m.file.array_length(m.key("tokenizer.ggml.tokens"))
        if tokens != rows:
            m.fail("tokenizer.ggml.tokens", f"has {tokens} elements, token_embd.weight {rows} rows")
    return rows


_LAYER = re.compile(r"blk\.(\d{1,9})\.(.+)", re.DOTALL)


class TensorTable:
    """The tensors of a file by GGUF name without ".weight", checked against the Config when first asked for."""

    def __init__(self, file: ModelFile, config: DecoderConfig) -> None:
        self._path = file.path
        self._expected = config.tensor_shapes()
        self._tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in file.tensors}
        self._values: dict[str, Value] = {}
        self._formats = {name: file.weight_format(tensor.name) for name, tensor in self._tensors.items()}
        linear_formats = set()
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        for name, tensor in self._tensors.items():
            layer = _LAYER.fullmatch(name)
            if layer and int(layer[1]) >= layers:
                self.fail(name, f"its layer is beyond block_count {layers}")
            if layer and len(tensor.shape) > 1:
                linear_formats.add(self._formats[name])
        self.all_ternary = bool(linear_formats) and linear_formats <= TERNARY_FORMATS

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def fail(self, name: str, problem: str) -> NoReturn:
        tensor = self._tensors.get(name)
        full = name if tensor is None else tensor.name
        at = None if tensor is None else tensor.entry_offset
        place = "" if at is None else f" at byte {at}"
        raise ModelFormatError(f"{self._path}: tensor {full}{place}: {problem}", self._path, full, at)

    def value(self, name: str) -> Value:
        """The tensor as a value of the Program being traced."""
        if name not in self._values:
            tensor = self._tensors.get(name)
            if tensor is None:
                self.fail(name, "is missing")
            layer = _LAYER.fullmatch(name)
            shape = tuple(tensor.shape)
            expected = self._expected.get(name, self._expected.get(layer[2] if layer else name, shape))
            if expected == (1, *shape):
                shape = expected  # some converters drop an extent of 1
            if shape != expected:
                self.fail(name, f"has shape {list(shape)}, expected {list(expected)}")
            if name.endswith("_norm") and len(shape) == 2:
                shape = (math.prod(shape),)  # one vector for each head
            self._values[name] = ops.weight(name, shape, self._formats[name])
        return self._values[name]


class Weights:
    """The tensors of the file, or of one layer, as a model file asks for them."""

    def __init__(self, table: TensorTable, prefix: str = "") -> None:
        self._table = table
        self._prefix = prefix

    def __getitem__(self, name: str) -> Value:
        """The tensor of that name; ModelFormatError when the file has none or its shape is not what the Config says."""
        return self._table.value(self._prefix + name)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._table

    def get(self, name: str) -> Value | None:
        """The tensor of that name, or None when the file has none."""
        return self[name] if self._prefix + name in self._table else None

    def first(self, *names: str) -> Value:
        """The first of `names` that the file has: ("output", "token_embd") where embeddings may be tied."""
        return self[next((name for name in names if name in self), names[0])]

    def part(self, name: str) -> Weights:
        """The tensors "{name}.*" under their names without that."""
        return Weights(self._table, f"{self._prefix}{name}.")

    def layer(self, index: int) -> Weights:
        """The tensors "blk.{index}.*" under their names without that."""
        return Weights(self._table, f"{self._prefix}blk.{index}.")


@dataclass(frozen=True)
class Batch:
    """The inputs of a run: int32 [num_tokens] each."""

    tokens: Value
    positions: Value

    @functools.cached_property
    def token_types(self) -> Value:
        """Which of several texts a token belongs to: 0, as there is one."""
        return ops.batch_input("token_types")


class ModelFunction(Protocol):
    """What a model file defines. Of a decoder: the logits of the rows that the batch asks for, [num_outputs,
    vocab_size]. Of an encoder: a vector for each sequence, [num_outputs, size]."""

    def __call__(self, config: Any, weights: Weights, batch: Batch, /) -> Value: ...


@dataclass(frozen=True)
class Architecture:
    """One registration: an architecture string, and the model file's functions for it."""

    name: str
    config: type[DecoderConfig]
    logits: ModelFunction | None  # None: an encoder
    encode: ModelFunction | None  # None: a decoder, whose vectors are made of what `unembed` reads
    when: Callable[[Metadata], bool] | None

    @property
    def module(self) -> str:
        """The model file's module."""
        function = self.logits or self.encode
        assert function is not None
        return function.__module__


architectures: list[Architecture] = []


_F = TypeVar("_F", bound=ModelFunction)


def register(
    *names: str,
    config: type[DecoderConfig] = DecoderConfig,
    when: Callable[[Metadata], bool] | None = None,
    encode: ModelFunction | None = None,
) -> Callable[[_F], _F]:
    """Declares the function of a model file for the values `names` of general.architecture.

    `when` tells files apart that share one (Mixtral says "llama"): it sees the metadata and says whether this function
    is meant. `encode` is that of a model with an encoder and a decoder, which reads what the encoder keeps.
    """

    def add(logits: _F) -> _F:
        architectures.extend(Architecture(name, config, logits, encode, when) for name in names)
        return logits

    return add


def register_encoder(
    *names: str, config: type[DecoderConfig], when: Callable[[Metadata], bool] | None = None
) -> Callable[[_F], _F]:
    """As `register`, for a function that gives a vector for each sequence."""

    def add(encode: _F) -> _F:
        architectures.extend(Architecture(name, config, None, encode, when) for name in names)
        return encode

    return add

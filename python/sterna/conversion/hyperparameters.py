"""config.json as GGUF metadata: sizes, norms and rope, each value checked; rope scaling of Llama 3 as a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sterna.conversion.families import Family
from sterna.conversion.repository import JsonFile
from sterna.metadata import MAX_CONTEXT, MAX_EXTENT, MAX_HEADS, MAX_LAYERS
from sterna.typed_reads import shown

Entry = tuple[str, Any, str]  # key, value, type of GGUF


@dataclass(frozen=True)
class HyperParameters:
    """The numbers that decide the shapes of tensors, in the words of Hugging Face, and the metadata of all of them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    entries: tuple[Entry, ...]
    rope_factors: npt.NDArray[np.float32] | None  # [head_dim / 2], what frequencies are divided by

    def linear_shape(self, name: str) -> tuple[int, int]:
        """[n, k] of a linear layer by its name in GGUF."""
        q, kv = (heads * self.head_dim for heads in (self.num_attention_heads, self.num_key_value_heads))
        shapes = {
            "attn_q": (q, self.hidden_size),
            "attn_k": (kv, self.hidden_size),
            "attn_v": (kv, self.hidden_size),
            "attn_output": (self.hidden_size, q),
            "ffn_gate": (self.intermediate_size, self.hidden_size),
            "ffn_up": (self.intermediate_size, self.hidden_size),
            "ffn_down": (self.hidden_size, self.intermediate_size),
        }
        return shapes[name]

    def norm_size(self, name: str) -> int:
        """Length of a norm's weight by its name in GGUF."""
        others = {
            "attn_sub_norm": self.num_attention_heads * self.head_dim,
            "ffn_sub_norm": self.intermediate_size,
            "attn_q_norm": self.head_dim,
            "attn_k_norm": self.head_dim,
        }
        return others.get(name, self.hidden_size)


def read_hyper_parameters(config: JsonFile, family: Family, architecture: str) -> HyperParameters:
    """ModelFormatError for a value that is missing or impossible, UnsupportedModelError for what GGUF cannot say."""
    layers = config.integer("num_hidden_layers", 1, MAX_LAYERS)
    hidden = config.integer("hidden_size", 1, MAX_EXTENT)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = config.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    if heads % kv_heads:
        config.fail("num_key_value_heads", f"is {kv_heads}, does not divide num_attention_heads {heads}")
    if not config.has("head_dim") and hidden % heads:
        config.fail("num_attention_heads", f"is {heads}, does not divide hidden_size {hidden}")
    head_dim = config.integer("head_dim", 2, MAX_EXTENT, hidden // heads)
    if head_dim % 2:
        config.fail("head_dim", f"is {head_dim}, expected an even number")
    context = config.integer("max_position_embeddings", 1, MAX_CONTEXT)
    feed_forward = config.integer("intermediate_size", 1, MAX_EXTENT)
    vocab_size = config.integer("vocab_size", 1, MAX_EXTENT)
    _refuse_windows(config)
    rope, factors = _rope(config, family, head_dim, context)
    numbers: list[Entry] = [
        ("block_count", layers, "uint32"),
        ("context_length", context, "uint32"),
        ("embedding_length", hidden, "uint32"),
        ("feed_forward_length", feed_forward, "uint32"),
        ("attention.head_count", heads, "uint32"),
        ("attention.head_count_kv", kv_heads, "uint32"),
        ("attention.key_length", head_dim, "uint32"),
        ("attention.value_length", head_dim, "uint32"),
        ("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", high=1.0), "float32"),
        ("vocab_size", vocab_size, "uint32"),
        ("rope.dimension_count", head_dim, "uint32"),
        *rope,
    ]
    return HyperParameters(
        vocab_size,
        hidden,
        feed_forward,
        layers,
        heads,
        kv_heads,
        head_dim,
        config.flag("tie_word_embeddings", False),
        tuple((f"{architecture}.{key}", value, type_) for key, value, type_ in numbers),
        factors,
    )


def _refuse_windows(config: JsonFile) -> None:
    if config.flag("use_sliding_window", config.has("sliding_window")):
        config.unsupported("sliding_window", "attention over a window is not converted")
    if any(kind != "full_attention" for kind in config.items("layer_types")):
        config.unsupported("layer_types", "only full_attention is converted")
    if config.number("partial_rotary_factor", 1.0) != 1.0:
        config.unsupported("partial_rotary_factor", "rope over a part of the head is not converted")


def _rope(
    config: JsonFile, family: Family, head_dim: int, context: int
) -> tuple[list[Entry], npt.NDArray[np.float32] | None]:
    """transformers, modeling_rope_utils.py; `rope_parameters` since version 5, two keys before."""
    parameters = config.object("rope_parameters")
    scaling = parameters if parameters is not None else config.object("rope_scaling")
    holder = parameters if parameters is not None and parameters.has("rope_theta") else config
    theta = holder.number("rope_theta", family.rope_theta)
    entries: list[Entry] = [("rope.freq_base", theta, "float32")]
    if scaling is None:
        return entries, None
    name = "rope_type" if scaling.has("rope_type") else "type"
    kind = scaling.text(name, "default")
    if kind not in family.rope_types:
        scaling.unsupported(name, f"known here are {', '.join(sorted(family.rope_types))}")
    if kind == "default":
        return entries, None
    factor = scaling.number("factor")
    if kind == "llama3":
        return entries, _llama3_factors(scaling, theta, head_dim, factor, context)
    entries += [("rope.scaling.type", kind, "string"), ("rope.scaling.factor", factor, "float32")]
    if kind == "yarn":
        entries += _yarn(scaling, factor, context)
    return entries, None


def _yarn(scaling: JsonFile, factor: float, context: int) -> list[Entry]:
    for name in ("mscale", "mscale_all_dim"):
        if scaling.has(name):
            scaling.unsupported(name, "YaRN with its own magnitude is not converted")
    original = scaling.integer("original_max_position_embeddings", 1, MAX_CONTEXT, context)
    magnitude = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    return [
        ("rope.scaling.original_context_length", original, "uint32"),
        ("rope.scaling.yarn_beta_fast", scaling.number("beta_fast", 32.0), "float32"),
        ("rope.scaling.yarn_beta_slow", scaling.number("beta_slow", 1.0), "float32"),
        # In GGUF it multiplies YaRN's own magnitude.
        ("rope.scaling.attn_factor", scaling.number("attention_factor", magnitude) / magnitude, "float32"),
    ]


def _llama3_factors(
    scaling: JsonFile, theta: float, head_dim: int, factor: float, context: int
) -> npt.NDArray[np.float32]:
    """Long wavelengths are stretched by `factor`, short ones stay, between them a blend of both frequencies."""
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if not low < high:
        scaling.fail("low_freq_factor", f"is {shown(low)}, expected less than high_freq_factor {high}")
    original = scaling.integer("original_max_position_embeddings", 1, MAX_CONTEXT, context)
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)

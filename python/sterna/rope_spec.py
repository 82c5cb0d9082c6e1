"""How positions turn queries and keys: the rope keys of GGUF metadata, and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sterna.errors import UnsupportedModelError
from sterna.metadata import MAX_CONTEXT, Metadata
from sterna.typed_reads import shown


@dataclass(frozen=True)
class RopeSpec:
    """How positions turn queries and keys (csrc/program/rope.h)."""

    theta: float
    rotary_dim: int
    scaling: Literal["none", "linear", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original_context: int = 0  # yarn, longrope: positions that the model was trained on before it was stretched
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: the ends of the ramp are whole pairs
    attention_factor: float = 1.0

    def unscaled(self, theta: float) -> RopeSpec:
        """The same dimensions with another base and without scaling (local layers of Gemma 3)."""
        return RopeSpec(theta, self.rotary_dim)


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by where positions are stretched by `factor`."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def read_rope(m: Metadata, head_dim: int, context: int) -> RopeSpec:
    """The rope keys. Llama 3's scaling is not among them: the converter turns it into the tensor rope_freqs.weight."""
    rotary_dim = m.integer("rope.dimension_count", 2, head_dim, head_dim)
    if rotary_dim % 2:
        m.fail("rope.dimension_count", f"is {rotary_dim}, expected an even number")
    plain = RopeSpec(m.number("rope.freq_base", 10000.0), rotary_dim)
    # Phi 3 has the tensors only.
    stretched = "linear" if m.shape("rope_factors_long.weight") is None else "longrope"
    scaling = m.text("rope.scaling.type", stretched)
    factor = m.number("rope.scaling.factor", m.number("rope.scale_linear", 1.0))
    if scaling == "none" or (scaling == "linear" and factor == 1.0):
        return plain
    if scaling == "linear":
        return replace(plain, scaling="linear", factor=factor)
    if scaling == "yarn":
        if plain.theta == 1.0:
            m.fail("rope.freq_base", "is 1, which yarn cannot scale")
        # YaRN's magnitude is 0.1 ln(factor) + 1 (arXiv:2309.00071, equation 22), over the same with the logarithm's
        # multiplier (transformers' mscale_all_dim) where there is one; the other keys multiply it, as in llama.cpp.
        multiplier = m.number("rope.scaling.yarn_log_multiplier", 0.0, zero=True)
        magnitude = yarn_magnitude(factor) / yarn_magnitude(factor, multiplier)
        return replace(
            plain,
            scaling="yarn",
            factor=factor,
            original_context=m.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT, context),
            beta_fast=m.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=m.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=magnitude
            * m.number("rope.scaling.yarn_attn_factor", 1.0)
            * m.number("rope.scaling.attn_factor", 1.0),
        )
    if scaling == "longrope":
        return replace(
            plain,
            scaling="longrope",
            original_context=m.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT),
            attention_factor=m.number("rope.scaling.attn_factor", 1.0),
        )
    raise UnsupportedModelError(f"{m.file.path}: {m.key('rope.scaling.type')} is {shown(scaling)}: not known")

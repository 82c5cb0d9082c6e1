"""What models with LayerNorm (arXiv:1607.06450) share: the epsilon, and that a file may leave out weight and bias."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from sterna import ops
from sterna.arch import DecoderConfig, Weights, decoder_fields
from sterna.metadata import Metadata


@dataclass(frozen=True)
class LayerNormConfig(DecoderConfig):
    """A decoder's Config with layer norms in the place of RMS norms."""

    layer_norm_eps: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**layer_norm_fields(metadata))


def layer_norm_fields(m: Metadata, handles: Collection[str] = ()) -> dict[str, Any]:
    """GGUF metadata -> the fields of LayerNormConfig; `handles` as in `decoder_fields`."""
    eps = "attention.layer_norm_epsilon"
    return decoder_fields(m, (*handles, eps)) | {"layer_norm_eps": m.number(eps, high=1.0)}


def layer_norm(config: LayerNormConfig, w: Weights, name: str, x: ops.Value) -> ops.Value:
    """Norm `name` of x, with the weight and the bias that the file has: none, a weight, or both. Same shape as x."""
    return ops.layer_norm(x, w.get(name), w.get(f"{name}.bias"), config.layer_norm_eps)

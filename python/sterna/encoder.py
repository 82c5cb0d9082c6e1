"""What encoders share: their Config, and how the rows of a sequence become one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from sterna.arch import DecoderConfig, decoder_fields
from sterna.errors import UnsupportedModelError
from sterna.metadata import Metadata
from sterna.ops import Pooling

# GGUF's pooling_type; 0 (no pooling) and 4 (a classifier's score) give no vector of the text.
_POOLINGS: dict[int, Pooling | None] = {0: None, 1: "mean", 2: "cls", 3: "last", 4: None}


@dataclass(frozen=True)
class EncoderConfig(DecoderConfig):
    """An encoder's Config: that of a decoder, and how rows are pooled."""

    layer_norm_eps: float  # that of RMS norms where the file has no other
    pooling: Pooling

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**encoder_fields(metadata))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and the norms behind each half of a block."""
        norms = ("attn_output_norm", "layer_output_norm")
        names = (*norms, *(f"{norm}.bias" for norm in norms))
        return super().tensor_shapes() | dict.fromkeys(names, (self.hidden_size,))


def encoder_fields(m: Metadata) -> dict[str, Any]:
    """GGUF metadata -> the fields of EncoderConfig."""
    kind = pooling_of(m, "mean")
    if kind is None:
        value = m.value("pooling_type")
        raise UnsupportedModelError(f"{m.file.path}: {m.key('pooling_type')} is {value}: it gives no vector of a text")
    eps = "attention.layer_norm_epsilon"
    fields = decoder_fields(m, ("attention.causal", eps) if m.has(eps) else ("attention.causal",))
    return fields | {"layer_norm_eps": m.number(eps, fields["rms_norm_eps"] or None, high=1.0), "pooling": kind}


def pooling_of(m: Metadata, default: Pooling) -> Pooling | None:
    """How the file wants rows pooled; None where its pooling gives no vector."""
    return _POOLINGS[m.integer("pooling_type", 0, 4)] if m.has("pooling_type") else default

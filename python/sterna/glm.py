"""What GLM models share: gate and up of the feed-forward network in one matrix."""

from __future__ import annotations

from typing import Self

from sterna.arch import DecoderConfig, Metadata, decoder_fields
from sterna.errors import UnsupportedModelError


class GlmConfig(DecoderConfig):
    """A decoder's Config; files of GLM-4V, whose positions have several parts, are refused."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        key = "rope.dimension_sections"
        if metadata.has(key):
            raise UnsupportedModelError(f"{metadata.file.path}: {metadata.key(key)}: no model file implements this")
        return cls(**decoder_fields(metadata))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder but for ffn_up: the gate's rows, then those of up."""
        return super().tensor_shapes() | {"ffn_up": (2 * self.intermediate_size, self.hidden_size)}

"""The Config of models whose feed-forward networks are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from sterna.arch import MAX_EXTENT, DecoderConfig, Metadata, decoder_fields

MAX_EXPERTS = 4096


@dataclass(frozen=True)
class MoeConfig(DecoderConfig):
    """A decoder's Config with the keys of experts; a model file asks `num_experts` whether there are any."""

    num_experts: int  # 0: none
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int  # 0: none

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and one matrix per expert."""
        experts, hidden = self.num_experts, self.hidden_size
        size, shared = self.moe_intermediate_size, self.shared_expert_intermediate_size
        return super().tensor_shapes() | {
            "ffn_gate_inp": (experts, hidden),
            "ffn_gate_exps": (experts, size, hidden),
            "ffn_up_exps": (experts, size, hidden),
            "ffn_down_exps": (experts, hidden, size),
            "ffn_gate_inp_shexp": (1, hidden),
            "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden),
            "ffn_down_shexp": (hidden, shared),
        }


def moe_fields(m: Metadata) -> dict[str, Any]:
    """GGUF metadata -> the fields of MoeConfig."""
    fields = decoder_fields(m, handles=("expert_count",))
    experts = m.integer("expert_count", 0, MAX_EXPERTS, 0)
    return fields | {
        "num_experts": experts,
        "num_experts_per_tok": m.integer("expert_used_count", 1, experts) if experts else 0,
        "moe_intermediate_size": m.integer("expert_feed_forward_length", 1, MAX_EXTENT, fields["intermediate_size"]),
        "shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length", 0, MAX_EXTENT, 0),
    }

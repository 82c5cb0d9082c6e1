"""OLMoE, MiniMax M2: norms over all heads of q and of k together, and a mixture of experts.

OLMoE weighs experts by the softmax over all of them; MiniMax M2 has sigmoid routes with a bias. Reference:
huggingface/transformers, models/olmoe/modeling_olmoe.py (arXiv:2409.02060) and models/minimax_m2/modeling_minimax_m2.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.moe import MoeConfig, experts, moe_fields
from sterna.projections import qkv_rows


class OlmoeConfig(MoeConfig):
    """Weights of experts do not sum up to 1; the norms of q and k have one weight for each of their features."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, norm_topk_prob=False))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a mixture, with norms over all heads."""
        q, k = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return super().tensor_shapes() | {"attn_q_norm": (q,), "attn_k_norm": (k,)}


class MiniMaxM2Config(OlmoeConfig):
    """Scores are sigmoids, and weights sum up to 1."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        return cls(**moe_fields(metadata, scoring_func="sigmoid"))


@register("minimax-m2", config=MiniMaxM2Config)
@register("olmoe", config=OlmoeConfig)
def logits(config: OlmoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + experts(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: OlmoeConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv_rows(config, w, x)
    q = ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps).heads(config.head_dim)
    k = ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps).heads(config.head_dim)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v.heads(config.value_head_dim), layer=layer))

"""OLMo 2 and 3: norms behind each block and none before it, norms of q and k over all heads, SwiGLU.

OLMo 3 has three layers with a sliding window and plain rope to one that sees all positions, whose rope is scaled.
Reference: huggingface/transformers, models/olmo2/modeling_olmo2.py and models/olmo3/modeling_olmo3.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv_rows

SLIDING_WINDOW_PATTERN = 4


@dataclass(frozen=True)
class Olmo2Config(DecoderConfig):
    """Which layers have the window: none where the file has none."""

    is_sliding: tuple[bool, ...]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = decoder_fields(metadata)
        period = SLIDING_WINDOW_PATTERN if fields["sliding_window"] else 1
        return cls(**fields, is_sliding=metadata.sliding_layers(fields["num_hidden_layers"], period))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder but for the norms of q and k."""
        q, k = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return super().tensor_shapes() | {"attn_q_norm": (q,), "attn_k_norm": (k,)}


@register("olmo2", config=Olmo2Config)
def logits(config: Olmo2Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + ops.rms_norm(attention(config, w, batch, x, i), w["post_attention_norm"], eps)
            x = x + ops.rms_norm(glu_mlp(config, w, x), w["post_ffw_norm"], eps)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: Olmo2Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    is_sliding = config.is_sliding[layer]
    rope = config.rope.unscaled(config.rope.theta) if is_sliding else config.rope
    q, k, v = qkv_rows(config, w, x)
    q = ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps).heads(config.head_dim)
    k = ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps).heads(config.head_dim)
    q, k = ops.rope(q, batch.positions, rope), ops.rope(k, batch.positions, rope)
    window = config.sliding_window if is_sliding else 0
    y = ops.attention(q, k, v.heads(config.value_head_dim), layer=layer, window=window)
    return linear(config, w, "attn_output", y)

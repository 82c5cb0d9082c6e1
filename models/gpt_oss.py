"""gpt-oss 20b and 120b: sinks in attention, a sliding window in every other layer, biases, experts with clamped SwiGLU.

Reference: huggingface/transformers, models/gpt_oss/modeling_gpt_oss.py (arXiv:2508.10925). Released models do not round
the ends of YaRN's ramp to whole pairs ("truncate": false). No key of GGUF says so, but their original context tells.
"""

from dataclasses import replace
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.moe import MoeConfig, experts, moe_fields

RELEASED_ORIGINAL_CONTEXT = 4096


class GptOssConfig(MoeConfig):
    """A mixture whose attention has sinks."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = moe_fields(metadata)
        rope = fields["rope"]
        fields["rope"] = replace(rope, truncate=rope.original_context != RELEASED_ORIGINAL_CONTEXT)
        return cls(**fields | {"sliding_window": metadata.required_window()})

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a mixture of experts, and one sink for each head."""
        return super().tensor_shapes() | {"attn_sinks": (self.num_attention_heads,)}


@register("gpt-oss", config=GptOssConfig)
def logits(config: GptOssConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            y = ops.rms_norm(x, w["post_attention_norm"], eps)
            x = x + experts(config, w, y, "clamped_swiglu")
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: GptOssConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; even layers see the last few positions only."""
    q = ops.linear(x, w["attn_q"], w["attn_q.bias"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"], w["attn_k.bias"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"], w["attn_v.bias"]).heads(config.value_head_dim)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    window = config.sliding_window if layer % 2 == 0 else 0
    y = ops.attention(q, k, v, layer=layer, window=window, sinks=w["attn_sinks"])
    return ops.linear(y, w["attn_output"], w["attn_output.bias"])

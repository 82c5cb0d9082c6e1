"""Qwen 1: as Qwen 2, with q, k and v in one matrix; the file's feed-forward length counts gate and up together.

Reference: Qwen/Qwen-7B, modeling_qwen.py; up to the length of its training, huggingface/transformers'
models/qwen2/modeling_qwen2.py computes the same.
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.projections import qkv


class QwenConfig(DecoderConfig):
    """A decoder's Config, with half of the file's feed-forward length."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = decoder_fields(metadata)
        length = fields["intermediate_size"]
        if length % 2:
            metadata.fail("feed_forward_length", f"is {length}, expected an even number")
        return cls(**fields | {"intermediate_size": length // 2})


@register("qwen", config=QwenConfig)
def logits(config: QwenConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: QwenConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))


def mlp(config: QwenConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network."""
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x))
    return linear(config, w, "ffn_down", y)

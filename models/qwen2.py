"""Qwen 1 to 2.5, Seed-OSS, EXAONE 3 and 3.5, openPangu-Embedded: as Llama, with biases in some, and rope on halves.

Reference: huggingface/transformers, models/qwen2/modeling_qwen2.py and models/seed_oss/modeling_seed_oss.py;
Qwen/Qwen-7B, modeling_qwen.py (up to the length of its training), and LGAI-EXAONE, modeling_exaone.py, compute the
same. Files of Seed-OSS call the norm of the feed-forward network post_attention_norm.
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


class QwenConfig(DecoderConfig):
    """That of Qwen 1, whose files count gate and up together in the feed-forward length."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        fields = decoder_fields(metadata)
        length = fields["intermediate_size"]
        if length % 2:
            metadata.fail("feed_forward_length", f"is {length}, expected an even number")
        return cls(**fields | {"intermediate_size": length // 2})


@register("qwen", config=QwenConfig)
@register("qwen2", "seed_oss", "exaone", "pangu-embedded")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w.first("ffn_norm", "post_attention_norm"), eps))
    x = ops.rms_norm(x, weights["output_norm"], eps)
    return ops.unembed(x, weights.first("output", "token_embd"), weights.get("output.bias"))


def attention(
    config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` hold the frequency scaling of Llama 3."""
    q, k, v = qkv(config, w, x)
    q, k = (ops.rope(y, batch.positions, config.rope, factors=factors) for y in (q, k))
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

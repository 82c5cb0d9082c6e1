"""Gemma 2: norms before and after each block, every other layer with a sliding window, capped scores and logits, GeGLU.

Reference: huggingface/transformers, models/gemma2/modeling_gemma2.py. GGUF files hold the weights of the norms plus
one.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv

SLIDING_WINDOW = 4096  # of files without the key


@dataclass(frozen=True)
class Gemma2Config(DecoderConfig):
    """A cap c turns a score s into c tanh(s / c)."""

    attn_logit_softcapping: float
    final_logit_softcapping: float
    attention_scale: float

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of gemma2; the scale of attention is not among them and follows llama.cpp."""
        fields = decoder_fields(metadata, ("attn_logit_softcapping", "final_logit_softcapping"))
        fields["sliding_window"] = fields["sliding_window"] or SLIDING_WINDOW
        # 1 / sqrt(query_pre_attn_scalar): the head's width in every model but the 27B, which has hidden_size / heads.
        is_27b = fields["num_hidden_layers"] == 46
        width = fields["hidden_size"] / fields["num_attention_heads"] if is_27b else fields["head_dim"]
        return cls(
            **fields,
            attn_logit_softcapping=metadata.number("attn_logit_softcapping", 50.0),
            final_logit_softcapping=metadata.number("final_logit_softcapping", 30.0),
            attention_scale=width**-0.5,
        )


@register("gemma2", config=Gemma2Config)
def logits(config: Gemma2Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps, cap = config.rms_norm_eps, config.final_logit_softcapping
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    y = ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))
    return ops.activation(y * (1 / cap), "tanh") * cap


def attention(config: Gemma2Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; every other layer sees all positions."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    y = ops.attention(
        q,
        k,
        v,
        layer=layer,
        scale=config.attention_scale,
        window=config.sliding_window if layer % 2 == 0 else 0,
        softcap=config.attn_logit_softcapping,
    )
    return linear(config, w, "attn_output", y)

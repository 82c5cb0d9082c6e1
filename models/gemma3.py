"""Gemma 3: norms before and after each block, q and k norms, five sliding-window layers to one global layer, GeGLU.

Reference: huggingface/transformers, models/gemma3/modeling_gemma3.py. GGUF files hold the weights of the norms plus
one.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, RopeSpec, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class Gemma3Config(DecoderConfig):
    """Sliding-window layers have a rope of their own: another base, no scaling."""

    rope_local: RopeSpec
    is_sliding: tuple[bool, ...]  # by layer; the others are global
    attention_scale: float
    final_logit_softcapping: float  # 0: none

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of gemma3; the scale of attention is not among them and follows llama.cpp."""
        fields = decoder_fields(metadata, handles=("final_logit_softcapping",))
        # 1 / sqrt(query_pre_attn_scalar): the head's width in every model but the 27B, which has hidden_size / heads.
        layers = fields["num_hidden_layers"]
        is_27b = layers == 62
        width = fields["hidden_size"] / fields["num_attention_heads"] if is_27b else fields["head_dim"]
        return cls(
            **fields,
            rope_local=fields["rope"].unscaled(metadata.number("rope.freq_base_swa", 10000.0)),
            is_sliding=metadata.sliding_layers(layers, 6) if fields["sliding_window"] else (False,) * layers,
            attention_scale=width**-0.5,
            final_logit_softcapping=metadata.number("final_logit_softcapping", 0.0, zero=True),
        )


@register("gemma3", config=Gemma3Config)
def logits(config: Gemma3Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    y = ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))
    cap = config.final_logit_softcapping
    return ops.activation(y * (1 / cap), "tanh") * cap if cap else y


def attention(config: Gemma3Config, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; every sixth layer sees all positions."""
    is_sliding = config.is_sliding[layer]
    rope = config.rope_local if is_sliding else config.rope
    q, k, v = qkv(config, w, x)
    q = ops.rope(ops.rms_norm(q, w["attn_q_norm"], config.rms_norm_eps), batch.positions, rope)
    k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], config.rms_norm_eps), batch.positions, rope)
    window = config.sliding_window if is_sliding else 0
    y = ops.attention(q, k, v, layer=layer, scale=config.attention_scale, window=window)
    return linear(config, w, "attn_output", y)

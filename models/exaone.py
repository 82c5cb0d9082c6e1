"""EXAONE 3 and 3.5, openPangu-Embedded: as Llama, with rope on halves; biases where the file has them.

Reference: LGAI-EXAONE, modeling_exaone.py; huggingface/transformers' models/llama/modeling_llama.py computes the same.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.projections import qkv


@register("exaone", "pangu-embedded")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            x = x + mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` hold the frequency scaling of Llama 3."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, factors=factors)
    k = ops.rope(k, batch.positions, config.rope, factors=factors)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))


def mlp(config: DecoderConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network."""
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x))
    return linear(config, w, "ffn_down", y)

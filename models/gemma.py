"""Gemma 1, CodeGemma: pre-norm decoder, few heads of keys and values, GeGLU, embeddings scaled by sqrt(hidden_size).

Reference: huggingface/transformers, models/gemma/modeling_gemma.py. GGUF files hold the weights of the norms plus one.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


@register("gemma")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; the 2B has one head of keys and values."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

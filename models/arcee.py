"""Arcee AFM: as Llama, with a squared ReLU in the place of SwiGLU.

Reference: huggingface/transformers, models/arcee/modeling_arcee.py; GGUF files have the rows of q and k permuted, so
that rope turns neighbours.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import mlp
from sterna.projections import qkv


@register("arcee")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "relu2")
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

"""Baichuan 1 and 2: as Llama; the 13B has a penalty on distance (ALiBi, arXiv:2108.12409) instead of rotary positions.

Reference: baichuan-inc, modeling_baichuan.py; huggingface/transformers' models/llama/modeling_llama.py computes the
same as the 7B. GGUF files have the rows of q and k permuted, so that rope turns neighbours.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv

LAYERS_OF_13B = 40
MAX_ALIBI_BIAS = 8.0


@register("baichuan")
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]; no key of the file says which kind."""
    q, k, v = qkv(config, w, x)
    if config.num_hidden_layers == LAYERS_OF_13B:
        y = ops.attention(q, k, v, layer=layer, max_alibi_bias=MAX_ALIBI_BIAS)
        return linear(config, w, "attn_output", y)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

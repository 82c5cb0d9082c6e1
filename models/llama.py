"""Llama 1 to 3, Mistral, SmolLM2, InternLM 2, XVERSE, ERNIE 4.5 (dense): pre-norm, grouped-query attention, SwiGLU.

Reference: huggingface/transformers, models/llama/modeling_llama.py; GGUF files have the rows of q and k permuted, so
that rope turns neighbours. Files with experts are Mixtral's.
"""

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.projections import qkv


def is_dense(metadata: Metadata) -> bool:
    """Whether a file that says "llama" is none of Mixtral's."""
    count = metadata.value("expert_count")
    return not isinstance(count, int) or count <= 0


@register("llama", "mistral", "ernie4_5", "internlm2", "xverse", config=DecoderConfig, when=is_dense)
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            x = x + glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` hold the frequency scaling of Llama 3."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved", factors=factors)
    k = ops.rope(k, batch.positions, config.rope, style="interleaved", factors=factors)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

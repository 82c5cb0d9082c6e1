"""Mixtral 8x7B and 8x22B, ERNIE 4.5 MoE: as Llama, with a mixture of SwiGLU experts (arXiv:2401.04088).

ERNIE has softmax routes with a bias, experts that all rows share, and dense first layers. Reference:
huggingface/transformers, models/mixtral/modeling_mixtral.py and models/ernie4_5_moe/modeling_ernie4_5_moe.py. GGUF
files of Mixtral say "llama" and have experts; the rows of q and k are permuted, so that rope turns neighbours.
"""

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp
from sterna.moe import MoeConfig, mixture
from sterna.projections import qkv


def has_experts(metadata: Metadata) -> bool:
    """Whether a file that says "llama" is a Mixtral."""
    count = metadata.value("expert_count")
    return isinstance(count, int) and count > 0


@register("ernie4_5-moe", config=MoeConfig)
@register("llama", "mistral", config=MoeConfig, when=has_experts)
def logits(config: MoeConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    factors = weights.get("rope_freqs")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), factors, i)
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            x = x + (mixture(config, w, y) if config.has_experts(i) else glu_mlp(config, w, y))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(
    config: MoeConfig, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, layer: int
) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]; `factors` divide the frequencies of rope."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved", factors=factors)
    k = ops.rope(k, batch.positions, config.rope, style="interleaved", factors=factors)
    y = ops.attention(q, k, v, layer=layer, window=config.sliding_window)
    return linear(config, w, "attn_output", y)

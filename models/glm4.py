"""GLM-4-0414, GLM-Z1: norms before and after each block, partial rotary on neighbours, gate and up in one matrix.

Reference: huggingface/transformers, models/glm4/modeling_glm4.py
"""

from sterna import ops
from sterna.arch import Batch, Weights, register
from sterna.bitlinear import linear
from sterna.glm import GlmConfig
from sterna.projections import qkv


@register("glm4", config=GlmConfig)
def logits(config: GlmConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: GlmConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))


def mlp(config: GlmConfig, w: Weights, x: ops.Value) -> ops.Value:
    """SwiGLU feed-forward network; ffn_up has the rows of the gate, then those of up."""
    gate, up = ops.split(linear(config, w, "ffn_up", x), config.intermediate_size, config.intermediate_size)
    return linear(config, w, "ffn_down", ops.glu(gate, up))

"""BitNet b1.58: as Llama, with a norm before the last linear layer of each block; ternary weights, int8 activations.

"bitnet" is 1bitLLM's 3B (SiLU), "bitnet-b1.58" (in old files "bitnet-25") Microsoft's 2B-4T (squared ReLU). Linear
layers of ternary files round their input to int8 with one scale per token (arXiv:2402.17764), those of float files not.
Reference: huggingface/transformers, models/bitnet/modeling_bitnet.py
"""

from typing import Literal

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Weights, register
from sterna.bitlinear import linear
from sterna.projections import qkv


@register("bitnet", config=DecoderConfig)
def logits(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    return decoder(config, weights, batch, "silu")


@register("bitnet-b1.58", "bitnet-25", config=DecoderConfig)
def logits_b158(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    return decoder(config, weights, batch, "relu2")


def decoder(config: DecoderConfig, weights: Weights, batch: Batch, activation: Literal["silu", "relu2"]) -> ops.Value:
    """Both models; `activation` is that of the feed-forward network."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + linear(config, w, "attn_output", ops.rms_norm(y, w["attn_sub_norm"], eps))
            y = ops.rms_norm(x, w["ffn_norm"], eps)
            y = ops.glu(linear(config, w, "ffn_gate", y), linear(config, w, "ffn_up", y), activation)
            x = x + linear(config, w, "ffn_down", ops.rms_norm(y, w["ffn_sub_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: DecoderConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size] -> [num_tokens, num_heads * head_dim]."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return ops.attention(q, k, v, layer=layer)

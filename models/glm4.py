"""ChatGLM 2 and 3, GLM-4-9B, GLM-4-0414, GLM-Z1: partial rotary on neighbours, gate and up in one matrix.

GLM-4-0414 and GLM-Z1 have norms behind each block as well. Reference: huggingface/transformers,
models/glm/modeling_glm.py and models/glm4/modeling_glm4.py
"""

from typing import Self

from sterna import ops
from sterna.arch import Batch, DecoderConfig, Metadata, Weights, decoder_fields, register
from sterna.bitlinear import linear
from sterna.errors import UnsupportedModelError
from sterna.mlp import merged_glu_mlp
from sterna.projections import qkv


class GlmConfig(DecoderConfig):
    """A decoder's Config; files of GLM-4V, whose positions have several parts, are refused."""

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        key = "rope.dimension_sections"
        if metadata.has(key):
            raise UnsupportedModelError(f"{metadata.file.path}: {metadata.key(key)}: no model file implements this")
        return cls(**decoder_fields(metadata))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder; gate and up lie in one matrix."""
        return super().tensor_shapes() | {"ffn_up": (2 * self.intermediate_size, self.hidden_size)}


@register("chatglm", config=GlmConfig)
def logits_glm(config: GlmConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            x = x + attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + merged_glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


@register("glm4", config=GlmConfig)
def logits_glm4(config: GlmConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = merged_glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps))
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
    return ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))


def attention(config: GlmConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Grouped-query self-attention of x, [num_tokens, hidden_size]."""
    q, k, v = qkv(config, w, x)
    q = ops.rope(q, batch.positions, config.rope, style="interleaved")
    k = ops.rope(k, batch.positions, config.rope, style="interleaved")
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

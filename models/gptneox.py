"""GPT-NeoX, Pythia: attention and feed-forward network side by side, each with a norm of its own; partial rotary.

Reference: huggingface/transformers, models/gpt_neox/modeling_gpt_neox.py; GGUF files have the rows of q, k and v in
that order and not by heads.
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import Batch, Metadata, Weights, register
from sterna.bitlinear import linear
from sterna.layer_norm import LayerNormConfig, layer_norm, layer_norm_fields
from sterna.mlp import mlp
from sterna.projections import qkv


@dataclass(frozen=True)
class GptNeoxConfig(LayerNormConfig):
    """Some models of the family (RedPajama-INCITE) have the blocks one behind the other."""

    use_parallel_residual: bool

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        parallel = metadata.flag("use_parallel_residual", True)
        return cls(**layer_norm_fields(metadata), use_parallel_residual=parallel)


@register("gptneox", config=GptNeoxConfig)
def logits(config: GptNeoxConfig, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            attended = x + attention(config, w, batch, layer_norm(config, w, "attn_norm", x), i)
            mlp_input = x if config.use_parallel_residual else attended
            x = attended + mlp(config, w, layer_norm(config, w, "ffn_norm", mlp_input), "gelu")
    return ops.unembed(layer_norm(config, weights, "output_norm", x), weights.first("output", "token_embd"))


def attention(config: GptNeoxConfig, w: Weights, batch: Batch, x: ops.Value, layer: int) -> ops.Value:
    """Multi-head self-attention of x, [num_tokens, hidden_size]; the first elements of each head are turned."""
    q, k, v = qkv(config, w, x)
    q, k = ops.rope(q, batch.positions, config.rope), ops.rope(k, batch.positions, config.rope)
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer))

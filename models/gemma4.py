"""Gemma 4 (text): as Gemma 3, with norms of v, per-layer embeddings, and last layers that share keys and values.

Sliding-window layers have smaller heads than global ones; a layer that shares takes the keys and values of the last one
of its kind that has its own. Reference: huggingface/transformers, models/gemma4/modeling_gemma4.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import (
    MAX_EXTENT,
    MAX_HEADS,
    Batch,
    DecoderConfig,
    Metadata,
    RopeSpec,
    Weights,
    decoder_fields,
    register,
)
from sterna.bitlinear import linear
from sterna.mlp import glu_mlp


@dataclass(frozen=True)
class Layer:
    """What sets a layer apart from the others."""

    is_sliding: bool
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    kv_layer: int  # whose keys and values it sees


@dataclass(frozen=True)
class Gemma4Config(DecoderConfig):
    """Sizes by layer, and the ropes of both kinds of layers."""

    layers: tuple[Layer, ...]
    rope_sliding: RopeSpec
    hidden_size_per_layer_input: int  # 0: no per-layer embeddings
    final_logit_softcapping: float  # 0: none

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads and checks the keys. ModelFormatError, UnsupportedModelError."""
        sizes = ("attention.head_count_kv", "feed_forward_length")
        fields = decoder_fields(metadata, (*sizes, "attention.shared_kv_layers", "final_logit_softcapping"))
        count, head_dim = fields["num_hidden_layers"], fields["head_dim"]
        fields["sliding_window"] = metadata.required_window()
        sliding = metadata.sliding_layers(count)
        small = metadata.integer("attention.key_length_swa", 1, MAX_EXTENT, head_dim)
        kv_heads = metadata.by_layer("attention.head_count_kv", count, 1, MAX_HEADS, fields["num_attention_heads"])
        intermediate = metadata.by_layer("feed_forward_length", count, 1, MAX_EXTENT)
        own = count - metadata.integer("attention.shared_kv_layers", 0, count - 1, 0)
        layers = []
        for i, is_sliding in enumerate(sliding):
            stored = [j for j in range(min(i + 1, own)) if sliding[j] == is_sliding]
            if not stored:
                metadata.fail("attention.shared_kv_layers", f"is {count - own}: layer {i} finds nothing to share")
            size = small if is_sliding else head_dim
            layers.append(Layer(is_sliding, size, kv_heads[i], intermediate[i], stored[-1]))
        rotary_dim = metadata.integer("rope.dimension_count_swa", 2, small, small)
        return cls(
            **fields,
            layers=tuple(layers),
            rope_sliding=RopeSpec(metadata.number("rope.freq_base_swa", 10000.0), rotary_dim),
            hidden_size_per_layer_input=metadata.integer("embedding_length_per_layer_input", 0, MAX_EXTENT, 0),
            final_logit_softcapping=metadata.number("final_logit_softcapping", 0.0, zero=True),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and those that layers differ in by whole name."""
        hidden, size = self.hidden_size, self.hidden_size_per_layer_input
        shapes = super().tensor_shapes() | {
            "per_layer_token_embd": (self.vocab_size, size * self.num_hidden_layers),
            "per_layer_model_proj": (size * self.num_hidden_layers, hidden),
            "per_layer_proj_norm": (size,),
            "inp_gate": (size, hidden),
            "proj": (hidden, size),
            "post_norm": (hidden,),
            "layer_output_scale": (1,),
        }
        for i, layer in enumerate(self.layers):
            q, kv = self.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
            up = (layer.intermediate_size, hidden)
            own: dict[str, tuple[int, ...]] = {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
            own |= {"attn_output": (hidden, q), "ffn_gate": up, "ffn_up": up, "ffn_down": up[::-1]}
            own |= {"attn_q_norm": (layer.head_dim,), "attn_k_norm": (layer.head_dim,)}
            shapes |= {f"blk.{i}.{name}": shape for name, shape in own.items()}
        return shapes


@register("gemma4", config=Gemma4Config)
def logits(config: Gemma4Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the rows the batch asks for, [num_outputs, vocab_size]."""
    eps = config.rms_norm_eps
    x = ops.embed(batch.tokens, weights["token_embd"]) * config.hidden_size**0.5
    inputs = per_layer_inputs(config, weights, batch, x) if config.hidden_size_per_layer_input else []
    for i in range(config.num_hidden_layers):
        with ops.scope(f"layers.{i}"):
            w = weights.layer(i)
            y = attention(config, w, batch, ops.rms_norm(x, w["attn_norm"], eps), weights.get("rope_freqs"), i)
            x = x + ops.rms_norm(y, w["post_attention_norm"], eps)
            y = glu_mlp(config, w, ops.rms_norm(x, w["ffn_norm"], eps), "gelu_tanh")
            x = x + ops.rms_norm(y, w["post_ffw_norm"], eps)
            if inputs:
                gate = ops.activation(ops.linear(x, w["inp_gate"]), "gelu_tanh")
                x = x + ops.rms_norm(ops.linear(gate * inputs[i], w["proj"]), w["post_norm"], eps)
            scale = w.get("layer_output_scale")
            x = x if scale is None else x * scale
    y = ops.unembed(ops.rms_norm(x, weights["output_norm"], eps), weights.first("output", "token_embd"))
    cap = config.final_logit_softcapping
    return ops.activation(y * (1 / cap), "tanh") * cap if cap else y


def per_layer_inputs(config: Gemma4Config, weights: Weights, batch: Batch, x: ops.Value) -> list[ops.Value]:
    """For each layer, [num_tokens, hidden_size_per_layer_input]: an embedding of its own, and a projection of x."""
    size = config.hidden_size_per_layer_input
    own = ops.embed(batch.tokens, weights["per_layer_token_embd"]) * size**0.5
    projected = (ops.linear(x, weights["per_layer_model_proj"]) * config.hidden_size**-0.5).heads(size)
    projected = ops.rms_norm(projected, weights["per_layer_proj_norm"], config.rms_norm_eps)
    both = (ops.reshape(projected, own.size) + own) * 2**-0.5
    return ops.split(both, *[size] * config.num_hidden_layers)


def attention(
    config: Gemma4Config, w: Weights, batch: Batch, x: ops.Value, factors: ops.Value | None, index: int
) -> ops.Value:
    """Attention of x, [num_tokens, hidden_size]; `factors` keep all but a part of global heads from turning."""
    layer, eps = config.layers[index], config.rms_norm_eps
    rope, factors = (config.rope_sliding, None) if layer.is_sliding else (config.rope, factors)
    q = ops.rms_norm(ops.linear(x, w["attn_q"]).heads(layer.head_dim), w["attn_q_norm"], eps)
    q = ops.rope(q, batch.positions, rope, factors=factors)
    k = v = None
    if layer.kv_layer == index:
        k = ops.linear(x, w["attn_k"]).heads(layer.head_dim)
        v_weight = w.get("attn_v")  # the largest models have none: v is k
        v = ops.rms_norm(k if v_weight is None else ops.linear(x, v_weight).heads(layer.head_dim), None, eps)
        k = ops.rope(ops.rms_norm(k, w["attn_k_norm"], eps), batch.positions, rope, factors=factors)
    window = config.sliding_window if layer.is_sliding else 0
    return linear(config, w, "attn_output", ops.attention(q, k, v, layer=layer.kv_layer, scale=1.0, window=window))

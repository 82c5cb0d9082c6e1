"""T5, T5 1.1 and FLAN-T5: encoder and decoder with relative biases instead of positions, RMS norms, scores unscaled.

Reference: huggingface/transformers, models/t5/modeling_t5.py
"""

from dataclasses import dataclass
from typing import Self

from sterna import ops
from sterna.arch import MAX_LAYERS, Batch, DecoderConfig, Metadata, Weights, decoder_fields, register

_BIAS = "blk.0.attn_rel_b"


@dataclass(frozen=True)
class T5Config(DecoderConfig):
    """`num_hidden_layers` are the encoder's; all layers of a side share one relative bias."""

    num_decoder_layers: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Reads the keys of t5; the largest distance is not among them and 128 in every model."""
        fields = decoder_fields(metadata)
        return cls(
            **fields,
            num_decoder_layers=metadata.integer("decoder_block_count", 1, MAX_LAYERS, fields["num_hidden_layers"]),
            relative_attention_num_buckets=metadata.integer("attention.relative_buckets_count", 4, 127, 32),
            relative_attention_max_distance=128,
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a layer of either side, by their full names."""
        hidden, intermediate = self.hidden_size, self.intermediate_size
        qk, v = self.num_attention_heads * self.head_dim, self.num_attention_heads * self.value_head_dim
        shapes: dict[str, tuple[int, ...]] = {"ffn_gate": (intermediate, hidden), "ffn_up": (intermediate, hidden)}
        shapes |= {"ffn_down": (hidden, intermediate)}
        shapes |= dict.fromkeys(("attn_norm", "cross_attn_norm", "ffn_norm"), (hidden,))
        for kind in ("attn", "cross_attn"):
            shapes |= {f"{kind}_q": (qk, hidden), f"{kind}_k": (qk, hidden), f"{kind}_v": (v, hidden)}
            shapes |= {f"{kind}_o": (hidden, v)}
        sides = {"enc": self.num_hidden_layers, "dec": self.num_decoder_layers}
        biases = (self.relative_attention_num_buckets, self.num_attention_heads)
        return {
            "token_embd": (self.vocab_size, hidden),
            "output": (self.vocab_size, hidden),
            **{f"{side}.output_norm": (hidden,) for side in sides},
            **{f"{side}.{_BIAS}": biases for side in sides},
            **{
                f"{side}.blk.{i}.{name}": shape
                for side, layers in sides.items()
                for i in range(layers)
                for name, shape in shapes.items()
            },
        }


def encode(config: T5Config, weights: Weights, batch: Batch) -> ops.Value:
    """The mean of the encoder's rows, [num_outputs, hidden_size]; keeps what the decoder's cross attention reads."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    side = weights.part("enc")
    for i in range(config.num_hidden_layers):
        with ops.scope(f"encoder/layers.{i}"):
            w = side.layer(i)
            normed = ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps)
            x = x + self_attention(config, w, normed, side[_BIAS], 2 * config.num_decoder_layers + i, causal=False)
            x = x + mlp(w, ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps))
    x = ops.rms_norm(x, side["output_norm"], config.rms_norm_eps)
    for i in range(config.num_decoder_layers):
        with ops.scope(f"memory/layers.{i}"):
            w = weights.part("dec").layer(i)
            k = ops.linear(x, w["cross_attn_k"]).heads(config.head_dim)
            v = ops.linear(x, w["cross_attn_v"]).heads(config.value_head_dim)
            ops.store_kv(k, v, layer=config.num_decoder_layers + i)
    return ops.pool(x, "mean")


@register("t5", config=T5Config, encode=encode)
def logits(config: T5Config, weights: Weights, batch: Batch) -> ops.Value:
    """Logits of the decoder's rows that the batch asks for, [num_outputs, vocab_size]."""
    x = ops.embed(batch.tokens, weights["token_embd"])
    side = weights.part("dec")
    for i in range(config.num_decoder_layers):
        with ops.scope(f"layers.{i}"):
            w = side.layer(i)
            normed = ops.rms_norm(x, w["attn_norm"], config.rms_norm_eps)
            x = x + self_attention(config, w, normed, side[_BIAS], i, causal=True)
            normed = ops.rms_norm(x, w["cross_attn_norm"], config.rms_norm_eps)
            x = x + cross_attention(config, w, normed, config.num_decoder_layers + i)
            x = x + mlp(w, ops.rms_norm(x, w["ffn_norm"], config.rms_norm_eps))
    x = ops.rms_norm(x, side["output_norm"], config.rms_norm_eps)
    if "output" not in weights:  # a tied head reads scaled rows
        x = x * config.hidden_size**-0.5
    return ops.unembed(x, weights.first("output", "token_embd"))


def self_attention(
    config: T5Config, w: Weights, x: ops.Value, bias: ops.Value, layer: int, *, causal: bool
) -> ops.Value:
    """Self-attention of x, [num_tokens, hidden_size]."""
    q = ops.linear(x, w["attn_q"]).heads(config.head_dim)
    k = ops.linear(x, w["attn_k"]).heads(config.head_dim)
    v = ops.linear(x, w["attn_v"]).heads(config.value_head_dim)
    relative = ops.RelativeBias(bias, config.relative_attention_max_distance)
    y = ops.attention(q, k, v, layer=layer, scale=1.0, causal=causal, relative_bias=relative)
    return ops.linear(y, w["attn_o"])


def cross_attention(config: T5Config, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Attention of the decoder's x, [num_tokens, hidden_size], to the rows that the encoder kept."""
    q = ops.linear(x, w["cross_attn_q"]).heads(config.head_dim)
    return ops.linear(ops.attention(q, None, None, layer=layer, scale=1.0, causal=False), w["cross_attn_o"])


def mlp(w: Weights, x: ops.Value) -> ops.Value:
    """Feed-forward network: GeGLU, in the first T5 ReLU."""
    up = ops.linear(x, w["ffn_up"])
    gated = "ffn_gate" in w
    y = ops.glu(ops.linear(x, w["ffn_gate"]), up, "gelu_tanh") if gated else ops.activation(up, "relu")
    return ops.linear(y, w["ffn_down"])

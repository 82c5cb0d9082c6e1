"""The feed-forward networks of a block that most model files have."""

from __future__ import annotations

from sterna import ops
from sterna.arch import DecoderConfig, Weights
from sterna.bitlinear import linear


def glu_mlp(config: DecoderConfig, w: Weights, x: ops.Value, activation: ops.Gate = "silu") -> ops.Value:
    """down(activation(gate x) * up x), [num_tokens, hidden_size] -> the same: SwiGLU (arXiv:2002.05202).

    GeGLU with "gelu_tanh" or "gelu".
    """
    y = ops.glu(linear(config, w, "ffn_gate", x), linear(config, w, "ffn_up", x), activation)
    return linear(config, w, "ffn_down", y)


def merged_glu_mlp(config: DecoderConfig, w: Weights, x: ops.Value, activation: ops.Gate = "silu") -> ops.Value:
    """The same where one matrix, ffn_up, has the rows of the gate, then those of up."""
    size = config.intermediate_size
    gate, up = ops.split(linear(config, w, "ffn_up", x), size, size)
    return linear(config, w, "ffn_down", ops.glu(gate, up, activation))


def mlp(config: DecoderConfig, w: Weights, x: ops.Value, activation: ops.Activation) -> ops.Value:
    """down(activation(up x)), [num_tokens, hidden_size] -> the same."""
    y = ops.activation(linear(config, w, "ffn_up", x), activation)
    return linear(config, w, "ffn_down", y)

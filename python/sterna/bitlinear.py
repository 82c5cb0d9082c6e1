"""The linear layers of a block, which may be ternary: BitLinear of BitNet b1.58 (arXiv:2402.17764) in any architecture.

Reference: huggingface/transformers, integrations/bitnet.py
"""

from __future__ import annotations

from sterna import ops
from sterna.arch import DecoderConfig, Weights


def linear(config: DecoderConfig, w: Weights, name: str, x: ops.Value) -> ops.Value:
    """Layer `name` of a block: x [num_tokens, k] -> [num_tokens, n], with a bias where the file has one.

    Where every matrix of the file is ternary, x is rounded to int8 with one scale per token, after a norm of the
    layer's own where the file has one (`use_rms_norm`). Some files keep the scale of ternary weights beside them.
    """
    norm = w.get(f"{name}.input_norm")
    if norm is not None:
        x = ops.rms_norm(x, norm, config.input_norm_eps)
    weight, bias, scale = w[name], w.get(f"{name}.bias"), w.get(f"{name}.scale")
    if scale is None:
        return ops.linear(x, weight, bias)
    y = ops.linear_alone(x, weight) * scale
    return ops.adapt(y if bias is None else y + bias, x, weight)

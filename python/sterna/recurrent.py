"""Recurrent layers that several model files share: their Configs, and the mixers of Mamba, first and second version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sterna import ops
from sterna.arch import DecoderConfig, Weights
from sterna.metadata import MAX_EXTENT, MAX_HEADS, Metadata

MAX_KERNEL = 64  # tokens that a convolution sees


@dataclass(frozen=True)
class RecurrentConfig(DecoderConfig):
    """A decoder's Config, some of whose layers keep a state in place of keys and values, or all of them."""

    recurrent_layers: tuple[bool, ...]  # by layer
    conv_kernel: int
    ssm_intermediate_size: int
    state_size: int
    num_ssm_heads: int
    num_ssm_groups: int

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and of the mixers of Mamba-2."""
        inner, groups, heads = self.ssm_intermediate_size, self.num_ssm_groups, self.num_ssm_heads
        channels = inner + 2 * groups * self.state_size
        return super().tensor_shapes() | {
            "ssm_in": (inner + channels + heads, self.hidden_size),
            "ssm_conv1d": (channels, self.conv_kernel),
            "ssm_conv1d.bias": (channels,),
            "ssm_dt.bias": (heads,),
            "ssm_a": (heads, 1),
            "ssm_d": (heads, 1),
            "ssm_norm": (groups, inner // groups),
            "ssm_out": (self.hidden_size, inner),
        }


def recurrent_fields(m: Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """GGUF metadata -> the fields of RecurrentConfig: those of a decoder, read as a hybrid, and its own.

    A layer without K/V heads is recurrent, or one that the file names as such.
    """
    layers = fields["num_hidden_layers"] + fields["num_nextn_predict_layers"]
    kinds = _recurrent_layers(m, layers, fields["num_attention_heads"])
    return fields | {
        "recurrent_layers": kinds[: fields["num_hidden_layers"]],
        "conv_kernel": m.integer("ssm.conv_kernel", 2, MAX_KERNEL),
        "ssm_intermediate_size": m.integer("ssm.inner_size", 1, MAX_EXTENT),
        "state_size": m.integer("ssm.state_size", 1, MAX_EXTENT),
        "num_ssm_heads": m.integer("ssm.time_step_rank", 1, MAX_EXTENT),
        "num_ssm_groups": m.integer("ssm.group_count", 1, MAX_HEADS, 1),
    }


def _recurrent_layers(m: Metadata, layers: int, heads: int) -> tuple[bool, ...]:
    if m.has("attention.recurrent_layers"):
        return tuple(m.layer_booleans("attention.recurrent_layers", layers))
    if m.has("full_attention_interval"):
        interval = m.integer("full_attention_interval", 1, layers)
        return tuple((i + 1) % interval != 0 for i in range(layers))
    return tuple(count == 0 for count in m.by_layer("attention.head_count_kv", layers, 0, MAX_HEADS, heads))


def headed_fields(m: Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """The same, where the inner size is made of heads, which share groups: Mamba-2 and delta nets."""
    fields = recurrent_fields(m, fields)
    inner, heads, groups = (fields[name] for name in ("ssm_intermediate_size", "num_ssm_heads", "num_ssm_groups"))
    if inner % heads:
        m.fail("ssm.time_step_rank", f"is {heads}, does not divide ssm.inner_size {inner}")
    if heads % groups:
        m.fail("ssm.group_count", f"is {groups}, does not divide ssm.time_step_rank {heads}")
    return fields


def mamba2_mixer(config: RecurrentConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """State space of Mamba-2 over x, [num_tokens, hidden_size] -> the same (arXiv:2405.21060).

    Reference: huggingface/transformers, models/mamba2/modeling_mamba2.py; "ssm_a" is -exp(A_log).
    """
    inner, heads, n = config.ssm_intermediate_size, config.num_ssm_heads, config.state_size
    shared = config.num_ssm_groups * n
    z, x, dt = ops.split(ops.linear(x, w["ssm_in"]), inner, inner + 2 * shared, heads)
    x = ops.activation(ops.short_conv(x, w["ssm_conv1d"], w.get("ssm_conv1d.bias"), layer=layer), "silu")
    x, b, c = ops.split(x, inner, shared, shared)
    dt = ops.activation(dt + w["ssm_dt.bias"], "softplus")
    x = x.heads(inner // heads)
    y = ops.glu(z, ops.ssm_scan(x, dt, b.heads(n), c.heads(n), w["ssm_a"], w["ssm_d"], layer=layer))
    if (norm := w.get("ssm_norm")) is not None:  # of each group alone
        normed = ops.rms_norm(y.heads(inner // config.num_ssm_groups), None, config.rms_norm_eps)
        y = ops.reshape(normed, inner) * norm
    return ops.linear(y, w["ssm_out"])


@dataclass(frozen=True)
class MambaConfig(RecurrentConfig):
    """Mamba's first version: every channel has a decay of its own; `num_ssm_heads` is the rank of the time step."""

    mixer_rms_eps: float  # of the norms of time step, B and C; 0: there are none

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of a decoder, and of the mixer."""
        inner, rank, n = self.ssm_intermediate_size, self.num_ssm_heads, self.state_size
        return super().tensor_shapes() | {
            "ssm_in": (2 * inner, self.hidden_size),
            "ssm_conv1d": (inner, self.conv_kernel),
            "ssm_conv1d.bias": (inner,),
            "ssm_x": (rank + 2 * n, inner),
            "ssm_dt": (inner, rank),
            "ssm_dt.bias": (inner,),
            "ssm_dt_norm": (rank,),
            "ssm_b_norm": (n,),
            "ssm_c_norm": (n,),
            "ssm_a": (inner, n),
            "ssm_d": (inner,),
        }


def mamba_mixer(config: MambaConfig, w: Weights, x: ops.Value, layer: int) -> ops.Value:
    """Selective state space over x, [num_tokens, hidden_size] -> the same (arXiv:2312.00752).

    Reference: huggingface/transformers, models/mamba/modeling_mamba.py; "ssm_a" is -exp(A_log).
    """
    inner, rank, n = config.ssm_intermediate_size, config.num_ssm_heads, config.state_size
    x, z = ops.split(ops.linear(x, w["ssm_in"]), inner, inner)
    x = ops.activation(ops.short_conv(x, w["ssm_conv1d"], w.get("ssm_conv1d.bias"), layer=layer), "silu")
    dt, b, c = ops.split(ops.linear(x, w["ssm_x"]), rank, n, n)
    if eps := config.mixer_rms_eps:
        dt = ops.rms_norm(dt, w.get("ssm_dt_norm"), eps)
        b, c = ops.rms_norm(b, w.get("ssm_b_norm"), eps), ops.rms_norm(c, w.get("ssm_c_norm"), eps)
    dt = ops.activation(ops.linear(dt, w["ssm_dt"], w["ssm_dt.bias"]), "softplus")
    y = ops.ssm_scan(x.heads(1), dt, b.heads(n), c.heads(n), w["ssm_a"], w["ssm_d"], layer=layer)
    return ops.linear(ops.glu(z, y), w["ssm_out"])

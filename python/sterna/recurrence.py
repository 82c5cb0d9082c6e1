"""The recurrent ops in numpy, token by token: the oracle of tests, as `interpreter` has the others.

Each takes the state before the first row, float32, and gives its result and the state after the last. Sums are float64,
rounded once; the state is float32 after every token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sterna._core import ProgramNode
from sterna.errors import ArgumentError

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def short_conv(x: F32, w: F32, bias: F32 | None, state: F32) -> tuple[F32, F32]:
    """Causal convolution: x [rows, channels], w [channels, kernel], state [kernel - 1, channels]: the last inputs."""
    kernel = w.shape[1]
    inputs = np.concatenate([state, x])
    out: Array = np.zeros(x.shape) if bias is None else np.broadcast_to(bias, x.shape).astype(np.float64)
    for tap in range(kernel):
        out += inputs[tap : tap + len(x)] * w[:, tap].astype(np.float64)
    return out.astype(np.float32), inputs[len(inputs) - (kernel - 1) :]


def ssm_scan(x: F32, dt: F32, b: F32, c: F32, a: F32, d: F32, state: F32) -> tuple[F32, F32]:
    """Selective state space: x [rows, heads, head_dim] -> [rows, heads * head_dim]; state [heads, head_dim, n].

    dt [rows, heads], b and c [rows, groups, n], a [heads] or [heads, n], d [heads].
    """
    rows, heads, _ = x.shape
    group = heads // b.shape[1]
    out = np.zeros(x.shape)
    rates = a.astype(np.float64).reshape(heads, 1, -1)
    for row in range(rows):
        step = dt[row].astype(np.float64)[:, None]
        keys, queries = (np.repeat(each[row].astype(np.float64), group, axis=0)[:, None] for each in (b, c))
        new = state * np.exp(step[..., None] * rates) + (step * x[row])[..., None] * keys
        out[row] = (new * queries).sum(axis=-1) + d.reshape(heads, 1).astype(np.float64) * x[row]
        state = new.astype(np.float32)
    return out.reshape(rows, -1).astype(np.float32), state


def delta_rule(q: F32, k: F32, v: F32, g: F32, beta: F32, state: F32) -> tuple[F32, F32]:
    """Gated delta rule: v [rows, heads, value_dim] -> [rows, heads * value_dim]; state [heads, key_dim, value_dim].

    q and k [rows, key_heads, key_dim], g and beta [rows, heads].
    """
    rows, heads, _ = v.shape
    group = heads // k.shape[1]
    out = np.zeros(v.shape)
    for row in range(rows):
        keys, queries = (np.repeat(each[row].astype(np.float64), group, axis=0)[..., None] for each in (k, q))
        decayed = state * np.exp(g[row].astype(np.float64))[:, None, None]
        delta = (v[row] - (decayed * keys).sum(axis=1)) * beta[row].astype(np.float64)[:, None]
        new = decayed + keys * delta[:, None]
        out[row] = (new * queries).sum(axis=1)
        state = new.astype(np.float32)
    return out.reshape(rows, -1).astype(np.float32), state


def _run(node: ProgramNode, operands: dict[str, list[Array]], state: F32) -> tuple[F32, F32]:
    given = {role: values[0] for role, values in operands.items()}
    if node.op == "short_conv":
        return short_conv(given["x"], given["w"], given.get("bias"), state)
    if node.op == "ssm_scan":
        return ssm_scan(**given, state=state)
    return delta_rule(**given, state=state)


def _state_shape(node: ProgramNode, operands: dict[str, list[Array]]) -> tuple[int, ...]:
    def shape(role: str) -> tuple[int, ...]:
        return operands[role][0].shape

    if node.op == "short_conv":
        return shape("w")[1] - 1, shape("w")[0]
    if node.op == "ssm_scan":
        return *shape("x")[1:], shape("b")[2]
    return shape("v")[1], shape("k")[2], shape("v")[2]


class States:
    """The states of one sequence, by layer and op: those that its last batch began and ended with."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], dict[int, F32]] = {}  # after so many tokens

    def run(self, node: ProgramNode, operands: dict[str, list[Array]], positions: Array) -> F32:
        """The node's result on rows at these positions, which go on from the state before them. ArgumentError."""
        key = (int(node.attributes["layer"]), node.op)
        begin = int(positions[0])
        if not np.array_equal(positions, begin + np.arange(len(positions))):
            raise ArgumentError(f"interpreter: {node.name} computes positions one after the other")
        kept = self._kept.get(key, {})
        if begin > 0 and begin not in kept:
            raise ArgumentError(f"interpreter: {node.name} has no state after {begin} tokens")
        before = kept[begin] if begin else np.zeros(_state_shape(node, operands), np.float32)
        out, state = _run(node, operands, before)
        self._kept[key] = {begin: before, begin + len(positions): state}
        return out

"""A Program run node by node in numpy: the oracle of tests, and the reference that `sterna diff` compares plans with.

Every op computes in float64 and rounds its result to float32 once. What a plan rounds on purpose is rounded here alike:
activations to int8 codes, K and V to the type of the cache. A folded op rounds where its parts did, so that a fused
Program gives the same bits as the unfused one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sterna._core import Program, ProgramNode, rope_inverse_frequencies
from sterna.errors import ArgumentError
from sterna.memory import KvDtype
from sterna.recurrence import States
from sterna.relative_bias import relative_buckets
from sterna.rounding import (
    F32,
    HALVES,
    Array,
    activation_group,
    q8_0_ties,
    quantize_activations,
    round_to_cache,
    round_to_halves,
    rounding_ties,
)


def matmul(x: F32, w: F32, group: int = 0) -> Array:
    """x w^T in float64, with x rounded in groups: x [rows, k], w [n, k] -> [rows, n]."""
    wide: Array = x.astype(np.float64)
    if group == HALVES:
        wide = round_to_halves(x)
    elif group:
        codes, scales = quantize_activations(x, group)
        # A code times a scale is exact in float64.
        wide = codes * np.repeat(scales.astype(np.float64), group, axis=1)
    product: Array = wide @ w.astype(np.float64).T
    return product


def rms_norm(x: F32, w: F32 | None, eps: float) -> F32:
    """(x * 1 / sqrt(mean(x^2) + eps)) * w over the last dimension.

    The root and both products round to float32: in ternary models x is often a small integer times a scale, so that
    codes lie exactly between two integers, and these roundings decide which one they become.
    """
    wide = x.astype(np.float64)
    inverse: F32 = (1 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)).astype(np.float32)
    return x * inverse if w is None else x * inverse * w


def layer_norm(x: F32, w: F32 | None, bias: F32 | None, eps: float) -> F32:
    """(x - mean(x)) / sqrt(var(x) + eps) * w + bias over the last dimension; w and bias for each head, or for all."""
    wide: Array = x.astype(np.float64)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    shape = x.shape[1:] if w is not None and w.size == x[0].size else x.shape[-1:]
    wide = wide if w is None else wide * w.reshape(shape)
    y: F32 = (wide if bias is None else wide + bias.reshape(shape)).astype(np.float32)
    return y


def rope(x: F32, positions: Array, frequencies: F32, style: str, magnitude: float) -> F32:
    """x [rows, heads, head_dim] turned by position * frequency; the angle is rounded to float32."""
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)[:, None, :]
    cos = (np.cos(angles) * magnitude).astype(np.float32).astype(np.float64)
    sin = (np.sin(angles) * magnitude).astype(np.float32).astype(np.float64)
    half = frequencies.size
    first, second = slice(0, half), slice(half, 2 * half)
    if style == "interleaved":
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    out = x.copy()
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def activate(x: F32, kind: str) -> F32:
    """silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh or softplus of x."""
    wide = x.astype(np.float64)
    if kind in ("silu", "sigmoid"):
        small = np.exp(-np.abs(wide))  # never overflows
        share = np.where(wide < 0, small, 1) / (1 + small)
        wide = wide * share if kind == "silu" else share
    elif kind == "gelu_tanh":
        wide = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    elif kind == "gelu":
        wide = 0.5 * wide * np.vectorize(math.erfc, otypes=[np.float64])(-wide / np.sqrt(2))
    elif kind == "tanh":
        wide = np.tanh(wide)
    elif kind == "relu":
        wide = np.maximum(wide, 0)
    elif kind == "softplus":
        wide = np.logaddexp(0, wide)
    elif kind == "relu2":
        wide = np.maximum(wide, 0) ** 2
    else:
        raise ArgumentError(f"interpreter: no activation {kind}")
    return wide.astype(np.float32)


def gated(gate: F32, up: F32, kind: str) -> F32:
    """activation(gate) * up, or what a kind of its own makes of both."""
    if kind != "clamped_swiglu":
        return activate(gate, kind) * up
    g = np.minimum(gate, 7).astype(np.float64)
    u = np.clip(up, -7, 7).astype(np.float64)
    product: F32 = (g / (1 + np.exp(-1.702 * g)) * (u + 1)).astype(np.float32)
    return product


def alibi_slopes(heads: int, max_bias: float) -> Array:
    """Slopes of ALiBi by head: powers of 2^(-max_bias / heads); odd half powers where heads are no power of two."""
    power = 1 << heads.bit_length() - 1
    exponents = [*range(1, power + 1), *(i + 0.5 for i in range(heads - power))]
    return np.exp2(-max_bias / power * np.asarray(exponents))


def attend(
    q: F32,
    keys: F32,
    values: F32,
    positions: Array,
    attributes: dict[str, Any],
    sinks: F32 | None = None,
    relative_bias: F32 | None = None,
) -> F32:
    """Rows of q [rows, heads, head_dim] over keys and values [length, kv_heads, ...]; key j stands at position j."""
    rows, heads, _ = q.shape
    group = heads // keys.shape[1]
    wide = np.repeat(keys.astype(np.float64), group, axis=1)
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), wide) * attributes["scale"]
    if attributes["temperature.scale"] > 0:
        steps = (positions + attributes["temperature.offset"]) // attributes["temperature.length"]
        scores *= (1 + attributes["temperature.scale"] * np.log1p(steps))[None, :, None]
    if attributes["softcap"] > 0:
        scores = attributes["softcap"] * np.tanh(scores / attributes["softcap"])
    key_positions = np.arange(keys.shape[0])
    distance = positions[:, None] - key_positions[None, :]
    if attributes["max_alibi_bias"] > 0:
        scores -= alibi_slopes(heads, attributes["max_alibi_bias"])[:, None, None] * np.abs(distance)
    if relative_bias is not None:
        buckets = relative_buckets(-distance, attributes["causal"], len(relative_bias), attributes["max_distance"])
        scores += np.moveaxis(relative_bias.astype(np.float64)[buckets], 2, 0)
    visible = np.ones(distance.shape, bool)
    if attributes["causal"]:
        visible &= distance >= 0
    if attributes["window"] > 0 and attributes["causal"]:
        visible &= distance < attributes["window"]
    elif attributes["window"] > 0:
        visible &= np.abs(distance) <= attributes["window"] // 2
    if attributes["chunk"] > 0:
        visible &= key_positions >= positions[:, None] // attributes["chunk"] * attributes["chunk"]
    scores = np.where(visible[None], scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    weights: Array = np.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.astype(np.float64)[:, None, None] - largest)
    out: Array = np.einsum("hts,shd->thd", weights / total, np.repeat(values.astype(np.float64), group, axis=1))
    return out.reshape(rows, -1).astype(np.float32)


def route(logits: F32, bias: F32 | None, attributes: dict[str, Any]) -> tuple[F32, F32]:
    """Ids of the experts that win, ties to the lower id, and their weights: [rows, used] each."""
    used, groups = attributes["used"], attributes["groups"]
    wide = logits.astype(np.float64)
    if attributes["scores"] == "sigmoid":
        scores: Array = 1 / (1 + np.exp(-wide))
    else:
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        scores = powers / powers.sum(axis=-1, keepdims=True)
    choice: Array = wide.copy() if bias is None else scores + bias
    if groups > 1:
        two_best = attributes["group_scores"] == "two_best"
        values = scores if bias is None and two_best else choice
        best = -np.sort(-values.reshape(len(values), groups, -1), axis=-1)[..., : 2 if two_best else 1].sum(axis=-1)
        losers = np.argsort(-best, axis=-1, kind="stable")[:, attributes["groups_used"] :]
        rows = np.arange(len(choice))[:, None]
        choice.reshape(len(choice), groups, -1)[rows, losers] = -np.inf
    experts = np.argsort(-choice, axis=-1, kind="stable")[:, :used]
    if attributes["scores"] == "softmax" and attributes["normalize"]:
        chosen = np.take_along_axis(wide, experts, axis=-1)
        weights: Array = np.exp(chosen - chosen.max(axis=-1, keepdims=True))
    else:
        weights = np.take_along_axis(scores, experts, axis=-1)
    if attributes["normalize"]:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(np.float32) * np.float32(attributes["scale"])
    return experts.astype(np.float32), weights


class Interpreter:
    """Runs a function of a Program over one sequence; `values` has every value of the last run by name."""

    def __init__(
        self,
        program: Program,
        weights: Callable[[str], F32],
        *,
        kv_dtype: KvDtype = "f16",
        quantize_activations: bool = True,
        function: str = "logits",
        adapter: tuple[int, float] | None = None,
        memory: Interpreter | None = None,
        is_long: bool = False,
        halves: bool = False,
    ) -> None:
        """`weights` gives the numbers of a weight by its name in the Program, in the shape that it has there.

        `adapter`: the LoRA adapter that the sequence uses, and its scale. `memory` has run "encode" on the text whose
        kept K and V this function reads. `is_long`: the sequence takes the long factors of longrope. `halves`: what
        has a scale for each group of activations on the CPU is rounded to halves, as on a GPU.
        """
        self._memory = memory
        self._adapter = adapter
        self.values: dict[str, Array] = {}
        self._table = program.values
        self._nodes = program.nodes(function)
        self._output = self._table[program.outputs(function)[0]].name
        self._weights = weights
        self._kv_dtype = kv_dtype
        self._quantize = quantize_activations
        self._halves = halves
        self._is_long = is_long
        self._cache: dict[int, tuple[F32, F32]] = {}  # by layer: K and V of the positions so far
        self._states = States()
        self._received: F32 | None = None
        self._length = 0
        self._rows: Array = np.zeros(0, np.int64)
        self.ties: npt.NDArray[np.bool_] | None = None  # of the last node: see `rounding_ties`; None: no row has one

    def begin(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        output_rows: Sequence[int] | None = None,
        received: F32 | None = None,
    ) -> None:
        """Sets the batch that `eval_node` works on.

        `positions` defaults to those after the last batch, `output_rows` (the rows whose logits are wanted) to all.
        `received` [num_tokens, n] is what the program before this one, which it was cut from, sends.
        """
        self._received = received
        self.values = {"tokens": np.asarray(tokens, np.int64)}
        start = self._length
        if any(value.kind == "input" and value.name == "token_types" for value in self._table):
            self.values["token_types"] = np.zeros(len(tokens), np.int64)
        self.values["positions"] = np.arange(start, start + len(tokens)) if positions is None else np.asarray(positions)
        self._rows = np.arange(len(tokens)) if output_rows is None else np.asarray(output_rows, np.int64)
        self._length = int(self.values["positions"].max()) + 1

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        output_rows: Sequence[int] | None = None,
        received: F32 | None = None,
    ) -> F32:
        """Logits of the batch, [num_outputs, vocab_size]; see `begin`. Earlier batches stay in the cache."""
        self.begin(tokens, positions, output_rows, received)
        for node in self._nodes:
            for id, result in zip(node.outputs, self.eval_node(node), strict=True):
                self.values[self._table[id].name] = result
        logits: F32 = self.values[self._output]
        return logits

    def eval_node(self, node: ProgramNode, inputs: Sequence[Array | None] | None = None) -> list[Array]:
        """Results of one node on the batch of `begin`.

        `inputs` stand in for the node's operands, in their order; None for one means what `values` or the weights have.
        """
        operands: dict[str, list[Array]] = {}
        for i, (role, id) in enumerate(node.inputs):
            given = inputs[i] if inputs is not None else None
            operands.setdefault(role, []).append(self._load(id) if given is None else given)
        self.ties = None
        op = getattr(self, f"_{node.op}")
        results = op(node, operands, node.attributes)
        return results if isinstance(results, list) else [results]

    def _load(self, id: int) -> Array:
        value = self._table[id]
        if value.kind != "weight":
            return self.values[value.name]
        return self._weights(value.name).reshape([int(extent) for extent in value.shape])

    def _ids(self, node: ProgramNode, role: str) -> list[int]:
        return [id for name, id in node.inputs if name == role]

    def _project(self, node: ProgramNode, x: F32, operands: dict[str, list[Array]], rule: str) -> list[F32]:
        """The matmuls of a linear or unembed node, norm and biases included."""
        if "norm" in operands:
            x = rms_norm(x, operands["norm"][0], float(node.attributes["eps"]))
        results = []
        for i, (id, w) in enumerate(zip(self._ids(node, "w"), operands["w"], strict=True)):
            group = self._group(id, rule, x.shape[1])
            if group > 0 and "norm" in operands:
                ties = rounding_ties(x, group)
                self.ties = ties if self.ties is None else self.ties | ties
            y = matmul(x, w, group)
            if "bias" in operands:
                y = y + operands["bias"][i]
            results.append(y.astype(np.float32))
        return results

    def _embed(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return operands["w"][0][operands["tokens"][0]].astype(np.float32)

    def _linear(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> list[F32]:
        results = self._project(node, operands["x"][0], operands, attributes["activation"])
        if "glu" in attributes:
            results = [gated(results[0], results[1], attributes["glu"])]
        if "residual" in operands:
            results = [operands["residual"][0] + results[0]]
        return results

    def _lora(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        y: F32 = operands["y"][0]
        if self._adapter is None or self._adapter[0] != attributes["adapter"]:
            return y
        x, a, b = (operands[role][0].astype(np.float64) for role in ("x", "a", "b"))
        factor = np.float64(np.float32(self._adapter[1]) * np.float32(attributes["factor"]))
        return (y + factor * (x @ a.T @ b.T)).astype(np.float32)

    def _head_linear(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        x, w = operands["x"][0], operands["w"][0]
        heads = [matmul(x[:, head], w[head], self._operand_group(node, "w", x.shape[2])) for head in range(len(w))]
        return np.stack(heads, axis=1).astype(np.float32)

    def _unembed(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> list[F32]:
        x = operands["x"][0]
        if self._table[self._ids(node, "x")[0]].shape[0] == "T":
            x = x[self._rows]
        return self._project(node, x, operands, attributes["activation"])

    def _rms_norm(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        normed = rms_norm(operands["x"][0], operands["w"][0] if "w" in operands else None, attributes["eps"])
        return operands["residual"][0] + normed if "residual" in operands else normed

    def _layer_norm(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        w, bias = (operands[role][0] if role in operands else None for role in ("w", "bias"))
        return layer_norm(operands["x"][0], w, bias, attributes["eps"])

    def _turn(self, node: ProgramNode, x: F32, operands: dict[str, list[Array]], prefix: str) -> F32:
        role = "long_factors" if self._is_long and "long_factors" in operands else "factors"
        factors = operands[role][0].tolist() if role in operands else []
        frequencies = np.asarray(rope_inverse_frequencies(node, prefix, factors), np.float32)
        style, magnitude = node.attributes[f"{prefix}style"], node.attributes[f"{prefix}attention_factor"]
        return rope(x, operands["positions"][0], frequencies, str(style), float(magnitude))

    def _rope(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        return self._turn(node, operands["x"][0], operands, "")

    def _attention(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        q, positions, layer = operands["q"][0], self.values["positions"], attributes["layer"]
        sinks = operands["sinks"][0] if "sinks" in operands else None
        bias = operands["relative_bias"][0] if "relative_bias" in operands else None
        if "k" not in operands and self._memory is not None and layer not in self._cache:
            return attend(q, *self._memory._cache[layer], positions, attributes)
        if "k" not in operands:  # those that another node of the layer has stored
            keys, values = self._cache[layer]
            return attend(q, keys[: self._length], values[: self._length], positions, attributes, sinks)
        k, latent = operands["k"][0], attributes["latent"]
        if "q_norm" in operands:
            q = rms_norm(q, operands["q_norm"][0], attributes["eps"])
            k = rms_norm(k, operands["k_norm"][0], attributes["eps"])
        if "positions" in operands:
            q, k = self._turn(node, q, operands, "rope."), self._turn(node, k, operands, "rope.")
        if self._kv_dtype == "q8_0" and ("q_norm" in operands or "positions" in operands):
            tied = q8_0_ties(k)
            earlier = positions[None, :] <= positions[:, None]
            self.ties = np.asarray((tied & earlier).any(axis=1))
        keys, values = self._store(layer, positions, k, k[..., :latent] if latent else operands["v"][0])
        if latent:
            values = keys[..., :latent]
        return attend(q, keys, values, positions, attributes, sinks, bias)

    def _store_kv(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        k, v = operands["k"][0], operands["v"][0]
        self._store(attributes["layer"], self.values["positions"], k, v)
        return k

    def _store(self, layer: int, positions: Array, k: F32, v: F32) -> tuple[F32, F32]:
        """Writes K and V of the batch to the cache and gives all of the layer's, as the cache rounds them."""
        stored = []
        old = self._cache.get(layer, (k[:0], v[:0]))
        for past, new in zip(old, (k, v), strict=True):
            rows = np.zeros((max(self._length, len(past)), *new.shape[1:]), np.float32)
            rows[: len(past)] = past
            rows[positions] = round_to_cache(new, self._kv_dtype)
            stored.append(rows)
        self._cache[layer] = (stored[0], stored[1])
        return stored[0][: self._length], stored[1][: self._length]

    def _recurrent(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        return self._states.run(node, operands, self.values["positions"])

    _short_conv = _ssm_scan = _delta_rule = _recurrent

    def _glu(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return gated(operands["gate"][0], operands["up"][0], attributes["activation"])

    def _route(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> list[F32]:
        bias = operands["bias"][0] if "bias" in operands else None
        return list(route(operands["x"][0], bias, attributes))

    def _expert_glu(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> F32:
        x, experts, weights = (operands[role][0] for role in ("x", "experts", "weights"))
        parts = np.zeros((*experts.shape, operands["down"][0].shape[1]), np.float32)
        for expert in np.unique(experts).astype(int):
            rows, ranks = np.nonzero(experts == expert)
            seen = x[rows] * weights[rows, ranks][:, None] if attributes["weigh_input"] else x[rows]
            gate, up = (self._expert_matmul(node, seen, operands, role, expert) for role in ("gate", "up"))
            hidden = gated(gate, up, attributes["glu"])
            parts[rows, ranks] = self._expert_matmul(node, hidden, operands, "down", expert)
            group = self._operand_group(node, "down", hidden.shape[1])
            if group > 0:
                ties = np.zeros(len(x), np.bool_) if self.ties is None else self.ties
                ties[rows] |= rounding_ties(hidden, group)
                self.ties = ties
        if not attributes["weigh_input"]:
            parts *= weights[..., None]
        total: F32 = parts[:, 0]
        for rank in range(1, experts.shape[1]):
            total = total + parts[:, rank]
        return operands["residual"][0] + total if "residual" in operands else total

    def _expert_matmul(
        self, node: ProgramNode, x: F32, operands: dict[str, list[Array]], role: str, expert: int
    ) -> F32:
        y = matmul(x, operands[role][0][expert], self._operand_group(node, role, x.shape[1]))
        if f"{role}_bias" in operands:
            y = y + operands[f"{role}_bias"][0][expert]
        return y.astype(np.float32)

    def _operand_group(self, node: ProgramNode, role: str, k: int) -> int:
        return self._group(self._ids(node, role)[0], str(node.attributes["activation"]), k)

    def _group(self, weight: int, rule: str, k: int) -> int:
        """How many of k activations share a scale when they meet the weight; 0: none are rounded; or HALVES."""
        group = activation_group(self._table[weight].format or "F32", rule, k) if self._quantize else 0
        return HALVES if group and self._halves and rule != "int8_per_token" else group

    def _activation(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return activate(operands["x"][0], attributes["kind"])

    def _add(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return operands["a"][0] + operands["b"][0]

    def _mul(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return operands["a"][0] * operands["b"][0]

    def _scale(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return operands["x"][0] * np.float32(attributes["factor"])

    def _clamp(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        limit = np.float32(attributes["limit"])
        return np.clip(operands["x"][0], -limit, limit)

    def _reshape(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        x = operands["x"][0]
        return x.reshape(x.shape[0], *(int(dim) for dim in attributes["dims"].split(",")))

    def _split(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> list[Array]:
        ends = np.cumsum([int(size) for size in attributes["sizes"].split(",")])
        return np.split(operands["x"][0], ends[:-1], axis=-1)

    def _concat(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return np.concatenate(operands["x"], axis=-1)

    def _send(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        return np.concatenate([x.reshape(len(x), -1) for x in operands["x"]], axis=1)

    def _receive(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> list[Array]:
        assert self._received is not None, "the program is a part of another one"
        shapes = [[int(extent) for extent in text.split(",")] for text in attributes["shapes"].split(";")]
        pieces = np.split(self._received, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=1)
        return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _pool(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        x = operands["x"][0]
        if attributes["kind"] == "mean":
            mean: F32 = x.astype(np.float64).mean(axis=0, keepdims=True).astype(np.float32)
            return mean
        return x[:1] if attributes["kind"] == "cls" else x[-1:]

    def _take_rows(self, node: ProgramNode, operands: dict[str, list[Array]], attributes: dict[str, Any]) -> Array:
        taken: Array = operands["x"][0][self._rows]
        return taken

"""Holds a plan against the numpy interpreter: each node gets the plan's own inputs, so that it is judged alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sterna import _core
from sterna.device import CPU, Device
from sterna.interpreter import Interpreter
from sterna.memory import KvDtype

Array = npt.NDArray[Any]

# What float32 sums in another order may differ by; rounding to int8 and to the cache's type is the same on both sides.
TOLERANCE = 1e-4
# The same for a row in which the last bit of a folded norm or rope decides about a code: one code in another place.
TIE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class NodeDifference:
    """How far one result of the plan lies from the reference."""

    name: str
    op: str
    source: str  # "models/llama.py:27"
    shape: tuple[int, ...]
    error: float  # ||result - reference|| / ||reference|| of the worst row; NaN where a number is not finite
    tolerance: float  # what rounding explains in that row

    @property
    def diverges(self) -> bool:
        """Whether the error is above what rounding explains."""
        return not self.error <= self.tolerance


class TensorValues:
    """The weights of a GGUF file as float32 arrays, by their names in a Program."""

    def __init__(self, file: _core.Gguf) -> None:
        self._file = file
        self._tensors = {tensor.name: tensor for tensor in file.tensors}

    def __call__(self, name: str) -> npt.NDArray[np.float32]:
        tensor = self._tensors.get(f"{name}.weight") or self._tensors[name]
        return _core.dequantize(self._file.read(tensor.name), tensor.format).reshape(tensor.shape)


def diff(
    file: _core.Gguf,
    program: _core.Program,
    tokens: Sequence[int],
    *,
    isa: str = "",
    threads: int = 0,
    kv_dtype: KvDtype = "f16",
    device: Device = CPU,
) -> Iterator[NodeDifference]:
    """Runs `tokens` as one sequence through a plan of `program` (fused or not) and compares each result, in order.

    Of an encoder, "encode" is run.
    """
    return diff_parts(file, program, [(program, device)], tokens, isa=isa, threads=threads, kv_dtype=kv_dtype)


def diff_parts(
    file: _core.Gguf,
    program: _core.Program,
    parts: Sequence[tuple[_core.Program, Device]],
    tokens: Sequence[int],
    *,
    isa: str = "",
    threads: int = 0,
    kv_dtype: KvDtype = "f16",
) -> Iterator[NodeDifference]:
    """As `diff`, for a program that was cut into parts, each with the device that runs it."""
    count = len(tokens)
    function = program.functions[0]
    options: dict[str, Any] = {"threads": threads, "kv_dtype": kv_dtype, "max_tokens": count, "max_outputs": count}
    plans: list[_core.ProgramPlan] = []
    for part, device in parts:
        if device.number is None:
            plans.append(_core.compile_cpu(part, file, isa=isa, keep_values=True, **options))
        else:
            plans.append(_core.compile_cuda(part, file, device=device.number, keep_values=True, **options))
    plan = plans[0] if len(plans) == 1 else _core.compile_chain(program, plans)
    pages = (count + 63) // 64
    plan.reserve_pages(pages)
    rows = np.arange(count, dtype=np.int32)
    outputs = rows if function == "logits" else rows[-1:]
    is_long = 0 < program.longrope_context < count
    sequences, tables = np.zeros(count, np.int32), [list(range(pages))]
    plan.run(np.asarray(tokens, np.int32), rows, sequences, tables, outputs, function, long_sequences=[is_long])

    def kept(value: _core.ProgramValue) -> Array | None:
        """The plan's result, or None for an input or a weight."""
        if value.kind != "node":
            return None
        sizes = {"T": count, "L": len(outputs)}
        extents = [sizes[extent] if isinstance(extent, str) else extent for extent in value.shape]
        return plan.value(value.name).reshape(extents)

    received: Array | None = None
    for part, device in parts:
        values = part.values
        halves = device.number is not None
        interpreter = Interpreter(
            part, TensorValues(file), kv_dtype=kv_dtype, function=function, is_long=is_long, halves=halves
        )
        interpreter.begin(tokens, received=received)
        for node in part.nodes(function):
            references = interpreter.eval_node(node, [kept(values[id]) for _, id in node.inputs])
            for id, reference in zip(node.outputs, references, strict=True):
                result = kept(values[id])
                assert result is not None
                yield difference(values[id].name, node, result, reference, interpreter.ties)
                received = result


def difference(
    name: str,
    node: _core.ProgramNode,
    result: Array,
    reference: Array,
    ties: npt.NDArray[np.bool_] | None = None,
) -> NodeDifference:
    """How far a result of `node` lies from the reference, in the row that exceeds its tolerance most.

    In rows with `ties` rounding explains more. Where the shapes differ, the error is NaN.
    """
    error, tolerance = float("nan"), TOLERANCE
    if result.shape == reference.shape:
        error, tolerance = _worst_row(result, reference, ties)
    return NodeDifference(name, node.op, node.source, result.shape, error, tolerance)


def _worst_row(result: Array, reference: Array, ties: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    """Error and tolerance of the row that exceeds its tolerance most."""
    rows = len(reference)
    wide = reference.reshape(rows, -1).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    errors = np.linalg.norm(result.reshape(rows, -1) - wide, axis=1)
    errors = np.divide(errors, norms, out=errors, where=norms > 0)
    tolerances = np.full(rows, TOLERANCE) if ties is None else np.where(ties, TIE_TOLERANCE, TOLERANCE)
    worst = int(np.argmax(errors / tolerances))  # a NaN is the largest
    return float(errors[worst]), float(tolerances[worst])

"""What a model file is held against: the values of another program for the same weights, or another implementation's.

A plan and the interpreter both compute what the model file says; whether that is right is known from elsewhere only.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sterna import _core
from sterna.diff import Array, NodeDifference, TensorValues, difference
from sterna.errors import ArgumentError, FileError
from sterna.hidden import hidden_state_names
from sterna.interpreter import Interpreter


@dataclass(frozen=True)
class Reference:
    """What values of a program should be for one sequence, by name."""

    tokens: Sequence[int]
    values: Mapping[str, Array]


def other_program(path: str | Path, file: _core.Gguf, tokens: Sequence[int]) -> Reference:
    """The values of a program for the same weights, whose text `sterna trace` printed, run on `tokens`.

    FileError, ArgumentError.
    """
    try:
        program = _core.Program.parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from error
    except (UnicodeDecodeError, ArgumentError) as error:
        raise ArgumentError(f"{path}: is no program: {error}") from error
    try:
        return Reference(tokens, _interpreted(file, program, tokens))
    except (KeyError, ValueError) as error:
        raise ArgumentError(f"{path}: is no program for the weights of {file.path}: {error}") from error


def other_implementation(path: str | Path, program: _core.Program) -> Reference:
    """An .npz of tools/make_oracle.py, of which the longest sequence is taken.

    tokens_i [n], logits_i [n, vocab_size] and, where there are any, states_i [num_hidden_layers, n, hidden_size]: what
    each layer reads. FileError, ArgumentError.
    """
    try:
        with np.load(path) as arrays:
            sequences = [name.removeprefix("tokens_") for name in arrays if name.startswith("tokens_")]
            longest = max(sequences, key=lambda number: len(arrays[f"tokens_{number}"]), default="")
            found = {name: arrays.get(f"{name}_{longest}") for name in ("tokens", "logits", "states")}
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from error
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"{path}: {error}") from error
    if found["tokens"] is None or found["logits"] is None:
        raise ArgumentError(f"{path}: has no tokens_0 or no logits_0")
    values = {program.values[program.outputs("logits")[0]].name: found["logits"]}
    if found["states"] is not None:
        states = zip(hidden_state_names(program), found["states"], strict=False)
        values |= {name: state for name, state in states if name}
    return Reference(found["tokens"].tolist(), values)


def differences(file: _core.Gguf, program: _core.Program, reference: Reference) -> Iterator[NodeDifference]:
    """Runs the reference's tokens through the interpreter of `program` and compares the values that it knows, in order.

    Each value is computed from those before it: the first that differs is the one to look at. ArgumentError where the
    two have no value in common.
    """
    values = _interpreted(file, program, reference.tokens)
    if not values.keys() & reference.values.keys():
        raise ArgumentError(f"{file.path}: its program has no value of the reference")
    for node in (node for function in program.functions for node in program.nodes(function)):
        for id in node.outputs:
            name = program.values[id].name
            if name in reference.values:
                yield difference(name, node, values[name], reference.values[name])


def _interpreted(file: _core.Gguf, program: _core.Program, tokens: Sequence[int]) -> dict[str, Array]:
    """Every computed value by name; neither activations nor K and V are rounded.

    A decoder beside an encoder reads what that made of the same tokens.
    """
    values: dict[str, Array] = {}
    encoder = None
    for function in program.functions:
        interpreter = Interpreter(
            program,
            TensorValues(file),
            kv_dtype="f32",
            quantize_activations=False,
            function=function,
            memory=encoder,
            is_long=0 < program.longrope_context < len(tokens),
        )
        interpreter.run(tokens)
        encoder = interpreter
        names = (program.values[id].name for node in program.nodes(function) for id in node.outputs)
        values |= {name: interpreter.values[name] for name in names}
    return values

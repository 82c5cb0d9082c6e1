"""Each model file against transformers: the interpreter of its Program must give the reference's logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from oracle_marks import limit
from sterna._core import Gguf, Program
from sterna.interpreter import Interpreter
from sterna.trace import trace

pytestmark = pytest.mark.reference

BITNETS = ["bitnet", "bitnet-b158"]
# The median error of the interpreter itself may be at most 1.1 times llama.cpp's, as the pass marks of the oracles say.
QUANTISED = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "Q1_0",
    "Q2_0",
    "BF16",
]


def run(
    program: Program,
    tensors: dict[str, oracle.F32],
    cases: list[oracle.Case],
    *,
    quantize_activations: bool = True,
) -> list[tuple[oracle.F32, oracle.F32]]:
    pairs = []
    for case in cases:
        interpreter = Interpreter(
            program,
            tensors.__getitem__,
            kv_dtype="f32",
            quantize_activations=quantize_activations,
            is_long=0 < program.longrope_context < len(case.tokens),
        )
        pairs.append((interpreter.run(case.tokens.tolist()), case.logits))
    return pairs


def require(name: str) -> Path:
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", oracle.FLOAT_MODELS)
def test_float_models_meet_transformers(name: str, fused: bool) -> None:
    path = require(name)
    program = trace(Gguf(path)).program
    pairs = run(program.fuse() if fused else program, oracle.tensors(path), list(oracle.cases(name)))
    assert oracle.relative_rms(pairs) <= limit(name, "interpreter")
    assert oracle.differing_argmax(pairs) == 0


@pytest.mark.parametrize("name", BITNETS)
def test_bitnets_meet_the_reference_without_rounded_activations(name: str, tmp_path: Path) -> None:
    # A float file is the same Program but for the activation rule, which this run leaves out.
    path = oracle.ternary_model(name, tmp_path)
    cases = list(oracle.cases(name))
    pairs = run(trace(Gguf(path)).program, oracle.tensors(path), cases, quantize_activations=False)
    assert oracle.relative_rms(pairs) <= 2e-6
    if oracle.model_path(name).exists():
        path = oracle.model_path(name)
        assert oracle.relative_rms(run(trace(Gguf(path)).program, oracle.tensors(path), cases)) <= 2e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", BITNETS)
def test_ternary_bitnets_meet_the_reference_with_int8_activations(name: str, fused: bool, tmp_path: Path) -> None:
    path = oracle.ternary_model(name, tmp_path)
    program = trace(Gguf(path)).program
    rules = {node.attributes["activation"] for node in program.nodes() if node.op == "linear"}
    assert rules == {"int8_per_token"}
    pairs = run(program.fuse() if fused else program, oracle.tensors(path), list(oracle.cases(name, "logits_a8")))
    assert oracle.relative_rms(pairs) <= 2e-3
    assert oracle.differing_argmax(pairs) == 0


@pytest.mark.parametrize("format", QUANTISED)
def test_rounded_activations_err_no_more_than_llama_cpp(format: str) -> None:
    name = f"llama-256.{format}"
    path = require(name)
    cases = list(oracle.cases(name))
    peers = [case.logits for case in oracle.cases(name, "llamacpp")]
    pairs = run(trace(Gguf(path)).program, oracle.tensors(path), cases)

    def median_error(results: list[oracle.F32]) -> float:
        errors = [
            np.linalg.norm(y - case.logits, axis=1) / np.linalg.norm(case.logits, axis=1)
            for y, case in zip(results, cases, strict=True)
        ]
        return float(np.median(np.concatenate(errors)))

    assert median_error([y for y, _ in pairs]) <= 1.10 * median_error(peers) + 2e-6

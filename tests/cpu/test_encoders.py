"""Encoders on the CPU: hidden states against transformers, pooled vectors, and the same bits whatever the path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from kernel_cases import LEVELS, Floats, assert_same_bits
from oracle_marks import limit
from sterna import _core
from sterna._core import Gguf, Program
from sterna.diff import TensorValues
from sterna.interpreter import Interpreter
from sterna.trace import trace

ENCODERS = ["bert", "nomic-bert", "modernbert", "embedding-gemma"]
POOLINGS = ["mean", "cls", "last"]


def require(name: str) -> Path:
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


def program_of(path: Path, pooling: str = "") -> Program:
    """The traced program; with `pooling` that kind of pool instead of the file's."""
    program = trace(Gguf(path)).program
    return Program.parse(program.text().replace('kind="mean"', f'kind="{pooling or "mean"}"'))


def compiled(path: Path, program: Program, **options: object) -> _core.CpuPlan:
    plan = _core.compile_cpu(program, Gguf(path), **{"threads": 2, "max_tokens": 128, "max_outputs": 8, **options})
    plan.reserve_pages(8)
    return plan


def encode(plan: _core.CpuPlan, sequences: list[np.ndarray], pages: list[list[int]]) -> Floats:
    lengths = [len(tokens) for tokens in sequences]
    positions = np.concatenate([np.arange(length) for length in lengths])
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return plan.run(np.concatenate(sequences), positions, numbers, pages, np.cumsum(lengths) - 1, "encode")


def hidden_name(program: Program) -> str:
    """The value that is pooled."""
    pool = next(node for node in program.nodes("encode") if node.op == "pool")
    return program.values[dict(pool.inputs)["x"]].name


@pytest.mark.reference
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states(name: str, kv_dtype: str, record_property: oracle.Record) -> None:
    record_property("oracle", name)
    path = require(name)
    program = program_of(path).fuse()
    plan = compiled(path, program, kv_dtype=kv_dtype, keep_values=True)
    pairs = []
    for case in oracle.cases(name, "hidden"):
        encode(plan, [case.tokens], [[3, 1]])
        pairs.append((plan.value(hidden_name(program)).reshape(case.logits.shape), case.logits))
    error = oracle.relative_rms(pairs)
    record_property("kv_dtype", kv_dtype)
    record_property("error", error)
    print(f"{name}, {kv_dtype}: {error:.2e}")
    assert error <= limit(name, kv_dtype)


@pytest.mark.reference
@pytest.mark.parametrize("fused", [False, True], ids=["traced", "fused"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ENCODERS)
def test_plan_and_interpreter_pool_alike(name: str, pooling: str, fused: bool) -> None:
    path = require(name)
    program = program_of(path, pooling)
    program = program.fuse() if fused else program
    plan = compiled(path, program, kv_dtype="f32")
    for case in oracle.cases(name, "hidden"):
        interpreter = Interpreter(program, TensorValues(Gguf(path)), kv_dtype="f32", function="encode")
        want = interpreter.run(case.tokens)
        got = encode(plan, [case.tokens], [[0, 1]])
        assert got.shape == want.shape == (1, plan.encoding_size)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        reference = {"mean": case.logits.mean(axis=0), "cls": case.logits[0], "last": case.logits[-1]}[pooling]
        np.testing.assert_allclose(want[0], reference, rtol=1e-3, atol=1e-5 * np.abs(reference).max())


@pytest.mark.reference
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_path_gives_the_same_bits(name: str, kv_dtype: str) -> None:
    """Threads, levels, fusion, pages and company."""
    path = require(name)
    program = program_of(path)
    texts = [case.tokens for case in oracle.cases(name, "hidden")]
    alone = compiled(path, program, kv_dtype=kv_dtype, threads=1)
    want = np.concatenate([encode(alone, [tokens], [[5, 2]]) for tokens in texts])
    assert np.isfinite(want).all()
    for number, threads in enumerate((1, 2, 3)):
        for level in (LEVELS[-1], LEVELS[number % len(LEVELS)]):
            plan = compiled(path, program.fuse(), kv_dtype=kv_dtype, threads=threads, isa=level)
            got = encode(plan, texts, [[0], [4], [7, 3]])
            assert_same_bits(got, want, f"{threads} threads, {level}")
            assert_same_bits(encode(plan, texts[::-1], [[1, 2], [3], [0]]), want[::-1], f"{threads} threads, {level}")


def test_a_sequence_to_encode_must_be_whole() -> None:
    path = require("bert")
    plan = compiled(path, program_of(path))
    assert plan.encodes_whole
    assert not plan.has_logits
    tokens = np.arange(5, dtype=np.int32)
    with pytest.raises(ValueError, match="not whole"):
        plan.run(tokens, tokens + 1, np.zeros(5, np.int32), [[0]], [4], "encode")
    with pytest.raises(ValueError, match="no function logits"):
        plan.run(tokens, tokens, np.zeros(5, np.int32), [[0]], [4])
    with pytest.raises(ValueError, match="runs no function decode"):
        plan.run(tokens, tokens, np.zeros(5, np.int32), [[0]], [4], "decode")


def test_layers_share_temporary_pages() -> None:
    """One layer's keys and values are read before the next one's are written."""
    path = require("bert")
    plan = compiled(path, program_of(path), kv_dtype="f16")
    width = plan.encoding_size // 4  # of a head; those of values take a multiple of 16
    assert plan.kv_pools == [(0, 64 * 4 * (width + max(width, 16)) * 2)]

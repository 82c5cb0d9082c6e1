"""`llm.hidden_states`: against the numpy interpreter, alone, in chunks, and among other requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sterna
from oracle import relative_rms, tensors
from sterna._core import Gguf
from sterna.hidden import hidden_state_name
from sterna.interpreter import Interpreter
from sterna.trace import trace


@pytest.fixture(scope="module")
def exact(tiny_path: Path) -> sterna.LLM:
    with sterna.load(tiny_path, context=512, threads=2, kv_dtype="f32") as llm:
        yield llm


def test_each_layer_reads_what_the_reference_says(exact: sterna.LLM, tiny_path: Path, prompt: list[int]) -> None:
    program = trace(Gguf(str(tiny_path))).program
    weights = tensors(tiny_path)
    reference = Interpreter(program, weights.__getitem__, kv_dtype="f32")
    reference.run(prompt)
    layers = 1 + max(int(node.name.split("/")[0].split(".")[1]) for node in program.nodes("logits") if "/" in node.name)
    for layer in range(layers + 1):
        got = exact.hidden_states(prompt, layer)
        expected = reference.values[hidden_state_name(program, layer)]
        if layer == layers:  # the unfused program normalises before the last matrix
            normed = got / np.sqrt(np.mean(got.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6)
            got, expected = (normed * weights["output_norm"]).astype(np.float32), expected
        assert got.shape == (len(prompt), exact.engine.hidden_size)
        assert relative_rms([(got, expected)]) < 1e-5, layer
    assert np.array_equal(exact.hidden_states(prompt, 0), weights["token_embd"][prompt])
    assert np.array_equal(exact.hidden_states(prompt, -1), exact.hidden_states(prompt, layers))


def test_long_texts_and_company_change_nothing(exact: sterna.LLM) -> None:
    random = np.random.default_rng(2)
    long = random.integers(3, 320, 300).tolist()
    alone = exact.hidden_states(long, 1)
    assert np.array_equal(exact.hidden_states(long[:40], 1), alone[:40])
    streams = [exact.stream(long[:n], max_tokens=30, ignore_eos=True) for n in (5, 70)]
    handles = [exact.engine.submit_score(long, hidden=hidden_state_name(exact._program, layer)) for layer in (1, -1, 0)]
    assert np.array_equal(handles[0].scores(), alone)
    assert np.array_equal(handles[1].scores(), exact.hidden_states(long, -1))
    for stream in streams:
        assert len(list(stream)) > 0


def test_the_logits_are_those_of_the_last_one(exact: sterna.LLM, prompt: list[int]) -> None:
    before = exact.logits(prompt)
    exact.hidden_states(prompt, 1)
    assert np.array_equal(exact.logits(prompt), before)


@pytest.mark.parametrize("layer", [99, -99, 1.5, "1", None])
def test_layers_that_are_not_there(exact: sterna.LLM, layer: object) -> None:
    with pytest.raises(sterna.ArgumentError, match="layer is"):
        exact.hidden_states([5], layer)
    with pytest.raises(sterna.ArgumentError, match='the model has no value "layers'):
        exact.engine.submit_score([5], hidden="layers.99/x")

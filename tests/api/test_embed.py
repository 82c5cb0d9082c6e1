"""llm.embed and `sterna embed`: vectors of texts, of encoders and decoders."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
import sterna
from click.testing import CliRunner
from sterna.cli.main import cli

ENCODERS = ["bert", "nomic-bert", "modernbert", "embedding-gemma"]


def require(name: str) -> Path:
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


@pytest.fixture(scope="module")
def bert() -> Iterator[sterna.LLM]:
    with sterna.load(require("bert"), threads=2) as llm:
        yield llm


def texts(count: int, longest: int = 60) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(3, 300, generator.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_the_pooled_hidden_states(name: str) -> None:
    with sterna.load(require(name), threads=2, kv_dtype="f32") as llm:
        cases = list(oracle.cases(name, "hidden"))
        vectors = llm.embed([case.tokens.tolist() for case in cases])
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(cases), llm.info.embedding_size)
        for vector, case in zip(vectors, cases, strict=True):
            want = case.logits.mean(axis=0)
            np.testing.assert_allclose(vector, want / np.linalg.norm(want), atol=3e-6)
            assert abs(np.linalg.norm(vector) - 1) < 1e-6
        raw = llm.embed(cases[1].tokens, normalize=False)
        assert raw.shape == (llm.info.embedding_size,)
        np.testing.assert_allclose(raw / np.linalg.norm(raw), vectors[1], atol=1e-6)


def test_company_changes_nothing(bert: sterna.LLM) -> None:
    many = texts(100)
    together = bert.embed(many)
    alone = np.stack([bert.embed(tokens) for tokens in many])
    assert (together.view(np.uint32) == alone.view(np.uint32)).all()
    results: dict[int, np.ndarray] = {}

    def part(first: int) -> None:
        results[first] = bert.embed(many[first : first + 25])

    threads = [threading.Thread(target=part, args=(first,)) for first in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    joined = np.concatenate([results[first] for first in range(0, 100, 25)])
    assert (joined.view(np.uint32) == alone.view(np.uint32)).all()
    stats = bert.stats()
    assert stats.running == stats.waiting == 0


def test_a_few_batches_take_many_texts(bert: sterna.LLM) -> None:
    before = bert.engine.stats()
    many = texts(100)
    bert.embed(many)
    after = bert.engine.stats()
    assert after.requests - before.requests == 100
    assert after.runs - before.runs <= 15


def test_an_encoder_generates_nothing(bert: sterna.LLM) -> None:
    for call in (lambda: bert.generate([5, 6]), lambda: bert.score([5, 6]), lambda: bert.logits([5, 6])):
        with pytest.raises(sterna.UnsupportedModelError, match="is an encoder"):
            call()


def test_texts_that_cannot_be_embedded(bert: sterna.LLM) -> None:
    limit = bert.info.max_embedded
    assert limit == bert.info.context == 128
    size = bert.info.embedding_size
    assert bert.embed([[7] * limit]).shape == (1, size)
    with pytest.raises(sterna.ContextOverflowError, match=rf"text 1 has {limit + 1} tokens; {limit} can"):
        bert.embed([[7], [7] * (limit + 1)])
    with pytest.raises(sterna.ArgumentError, match="the text is empty"):
        bert.embed([[]])
    with pytest.raises(sterna.ArgumentError, match="not in the vocabulary"):
        bert.embed([[320]])
    assert bert.embed([]).shape == (0, size)
    with pytest.raises(sterna.ArgumentError, match="has learned 128 positions"):
        sterna.load(bert.info.path, context=129)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3"])
def test_a_decoder_gives_its_last_hidden_state(name: str) -> None:
    """From whatever the cache has of the text, in chunks, beside a generation: the same bits."""
    with sterna.load(require(name), threads=2, kv_dtype="f32") as llm:
        tokens = [case.tokens.tolist() for case in oracle.cases(name)]
        first = llm.embed(tokens, normalize=False)
        cases = list(oracle.cases(name))
        head = oracle.tensors(oracle.model_path(name))
        output = head.get("output", head["token_embd"])
        for vector, case in zip(first, cases, strict=True):
            want = case.logits[-1]
            assert np.linalg.norm(output @ vector - want) <= 1e-4 * np.linalg.norm(want)
        begun = [llm.stream(prompt, max_tokens=30, ignore_eos=True) for prompt in tokens]
        again = llm.embed(tokens, normalize=False)
        assert (first.view(np.uint32) == again.view(np.uint32)).all()
        for stream in begun:
            assert sum(len(piece.tokens) for piece in stream) == 30


def test_a_ternary_decoder_embeds(tmp_path: Path) -> None:
    """As BitNet embeddings are made: int8 activations, the last hidden state."""
    path = oracle.ternary_model("bitnet-b158", tmp_path)
    head = oracle.tensors(path)
    output = head.get("output", head["token_embd"])
    with sterna.load(path, threads=2, kv_dtype="f32") as llm:
        for case in oracle.cases("bitnet-b158", "logits_a8"):
            want = case.logits[-1]
            vector = llm.embed(case.tokens, normalize=False)
            assert np.linalg.norm(output @ vector - want) <= 2e-2 * np.linalg.norm(want)


def test_a_long_text_of_a_decoder_is_computed_in_chunks() -> None:
    with sterna.load(require("qwen3"), threads=2, context=1200) as llm:
        text = np.random.default_rng(1).integers(3, 300, 1100).tolist()
        assert llm.info.max_embedded == 1200
        whole = llm.embed(text)
        llm.generate(text[:700], max_tokens=1)
        assert (llm.embed(text).view(np.uint32) == whole.view(np.uint32)).all()
        assert llm.stats().cached_tokens > 1000


def test_the_command_prints_numbers_or_json(tmp_path: Path) -> None:
    path = str(require("bert"))
    runner = CliRunner()
    result = runner.invoke(cli, ["embed", path, "a b", "c", "--json"], catch_exceptions=False)
    shown = json.loads(result.stdout)
    assert {len(row["embedding"]) for row in shown["embeddings"]} == {shown["size"]}
    assert [row["text"] for row in shown["embeddings"]] == ["a b", "c"]
    (tmp_path / "texts").write_text("a b\n\nc\n")
    result = runner.invoke(cli, ["embed", path, "--file", str(tmp_path / "texts")], catch_exceptions=False)
    rows = np.array([[float(x) for x in line.split()] for line in result.stdout.splitlines()])
    np.testing.assert_allclose(rows, [row["embedding"] for row in shown["embeddings"]], rtol=1e-6)
    assert runner.invoke(cli, ["embed", path], input="a b\n").stdout == result.stdout.splitlines()[0] + "\n"
    assert runner.invoke(cli, ["embed", path, "a", "-f", "x"]).exit_code == 2

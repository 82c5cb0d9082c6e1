"""load(draft=...): a quantised twin guesses for a model of real, if random, weights, and changes no token."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sterna
from lora_files import random_pairs, write_adapter
from oracle import model_path
from sterna._core import Gguf
from sterna.cli.main import main

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "seed": 11, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def target_path() -> Path:
    return model_path("llama3")


@pytest.fixture(scope="module")
def draft_path(target_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft") / "q8.gguf"
    sterna.quantize(target_path, path, "Q8_0")
    return path


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "sampled"])
def test_a_quantised_twin_guesses_and_changes_nothing(
    target_path: Path, draft_path: Path, prompt: list[int], sampling: dict[str, Any]
) -> None:
    prompts = [prompt, prompt[:9], [5, 6] * 40]
    options = {"max_tokens": 60, "ignore_eos": True, "logprobs": 3, **sampling}
    with sterna.load(target_path, context=256, threads=2) as llm:
        expected = llm.generate(prompts, draft_tokens=0, **options)
        assert llm.info.draft is None
    with sterna.load(target_path, draft=draft_path, context=256, threads=2) as llm:
        assert llm.info.draft == str(draft_path)
        assert str(draft_path) in str(llm.info)
        for draft_tokens in (3, None):
            found = llm.generate(prompts, draft_tokens=draft_tokens, **options)
            assert [(out.tokens, out.logprobs, out.text) for out in found] == [
                (out.tokens, out.logprobs, out.text) for out in expected
            ]
        forced = llm.generate(prompt, draft_tokens=4, **options).timings
        assert forced.accepted_tokens > 20
        assert forced.accepted_tokens > 0.5 * forced.draft_tokens
        stats = llm.stats()
        assert stats.accepted_tokens >= forced.accepted_tokens


def test_adapters_and_soft_prompts_are_guessed_for_and_unchanged(
    target_path: Path, draft_path: Path, prompt: list[int], tmp_path: Path
) -> None:
    """The draft model has no adapters, so it errs more often; a row of a soft prompt is nothing that it could read."""
    adapter = write_adapter(tmp_path / "adapter.gguf", random_pairs(target_path, 1))
    hidden_size = next(tensor.shape[1] for tensor in Gguf(target_path).tensors if tensor.name == "token_embd.weight")
    soft = np.random.default_rng(5).standard_normal((7, hidden_size)).astype(np.float32)
    options = {"max_tokens": 60, "ignore_eos": True, "logprobs": 3, "temperature": 0.0}
    terms: list[dict[str, Any]] = [{"lora": ("x", 0.2)}, {"embeddings": soft}, {"embeddings": soft, "lora": "x"}, {}]
    with sterna.load(target_path, lora={"x": adapter}, context=256, threads=2) as llm:
        expected = [llm.generate(prompt, draft_tokens=0, **term, **options) for term in terms]
    assert len({tuple(out.tokens) for out in expected}) == 4
    with sterna.load(target_path, lora={"x": adapter}, draft=draft_path, context=256, threads=2) as llm:
        for draft_tokens in (3, None):
            streams = [llm.stream(prompt, draft_tokens=draft_tokens, **term, **options) for term in terms]
            for stream, want in zip(streams, expected, strict=True):
                list(stream)
                found = stream.completion
                assert (found.tokens, found.logprobs, found.text) == (want.tokens, want.logprobs, want.text)
        adapted, embedded, *_ = [llm.generate(prompt, draft_tokens=3, **term, **options).timings for term in terms]
        assert 0 < adapted.accepted_tokens < adapted.draft_tokens
        # Guesses come from the text itself only: none before three tokens of it have come again.
        assert embedded.draft_tokens < adapted.draft_tokens


def test_page_pressure_and_cancels(target_path: Path, draft_path: Path, prompt: list[int]) -> None:
    """Pages for three of eight sequences: in the model's cache, and in the draft model's."""
    prompts = [[*prompt, i] * 4 for i in range(3, 11)]
    options: dict[str, Any] = {"max_tokens": 70, "ignore_eos": True, "draft_tokens": 3, **SAMPLED}
    with sterna.load(target_path, context=256, threads=2) as llm:
        expected = [out.tokens for out in llm.generate(prompts, **{**options, "draft_tokens": 0})]
    with sterna.load(target_path, draft=draft_path, context=256, kv_tokens=640, threads=2) as llm:

        def leave() -> None:
            for text in prompts:
                for _ in llm.stream(text, **options):
                    break

        thread = threading.Thread(target=leave)
        thread.start()
        assert [out.tokens for out in llm.generate(prompts, **options)] == expected
        thread.join()
        assert llm.stats().accepted_tokens > 0
        alone = llm.generate(prompts[0], **options)
        assert alone.tokens == expected[0]
        assert alone.timings.draft_tokens > 20  # there are pages again


def test_the_memory_plan_knows_the_draft_model(target_path: Path, draft_path: Path) -> None:
    alone = sterna.plan(target_path, context=300)
    both = sterna.plan(target_path, context=300, draft=draft_path)
    own = sterna.plan(draft_path, context=300)
    assert alone.draft == 0
    assert both.draft >= own.weights + own.kv
    assert both.total == alone.total + both.draft
    with pytest.raises(sterna.MemoryBudgetError, match=r"draft model .*; a context of 256 tokens would fit"):
        sterna.load(target_path, context=300, draft=draft_path, memory_budget=both.total - 1)
    with sterna.load(target_path, context=300, draft=draft_path) as llm:
        assert llm.info.memory.draft == both.draft


def with_other_tokens(source: Path, path: Path, change: str) -> Path:
    """The file's metadata and tensors with another token, one more, or another kind of tokenizer."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = field.contents()
        kind = field.types[0]
        if field.name == "tokenizer.ggml.tokens":
            value = [*value[:100], "another", *value[101:]] if change == "token" else value
            value = [*value, "surplus"] if change == "length" else value
        if field.name == "tokenizer.ggml.model" and change == "kind":
            value = "gpt2"
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
        else:
            writer.add_key_value(field.name, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("change", "says"), [("token", "token 100"), ("length", "321 tokens"), ("kind", "tokenizer of kind 'gpt2'")]
)
def test_a_draft_model_with_other_tokens_is_refused(target_path: Path, tmp_path: Path, change: str, says: str) -> None:
    path = with_other_tokens(target_path, tmp_path / "other.gguf", change)
    for call in (sterna.load, sterna.plan):
        with pytest.raises(sterna.ArgumentError, match=says) as found:
            call(target_path, draft=path)
        assert str(path) in str(found.value)
        assert str(target_path) in str(found.value)


def test_a_draft_model_that_is_not_there(target_path: Path) -> None:
    with pytest.raises(sterna.FileError, match=r"nowhere\.gguf"):
        sterna.load(target_path, draft="nowhere.gguf")


def test_the_commands_take_one(target_path: Path, draft_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, draft = str(target_path), ["--draft", str(draft_path)]
    answer = ["run", "--raw", "-n", "30", "--temp", "0", model, "a"]
    assert main(answer) == 0
    alone = capsys.readouterr().out
    assert main([*answer, "--stats", *draft]) == 0
    assert capsys.readouterr().out == alone
    assert main(["plan", "-c", "300", model, *draft]) == 0
    assert "draft" in capsys.readouterr().out
    assert main(["bench", "-p", "0", "-n", "20", "-r", "1", "-o", "json", model, *draft]) == 0
    measured = capsys.readouterr()
    assert "guesses right" in measured.err
    assert json.loads(measured.out)[0]["draft"] == str(draft_path)

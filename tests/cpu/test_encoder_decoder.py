"""T5: encoder, decoder and cross attention against transformers; the same bits whatever the path; llm.generate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
import sterna
from kernel_cases import LEVELS, Floats, assert_same_bits
from oracle_marks import limit
from sterna import _core
from sterna._core import Gguf
from sterna.diff import TensorValues
from sterna.interpreter import Interpreter
from sterna.trace import trace

MODELS = ["flan-t5", "t5-relu"]  # gated GELU and a head of its own; ReLU and a tied head


def path_of(name: str = "flan-t5") -> Path:
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


def cases(name: str = "flan-t5") -> list[dict[str, np.ndarray]]:
    path_of(name)
    with np.load(oracle.folder(name) / "reference.npz") as arrays:
        kinds = ("tokens", "decoder_tokens", "encoder", "logits")
        return [{kind: arrays[f"{kind}_{i}"] for kind in kinds} for i in range(3)]


def engine_of(name: str = "flan-t5", *, fused: bool = True, max_tokens: int = 128, **options: object) -> _core.Engine:
    file = Gguf(path_of(name))
    program = trace(file).program
    options = {"threads": 2, "kv_dtype": "f32", **options}
    plan = _core.compile_cpu(program.fuse() if fused else program, file, max_tokens=max_tokens, max_outputs=64, **options)
    return _core.Engine(plan, _core.Pieces.from_gguf(file), context=512, kv_tokens=4096)


def logits(engine: _core.Engine, tokens: np.ndarray, decoder_tokens: np.ndarray) -> Floats:
    context = _core.SequenceContext(encoder_tokens=tokens)
    return engine.submit_score(decoder_tokens, logits=True, context=context, context_key=tokens.tobytes()).scores()


@pytest.mark.reference
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_against_transformers(name: str, kv_dtype: str, record_property: oracle.Record) -> None:
    record_property("oracle", name)
    engine = engine_of(name, kv_dtype=kv_dtype)
    pairs = [(logits(engine, case["tokens"], case["decoder_tokens"]), case["logits"]) for case in cases(name)]
    error = oracle.relative_rms(pairs)
    oracle.record_pairs(record_property, pairs, kv_dtype=kv_dtype)
    print(f"{name}, {kv_dtype}: {error:.2e}")
    assert error <= limit(name, kv_dtype)
    assert oracle.differing_argmax(pairs) <= {"f32": 0, "f16": 1, "q8_0": 6}[kv_dtype]
    engine.close()


def interpreted(name: str, *, fused: bool, kv_dtype: str) -> list[tuple[Floats, Floats]]:
    """Logits of the interpreter and of transformers."""
    file = Gguf(path_of(name))
    program = trace(file).program
    program = program.fuse() if fused else program
    weights = TensorValues(file)
    pairs = []
    for case in cases(name):
        encoder = Interpreter(program, weights, kv_dtype=kv_dtype, function="encode")
        vector = encoder.run(case["tokens"])
        if kv_dtype == "f32":
            np.testing.assert_allclose(vector[0], case["encoder"].mean(axis=0), atol=1e-5)
        decoder = Interpreter(program, weights, kv_dtype=kv_dtype, memory=encoder)
        pairs.append((decoder.run(case["decoder_tokens"]), case["logits"]))
    return pairs


@pytest.mark.reference
@pytest.mark.parametrize("fused", [False, True], ids=["traced", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_the_interpreter_against_transformers(name: str, fused: bool) -> None:
    assert oracle.relative_rms(interpreted(name, fused=fused, kv_dtype="f32")) <= limit(name, "interpreter")


@pytest.mark.reference
@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_what_the_cache_rounds_is_the_whole_error(name: str, kv_dtype: str) -> None:
    """The interpreter, exact but for rounded keys and values, is as far from transformers as the plan."""
    engine = engine_of(name, kv_dtype=kv_dtype)
    plan = [logits(engine, case["tokens"], case["decoder_tokens"]) for case in cases(name)]
    engine.close()
    exact = interpreted(name, fused=False, kv_dtype=kv_dtype)
    far = oracle.relative_rms(exact)
    assert oracle.relative_rms([(y, want) for y, (_, want) in zip(plan, exact, strict=True)]) == pytest.approx(far, rel=0.01)
    # A number that lies between two codes goes the other way now and then.
    assert oracle.relative_rms([(y, got) for y, (got, _) in zip(plan, exact, strict=True)]) <= 0.15 * far


@pytest.mark.reference
@pytest.mark.parametrize("name", MODELS)
def test_every_path_gives_the_same_bits(name: str) -> None:
    """Levels, threads, fusion, chunks of the decoder, and the company of others."""
    texts = cases(name)
    engine = engine_of(name, threads=1, kv_dtype="f16")
    want = [logits(engine, case["tokens"], case["decoder_tokens"]) for case in texts]
    engine.close()
    paths = [(level, 1 + i % 3, i % 2 == 0, 128) for i, level in enumerate(LEVELS)] + [(LEVELS[-1], 2, True, 71)]
    for level, threads, fused, rows in paths:
        engine = engine_of(name, threads=threads, fused=fused, isa=level, kv_dtype="f16", max_tokens=rows)
        contexts = [_core.SequenceContext(encoder_tokens=case["tokens"]) for case in texts]
        handles = []
        for number in range(9):
            case, context = texts[number % 3], contexts[number % 3]
            key = case["tokens"].tobytes()
            handles.append(engine.submit_score(case["decoder_tokens"], logits=True, context=context, context_key=key))
        for number, handle in enumerate(handles):
            assert_same_bits(handle.scores(), want[number % 3], f"{level}, {threads} threads, request {number}")
        assert engine.stats().pages_in_use == 0
        engine.close()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_in_company(name: str, level: str) -> None:
    """What a text's tokens were chosen with, beside other texts, are the log-probabilities of one run over it alone."""
    engine = engine_of(name, threads=1, kv_dtype="f16", isa=level)
    greedy = _core.SamplingParams(temperature=0)
    texts = [case["tokens"] for case in cases(name)]
    contexts = [(_core.SequenceContext(encoder_tokens=tokens), tokens.tobytes()) for tokens in texts]
    handles = [
        engine.submit([0], max_tokens=10 + 7 * i, sampling=greedy, top_logprobs=0, context=context, context_key=key)
        for i, (context, key) in enumerate(contexts)
    ]
    for i, (handle, (context, key)) in enumerate(zip(handles, contexts, strict=True)):
        chosen = [(event.token, event.logprob) for event in handle.events() if event.token is not None]
        assert len(chosen) == 10 + 7 * i
        score = engine.submit_score([0, *(token for token, _ in chosen)], context=context, context_key=key + b"alone")
        assert_same_bits(np.array([logprob for _, logprob in chosen], np.float32), score.scores(), f"{level}, text {i}")
    engine.close()


@pytest.fixture(scope="module")
def t5() -> Iterator[sterna.LLM]:
    with sterna.load(path_of("t5-relu"), threads=2, kv_dtype="f32", max_sequences=4) as llm:
        yield llm


def test_generate_encodes_the_prompts_together(t5: sterna.LLM) -> None:
    """Greedy text is what one run over it says, token by token; company and order change nothing."""
    prompts = [case["tokens"].tolist() for case in cases("t5-relu")] * 3
    together = t5.generate(prompts, max_tokens=12, temperature=0, ignore_eos=True)
    for prompt, result in zip(prompts, together, strict=True):
        written = np.array([0, *result.tokens], np.int32)
        rows = logits(t5.engine, np.array(prompt, np.int32), written[:-1])
        assert rows.argmax(axis=1).tolist() == result.tokens
        assert result.usage.prompt_tokens == len(prompt)
    alone = t5.generate(prompts[1], max_tokens=12, temperature=0, ignore_eos=True)
    assert alone.tokens == together[1].tokens == together[4].tokens
    stats = t5.stats()
    assert stats.running == stats.waiting == stats.pages_in_use == 0


def test_a_vector_is_the_mean_of_the_encoder(t5: sterna.LLM) -> None:
    for case in cases("t5-relu"):
        want = case["encoder"].mean(axis=0)
        np.testing.assert_allclose(t5.embed(case["tokens"].tolist()), want / np.linalg.norm(want), atol=3e-6)


def test_what_needs_a_text_to_encode(t5: sterna.LLM) -> None:
    with pytest.raises(sterna.UnsupportedModelError, match="a text that it encodes"):
        t5.score([5, 6, 7])
    limit = t5.info.max_embedded
    with pytest.raises(sterna.ContextOverflowError):
        t5.generate([5] * (limit + 1))
    with pytest.raises(sterna.ArgumentError, match="not in the vocabulary"):
        t5.engine.submit([0], context=_core.SequenceContext(encoder_tokens=[320]), context_key=b"x")


def test_encoder_tokens_need_an_encoder() -> None:
    with sterna.load(path_of("qwen3"), threads=2) as llm, pytest.raises(sterna.ArgumentError, match="no encoder"):
        llm.engine.submit([5], context=_core.SequenceContext(encoder_tokens=[5]), context_key=b"x")


@pytest.mark.reference
def test_values_of_the_decoder_can_be_looked_at_and_those_of_the_encoder_cannot() -> None:
    file = Gguf(path_of())
    program = trace(file).program
    name = next(node.name for node in program.nodes("logits") if node.op == "add")
    case = cases()[0]
    context = _core.SequenceContext(encoder_tokens=case["tokens"])
    encoder = Interpreter(program, TensorValues(file), kv_dtype="f32", function="encode")
    encoder.run(case["tokens"])
    decoder = Interpreter(program, TensorValues(file), kv_dtype="f32", memory=encoder)
    decoder.run(case["decoder_tokens"])
    engine = engine_of(fused=False)
    for key in (b"1", b"1", b"2"):  # the encoder runs before, and with an equal key as well
        got = engine.submit_score(case["decoder_tokens"], hidden=name, context=context, context_key=key).scores()
        want = decoder.values[name]
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    other = next(node.name for node in program.nodes("encode") if node.op == "add")
    with pytest.raises(sterna.ArgumentError, match=f'the model has no value "{other}"'):
        engine.submit_score(case["decoder_tokens"], hidden=other, context=context, context_key=b"1")
    engine.close()

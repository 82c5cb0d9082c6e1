"""The engine and the public API on a GPU: texts are those of the logits, whatever runs beside them and is cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
import sterna
from cuda_plans import MOST, compiled, needs_cuda, path_of
from sterna import _core
from sterna.errors import ArgumentError
from sterna.trace import trace

pytestmark = needs_cuda

PROMPT = [5, 9, 100, 17, 33, 8]
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm() -> Iterator[sterna.LLM]:
    with sterna.load(path_of("llama3"), device="cuda", context=128, threads=1) as model:
        yield model


def test_info(llm: sterna.LLM) -> None:
    (device, *_) = _core.cuda_devices()
    assert llm.info.device == f"cuda:0 ({device['name']})"
    assert llm.info.isa == f"sm_{device['compute_capability'].replace('.', '')}"
    assert llm.info.no_gpu is None
    assert llm.info.memory.device == "cuda:0" and llm.info.memory.budget is not None
    assert 0 < llm.info.memory.budget <= 0.9 * device["total_bytes"]
    assert sterna.plan(path_of("llama3"), device="auto").device == "cuda:0"


@pytest.mark.parametrize("name", ["llama3", "qwen3next-small", "llama-256.mix-Q4_K_M"])
def test_memory_is_as_planned(name: str) -> None:
    file = _core.Gguf(path_of(name))
    program = trace(file).program.fuse()
    options = {"kv_dtype": "q8_0", "max_tokens": 64, "max_outputs": 8}
    weights, scratch, pools = _core.plan_memory_cuda(program, **options)
    plan = _core.compile_cuda(program, file, threads=1, **options)
    assert (plan.weight_bytes, plan.kv_pools) == (weights, pools)
    assert plan.scratch_bytes == pytest.approx(scratch, rel=0.05)


def test_kernels_are_timed() -> None:
    plan = compiled(path_of("llama3"))
    with pytest.raises(ArgumentError, match="nothing has run"):
        plan.time_kernels(1)
    rows = [0, 1, 2]
    plan.run([5, 9, 100], rows, [0] * 3, [[0]], rows)
    times = plan.time_kernels(1)
    layers = trace(_core.Gguf(path_of("llama3"))).program.kv_slots
    assert times["attend"][0] == len(layers) and times["attend"][1] > 0
    assert times["all"][0] == sum(steps for name, (steps, _) in times.items() if name != "all")
    assert times["all"][1] > times["matmul"][1] > 0
    with pytest.raises(ArgumentError, match="repetitions is 0"):
        plan.time_kernels(0)


def test_greedy_text_is_that_of_the_logits(llm: sterna.LLM) -> None:
    text = llm.generate(PROMPT, max_tokens=6, **GREEDY).tokens
    rows = llm.logits([*PROMPT, *text])[len(PROMPT) - 1 : -1]
    assert text == rows.argmax(axis=1).tolist()


def test_company_cache_and_guesses_change_nothing(llm: sterna.LLM) -> None:
    prompts = [PROMPT, PROMPT[::-1], [7] * 9]
    alone = [llm.generate(prompt, max_tokens=5, draft_tokens=0, seed=3, temperature=1.0, ignore_eos=True).tokens for prompt in prompts]
    together = llm.generate(prompts, max_tokens=5, draft_tokens=2, seed=3, temperature=1.0, ignore_eos=True)
    assert [each.tokens for each in together] == alone


def test_pages_go_out_and_come_back(llm: sterna.LLM) -> None:
    tokens = (np.arange(70) * 7 % 300 + 10).astype(np.int32)
    llm.engine.submit(tokens, max_tokens=0).events()
    assert llm.engine.cached_pages(tokens) == 1
    pages = llm.engine.export_pages(tokens, 0, 1)
    other = tokens.copy()
    other[3] += 1  # what these pages are of is for the caller to know
    assert llm.engine.import_pages(other, 0, pages) >= 1
    (again,) = llm.engine.export_pages(other, 0, 1)
    assert (again == pages[0]).all()


def test_a_draft_on_the_same_device(llm: sterna.LLM) -> None:
    want = llm.generate(PROMPT, max_tokens=5, **GREEDY).tokens
    path = path_of("llama3")
    with sterna.load(path, device="cuda", draft=path, context=64, max_sequences=1, threads=1) as guessing:
        out = guessing.generate(PROMPT, max_tokens=5, draft_tokens=2, **GREEDY)
    assert out.tokens == want
    assert out.timings.accepted_tokens == out.timings.draft_tokens > 0


def test_an_encoder(tmp_path: Path) -> None:
    (_, case, _) = oracle.cases("bert", "hidden")
    file = _core.Gguf(path_of("bert"))
    plan = _core.compile_cuda(trace(file).program.fuse(), file, kv_dtype="f32", max_tokens=64, max_outputs=4, threads=1)
    engine = _core.Engine(plan, _core.Pieces.from_gguf(file), context=64)
    vector = engine.submit_embed(case.tokens).scores()
    engine.close()
    want = case.logits.mean(axis=0)
    assert np.linalg.norm(vector[0] - want) <= 2e-4 * np.linalg.norm(want)


def test_an_encoder_and_a_decoder() -> None:
    file = _core.Gguf(path_of("t5-relu"))
    plan = _core.compile_cuda(trace(file).program.fuse(), file, kv_dtype="f32", max_tokens=64, max_outputs=16, threads=1)
    engine = _core.Engine(plan, _core.Pieces.from_gguf(file), context=128, kv_tokens=1024)
    with np.load(oracle.folder("t5-relu") / "reference.npz") as arrays:
        tokens, begun, want = arrays["tokens_1"], arrays["decoder_tokens_1"][:MOST], arrays["logits_1"][:MOST]
    context = _core.SequenceContext(encoder_tokens=tokens)
    found = engine.submit_score(begun, logits=True, context=context, context_key=b"a text").scores()
    engine.close()
    assert oracle.relative_rms([(found, want)]) <= 2e-4

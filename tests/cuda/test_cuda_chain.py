"""Models divided between the CPU and a GPU: against transformers, each row the same bits whatever runs beside it, and
loaded with `gpu_layers`."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import sterna
from cuda_plans import EMULATED, MOST, cases, needs_cuda, path_of
from kernel_cases import assert_same_bits
from oracle_marks import MISSES
from plan_runs import run, run_company
from sterna import _core
from sterna._core import Gguf
from sterna.device import CPU, find_devices
from sterna.diff import diff_parts
from sterna.trace import trace

pytestmark = needs_cuda

MARK = 2e-4  # of the oracles, with a cache in f32
KINDS = ["llama3", "gemma3", "mixtral", "deepseek2-groups", "qwen3next-small", "mamba2-small", "gpt-oss-small"]
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}


def divided(name: str, cut: int, *, gpu_first: bool = False, **options: object) -> _core.ChainPlan:
    """The first part on the CPU and the second on the GPU, or the other way round."""
    file = Gguf(path_of(name))
    program = trace(file, embed=True).program
    rows = min(MOST * 3, 512)
    options = {"threads": 1, "max_tokens": rows, "max_outputs": rows, **options}
    compilers = [_core.compile_cpu, _core.compile_cuda]
    if gpu_first:
        compilers.reverse()
    parts = program.split_layers(cut)
    plans = [compile_part(part.fuse(), file, **options) for compile_part, part in zip(compilers, parts, strict=True)]
    chain = _core.compile_chain(program.fuse(), plans)
    chain.reserve_pages(5)
    return chain


@pytest.mark.parametrize("gpu_first", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_float_models(name: str, gpu_first: bool) -> None:
    chain = divided(name, 1, gpu_first=gpu_first, kv_dtype="f32")
    error = oracle.relative_rms([(run(chain, case.tokens), case.logits) for case in cases(name)])
    print(f"{name}: {error:.2e}")
    assert error <= max(MARK, 1.1 * MISSES.get(name, {}).get("f32", 0.0))


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen3next-small", "llama-256.mix-Q4_K_M"])
def test_rows_depend_on_their_own_sequence(name: str) -> None:
    tokens = cases(name)[-1].tokens[: 8 if EMULATED else None]
    texts = {"a": tokens, "b": np.roll(tokens, 1)[: len(tokens) * 2 // 3], "c": np.roll(tokens, 2)[: len(tokens) // 3]}
    chain = divided(name, 1)
    want = {key: run(chain, text) for key, text in texts.items()}
    steps = [{key: 1 for key, text in texts.items() if i < len(text)} for i in range(len(tokens))]
    for key, got in run_company(chain, texts, steps).items():
        assert_same_bits(got, want[key], f"{key} in company")
    assert_same_bits(run(chain, tokens, 3, pages=(2, 3)), want["a"], "in chunks of 3, on pages that others have left")


@pytest.mark.parametrize("gpu_first", [False, True])
@pytest.mark.parametrize("name", ["llama3", "qwen3next-small"])
def test_a_batch_that_was_interrupted_behind_the_first_part_runs_again(name: str, gpu_first: bool) -> None:
    chain = divided(name, 1, gpu_first=gpu_first)
    tokens = cases(name)[-1].tokens[:7]
    want = run(chain, tokens)
    for begin, end in ((0, 5), (5, 6), (6, 7)):
        batch = tokens[begin:end], np.arange(begin, end), np.zeros(end - begin, int), [[3]]
        chain.parts[0].run(*batch, [])
        assert_same_bits(chain.run(*batch, np.arange(end - begin)), want[begin:end], f"from {begin} on")


def test_vectors_and_the_largest_logits() -> None:
    chain, other = divided("llama3", 1), divided("llama3", 1, gpu_first=True)
    batch = [5, 9, 17, 33], np.arange(4), np.zeros(4, int), [[0]]
    vector = chain.run(*batch, [3], "encode")
    assert vector.shape == (1, chain.encoding_size) and np.isfinite(vector).all()
    np.testing.assert_allclose(vector, other.run(*batch, [3], "encode"), rtol=1e-3, atol=1e-4)
    assert chain.most_largest > 0 and other.most_largest == 0  # it is the last part that finds them
    rows = chain.run(*batch, [1, 3], largest=[2, 0])
    found = chain.largest_logits(0)
    assert [token for token, _ in found[:2]] == np.argsort(-rows[0], kind="stable")[:2].tolist()
    assert chain.largest_logits(1) == []


@pytest.mark.parametrize("name", ["llama3", "mamba2-small", "llama-256.Q4_0"])
def test_each_value_is_the_interpreters(name: str) -> None:
    """`sterna diff --device cuda --gpu-layers`."""
    file = Gguf(path_of(name))
    program = trace(file).program
    first, last = program.split_layers(1)
    (device,) = find_devices("cuda")
    parts = [(first.fuse(), CPU), (last.fuse(), device)]
    differences = list(diff_parts(file, program, parts, list(range(3, 9)), kv_dtype="f32", threads=1))
    assert {"send", "receive"} <= {each.name for each in differences}
    assert not [each for each in differences if each.diverges]


@pytest.mark.parametrize("name", ["llama3", "qwen3next-small"])
def test_loaded(name: str) -> None:
    (device, *_) = _core.cuda_devices()
    prompt = [5, 9, 10, 17, 33, 8]
    with sterna.load(path_of(name), gpu_layers=1, context=128, threads=1) as llm:
        parts = llm.info.memory.parts
        assert llm.info.device == f"cpu + cuda:0 ({device['name']}), 1 of {parts[0].layers + 1} layers"
        assert [part.device for part in parts] == ["cpu", "cuda:0"] and llm.info.memory.fits
        text = llm.generate(prompt, max_tokens=5, **GREEDY).tokens
        rows = llm.logits([*prompt, *text])[len(prompt) - 1 : -1]
        assert text == rows.argmax(axis=1).tolist()
        prompts = [prompt, prompt[::-1], [7] * 9]
        alone = [llm.generate(each, max_tokens=4, seed=3, ignore_eos=True).tokens for each in prompts]
        assert [each.tokens for each in llm.generate(prompts, max_tokens=4, seed=3, ignore_eos=True)] == alone
        with sterna.load(path_of(name), device="cpu", context=128, threads=1) as whole:
            assert oracle.relative_rms([(llm.logits(prompt), whole.logits(prompt))]) < 3e-3


@pytest.mark.parametrize("name", ["llama3", "qwen3next-small"])
def test_memory_is_as_planned(name: str) -> None:
    file = Gguf(path_of(name))
    _, last = trace(file).program.split_layers(1)
    options = {"kv_dtype": "q8_0", "max_tokens": 512, "max_outputs": 8}
    weights, scratch, pools = _core.plan_memory_cuda(last.fuse(), **options)
    plan = _core.compile_cuda(last.fuse(), file, threads=1, **options)
    assert (plan.weight_bytes, plan.kv_pools) == (weights, pools)
    assert plan.scratch_bytes == pytest.approx(scratch, rel=0.05)

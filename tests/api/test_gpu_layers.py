"""`load(gpu_layers=N)`: a model divided between the CPU and a GPU, for which a second plan on the CPU stands in here: texts,
vectors and numbers are those of the whole model, bit for bit; what is refused; and memory, planned for both devices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import oracle
import pytest
import sterna
from lora_files import random_pairs, write_adapter, write_merged
from sterna import ArgumentError, DeviceError, MemoryBudgetError, UnsupportedModelError, _core
from sterna.cli.main import main

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 12}
FREE = 1 << 30
_compile_cpu = _core.compile_cpu


class Gpu:
    """One on which everything is computed as on the CPU; it knows what was compiled for which device."""

    def __init__(self) -> None:
        self.free = FREE
        self.compiled: list[str] = []

    def compile_cuda(self, program: _core.Program, file: _core.Gguf, *, device: int, **options: Any) -> _core.CpuPlan:
        self.compiled.append(f"cuda:{device}")
        return _compile_cpu(program, file, **options)

    def compile_cpu(self, *arguments: Any, **options: Any) -> _core.CpuPlan:
        self.compiled.append("cpu")
        return _compile_cpu(*arguments, **options)


def device() -> dict[str, Any]:
    sizes = {"multiprocessors": 132, "total_bytes": 2 * FREE, "free_bytes": FREE}
    return {"number": 0, "name": "GPU of test", "compute_capability": "9.0", "problem": "", **sizes}


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    found = Gpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STERNA_DEVICE", raising=False)
        patch.setattr(_core, "cuda_problem", lambda: "")
        patch.setattr(_core, "cuda_devices", lambda: [device()])
        patch.setattr(_core, "cuda_free_bytes", lambda number: found.free)
        patch.setattr(_core, "compile_cuda", found.compile_cuda)
        patch.setattr(_core, "compile_cpu", found.compile_cpu)
        yield found


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STERNA_DEVICE", raising=False)
    monkeypatch.setattr(_core, "cuda_problem", lambda: "there is no driver")
    monkeypatch.setattr(_core, "cuda_devices", list)


@pytest.fixture(scope="module")
def lora(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "x.gguf", random_pairs(tiny_path, 1))


@pytest.fixture(scope="module")
def whole(tiny_path: Path, lora: Path) -> Iterator[sterna.LLM]:
    with sterna.load(tiny_path, device="cpu", context=512, threads=2, lora={"x": lora}) as llm:
        yield llm


@pytest.fixture(scope="module")
def divided(gpu: Gpu, tiny_path: Path, lora: Path) -> Iterator[sterna.LLM]:
    with sterna.load(tiny_path, gpu_layers=1, context=512, threads=2, lora={"x": lora}) as llm:
        yield llm


def test_info(divided: sterna.LLM, whole: sterna.LLM) -> None:
    info = divided.info
    layers = info.memory.parts[0].layers + 1
    assert info.device == f"cpu + cuda:0 (GPU of test), 1 of {layers} layers"
    assert info.isa == f"{_core.chosen_isa()} + sm_90"
    assert (info.gpu_layers, info.threads, info.no_gpu) == (1, 2, None)
    assert (whole.info.gpu_layers, whole.info.memory.parts) == (0, ())
    assert f"{info.device}, {info.isa}, 2 threads" in str(info)
    assert info.fingerprint == whole.info.fingerprint
    assert info.vocab_size == whole.info.vocab_size and info.embedding_size == whole.info.embedding_size
    assert info.to_dict()["gpu_layers"] == 1


def test_all_that_is_computed(divided: sterna.LLM, whole: sterna.LLM, prompt: list[int]) -> None:
    soft = np.random.default_rng(2).standard_normal((4, whole.engine.hidden_size)).astype(np.float32)
    for terms in ({}, {"lora": ("x", 0.7)}, {"embeddings": soft}, {"embeddings": soft, "lora": "x"}):
        assert np.array_equal(divided.logits(prompt, **terms), whole.logits(prompt, **terms)), terms
        for draft_tokens in (0, 4):
            options = {"seed": 3, "temperature": 1.0, "logprobs": 2, "max_tokens": 30, "ignore_eos": True, **terms}
            ours, theirs = (llm.generate(prompt, draft_tokens=draft_tokens, **options) for llm in (divided, whole))
            assert (ours.tokens, ours.logprobs) == (theirs.tokens, theirs.logprobs), terms
    for layer in range(-1, whole.info.gpu_layers + 3):
        assert np.array_equal(divided.hidden_states(prompt, layer), whole.hidden_states(prompt, layer)), layer
    assert np.array_equal(divided.embed([prompt, prompt[:5]]), whole.embed([prompt, prompt[:5]]))
    assert divided.perplexity("some text " * 50, context=64) == whole.perplexity("some text " * 50, context=64)


def test_company_forks_and_the_cache(divided: sterna.LLM, whole: sterna.LLM) -> None:
    trunk = np.random.default_rng(5).integers(3, 320, 150).tolist()
    prompts = [[*trunk, *tail] for tail in ([5], [6, 7], [], [9] * 40)]
    want = [whole.generate(prompt, **GREEDY).tokens for prompt in prompts]
    assert [each.tokens for each in divided.generate(prompts, **GREEDY)] == want
    again = divided.generate(prompts[0], **GREEDY)
    assert again.tokens == want[0]
    assert again.usage.cached_tokens >= 128


@pytest.mark.parametrize(("name", "layers"), [("gemma3", 3), ("qwen3next-small", 1), ("phi3-small", 1), ("mamba", 1)])
def test_families(gpu: Gpu, name: str, layers: int) -> None:
    path = oracle.model_path(name)
    tokens = np.random.default_rng(1).integers(3, 60, 50).tolist()
    options = {"context": 128, "threads": 2, "kv_dtype": "q8_0"}
    with sterna.load(path, device="cpu", **options) as one, sterna.load(path, gpu_layers=layers, **options) as two:
        assert np.array_equal(one.logits(tokens), two.logits(tokens))
        assert one.generate(tokens[:9], **GREEDY).tokens == two.generate(tokens[:9], **GREEDY).tokens


def test_none_and_all_divide_nothing(gpu: Gpu, tiny_path: Path) -> None:
    for gpu_layers, devices in ((0, ["cpu"]), (2**40, ["cuda:0"])):
        gpu.compiled.clear()
        with sterna.load(tiny_path, gpu_layers=gpu_layers, context=64, threads=1) as llm:
            assert gpu.compiled == devices
            assert llm.info.memory.parts == ()
            assert llm.info.device.startswith(devices[0]) and llm.info.no_gpu is None
            assert (llm.info.gpu_layers > 0) == (gpu_layers > 0)
    assert sterna.plan(tiny_path, n_gpu_layers=1).parts  # type: ignore[call-arg]


def test_a_draft_model_is_on_the_cpu(gpu: Gpu, tiny_path: Path, divided: sterna.LLM) -> None:
    gpu.compiled.clear()
    with sterna.load(tiny_path, gpu_layers=1, draft=tiny_path, context=512, threads=1) as llm:
        assert gpu.compiled == ["cpu", "cuda:0", "cpu"]
        out = llm.generate([5, 6, 7], draft_tokens=2, **GREEDY)
        assert out.tokens == divided.generate([5, 6, 7], draft_tokens=0, **GREEDY).tokens
        assert out.timings.accepted_tokens == out.timings.draft_tokens > 0
        first, last = llm.info.memory.parts
        assert first.draft == llm.info.memory.draft > 0 and last.draft == 0


def test_saved_pages_are_not_those_of_the_whole(gpu: Gpu, tiny_path: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(6).integers(3, 320, 200).tolist()
    found = []
    for gpu_layers in (0, 1, 1, 0):
        with sterna.load(tiny_path, gpu_layers=gpu_layers, context=512, threads=1, prefix_cache=tmp_path) as llm:
            completion = llm.generate(tokens, **GREEDY)
            found.append((completion.usage.cached_tokens > 0, completion.tokens))
    assert [cached for cached, _ in found] == [False, False, True, True]
    assert len({tuple(text) for _, text in found}) == 1


def test_the_first_value_that_is_not_finite_is_named(gpu: Gpu, tiny_path: Path, tmp_path: Path) -> None:
    """In either part, as in the whole."""
    names = [tensor.name for tensor in gguf.GGUFReader(tiny_path).tensors if tensor.name.endswith("ffn_down.weight")]
    shape = next(tensor.shape for tensor in gguf.GGUFReader(tiny_path).tensors if tensor.name == names[0])
    k, n = (int(extent) for extent in shape)
    pairs = np.full((1, k), 3e38, np.float32), np.ones((n, 1), np.float32)
    for name in (names[0], names[-1]):
        broken = write_merged(tiny_path, tmp_path / f"{name}.gguf", {name: pairs}, 1.0)
        said = []
        for gpu_layers in (0, 1):
            with sterna.load(broken, gpu_layers=gpu_layers, context=64, threads=1) as llm:
                with pytest.raises(sterna.NumericError) as caught:
                    llm.generate([5, 6, 7], **GREEDY)
                said.append(str(caught.value))
        assert said[0] == said[1]
        assert f"layers.{name.split('.')[1]}/" in said[0]


@pytest.mark.parametrize("given", [-1, 1.0, "1", True, [1]])
def test_what_is_no_count(tiny_path: Path, given: Any) -> None:
    for call in (sterna.load, sterna.plan):
        with pytest.raises(ArgumentError, match=f"gpu_layers is {re.escape(repr(given))}, must be at least 0"):
            call(tiny_path, gpu_layers=given)  # type: ignore[operator]


def test_the_cpu_has_no_layers_on_a_gpu(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (sterna.load, sterna.plan):
        with pytest.raises(ArgumentError, match='gpu_layers is 2, and device "cpu"'):
            call(tiny_path, device="cpu", gpu_layers=2)  # type: ignore[operator]
    assert sterna.plan(tiny_path, device="cpu", gpu_layers=0).device == "cpu"
    monkeypatch.setenv("STERNA_DEVICE", "cpu")
    with pytest.raises(ArgumentError, match='gpu_layers is 2, and STERNA_DEVICE "cpu"'):
        sterna.load(tiny_path, gpu_layers=2)
    assert sterna.plan(tiny_path, gpu_layers=0).device == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("auto", "cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="is not there: there is no driver"):
            sterna.load(tiny_path, device=name, gpu_layers=1)
        plan = sterna.plan(tiny_path, device=name, gpu_layers=1, context=256)
        first, last = plan.parts
        assert (first.device, last.device) == ("cpu", "cuda:1" if name == "cuda:1" else "cuda:0")
        assert first.budget is not None and last.budget is None and plan.budget is None and plan.fits
    with sterna.load(tiny_path, gpu_layers=0, context=64, threads=1) as llm:
        assert (llm.info.device, llm.info.no_gpu) == ("cpu", None)
    assert main(["plan", str(tiny_path), "--gpu-layers", "1", "-c", "256"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["device", "cpu + cuda:0"] in lines and ["fits", "unknown"] in lines
    assert ["cuda:0,", "1 layers"] in lines and ["budget", "unknown: there is no driver"] in lines
    assert main(["run", str(tiny_path), "Hi", "--raw", "--gpu-layers", "1"]) == 1
    assert "there is no driver" in capsys.readouterr().err


def test_models_that_cannot_be_divided(gpu: Gpu) -> None:
    for call in (sterna.load, sterna.plan):
        with pytest.raises(UnsupportedModelError, match=r"gpu_layers is 1, of 2: layers cannot be divided: .* encoder"):
            call(oracle.model_path("bert"), gpu_layers=1)  # type: ignore[operator]
    with pytest.raises(UnsupportedModelError, match=r"gpu_layers is 1, of \d: layer \d reads the keys of layer \d: the two must"):
        sterna.load(oracle.model_path("gemma4-small"), gpu_layers=1)
    gpu.compiled.clear()
    with sterna.load(oracle.model_path("bert"), gpu_layers=2, threads=1) as llm:
        assert gpu.compiled == ["cuda:0"] and llm.info.gpu_layers == 2


def test_memory_is_planned_for_both(gpu: Gpu, divided: sterna.LLM) -> None:
    plan = divided.info.memory
    assert plan.device == "cpu + cuda:0"
    first, last = plan.parts
    for name in ("weights", "kv", "scratch", "total"):
        assert getattr(plan, name) == getattr(first, name) + getattr(last, name)
    assert first.budget is not None and last.budget == int(0.9 * FREE)
    assert plan.budget == first.budget + last.budget
    (pool,) = plan.pools
    assert plan.kv == pool.pages * pool.page_bytes
    shown = plan.to_dict()
    assert shown["parts"][1]["total"] == last.total and shown["parts"][1]["fits"] is True


@pytest.mark.parametrize("name", ["gemma3", "granite-hybrid-small", "nemotron-h"])
def test_the_plan_is_what_is_allocated(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plans: list[_core.ChainPlan] = []
    join = _core.compile_chain

    def compile_chain(*arguments: Any) -> _core.ChainPlan:
        plans.append(join(*arguments))
        return plans[-1]

    monkeypatch.setattr(_core, "compile_chain", compile_chain)
    path = oracle.model_path(name)
    with sterna.load(path, gpu_layers=1, context=128, threads=2) as llm:
        memory = llm.info.memory
    (chain,) = plans
    first = chain.parts[0]
    assert (memory.parts[0].weights, memory.parts[0].scratch) == (first.weight_bytes, first.scratch_bytes)
    assert sorted((pool.window, pool.page_bytes) for pool in memory.pools) == sorted(chain.kv_pools)


def test_the_context_is_what_both_have_room_for(gpu: Gpu, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"gpu_layers": 1, "max_sequences": 1}
    full = sterna.plan(tiny_path, **settings)
    first, last = full.parts
    page = {part.device: part.kv // (full.kv_tokens // 64) for part in full.parts}
    try:
        gpu.free = int((last.total - 3 * page["cuda:0"]) / 0.9) + 1
        tight = sterna.plan(tiny_path, **settings)
        assert tight.fits and tight.context == tight.max_context == full.context - 3 * 64
        assert not sterna.plan(tiny_path, context=full.context, **settings).fits
        with pytest.raises(
            MemoryBudgetError, match=rf"^the 1 layers on cuda:0 need .*, the memory budget on cuda:0 is .*; a context of {tight.context} tokens would fit$"
        ):
            sterna.load(tiny_path, context=full.context, **settings)
        monkeypatch.setattr("sterna.memory_budget.available_memory", lambda: int((first.total - 5 * page["cpu"]) / 0.8) + 1)
        tighter = sterna.plan(tiny_path, **settings)
        assert tighter.fits and tighter.context == full.context - 5 * 64
        with pytest.raises(MemoryBudgetError, match=rf"the {first.layers} layers on cpu need .*; the 1 layers on cuda:0 need"):
            sterna.load(tiny_path, context=full.context, **settings)
    finally:
        gpu.free = FREE
    named = sterna.plan(tiny_path, memory_budget=last.total - 1, context=full.context, **settings)
    assert [part.budget for part in named.parts] == [last.total - 1] * 2
    assert not named.fits


def test_commands(gpu: Gpu, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_path), "--device", "cuda", "-ngl", "1", "-c", "256", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == "cpu + cuda:0" and [part["layers"] for part in shown["parts"]][1] == 1
    assert main(["run", str(tiny_path), "Hi", "--raw", "-n", "3", "--temp", "0", "-t", "1", "-c", "64"]) == 0
    want = capsys.readouterr().out
    gpu.compiled.clear()
    options = ["--raw", "-n", "3", "--temp", "0", "-t", "1", "-c", "64", "--gpu-layers", "1"]
    assert main(["run", str(tiny_path), "Hi", *options]) == 0
    assert capsys.readouterr().out == want
    assert gpu.compiled == ["cpu", "cuda:0"]
    assert main(["bench", str(tiny_path), "-p", "8", "-n", "2", "-r", "1", "-t", "1", "-o", "json", "-ngl", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["device"] for row in rows} == {f"cpu + cuda:0 (GPU of test), 1 of {shown['parts'][0]['layers'] + 1} layers"}
    assert main(["diff", str(tiny_path), "--device", "cuda", "-ngl", "1", "--all", "--json"]) == 0
    values = [value["name"] for value in json.loads(capsys.readouterr().out)]
    assert values.index("send") + 1 == values.index("receive")
    assert main(["diff", str(tiny_path), "-ngl", "1"]) == 1  # its device is the CPU
    assert 'and device "cpu"' in capsys.readouterr().err


def test_hidden_states_have_the_same_names(gpu: Gpu) -> None:
    """The first that falcon-40b's last layer does with the rows it reads is taking those whose logits are wanted."""
    path = oracle.model_path("falcon-40b")
    tokens = np.random.default_rng(4).integers(3, 60, 20).tolist()
    options = {"context": 64, "threads": 1}
    with sterna.load(path, device="cpu", **options) as one, sterna.load(path, gpu_layers=1, **options) as two:
        for layer in (0, 1, 2):
            assert np.array_equal(one.hidden_states(tokens, layer), two.hidden_states(tokens, layer)), layer

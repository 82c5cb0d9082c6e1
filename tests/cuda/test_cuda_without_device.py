"""Where there is no GPU: what says so, what raises, and which device "auto" is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import sterna
from attention_layer import Attention, Shape
from cuda_plans import in_process
from kernel_cases import Net
from sterna import ArgumentError, DeviceError, UnsupportedModelError, _core
from sterna.cli.main import main

PROBLEM = "there is no driver on this machine"
MODEL = oracle.model_path("llama3")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "cuda_problem", lambda: PROBLEM)
    monkeypatch.setattr(_core, "cuda_devices", list)


def device(number: int, free_bytes: int) -> dict[str, Any]:
    fields = {"name": f"GPU of test {number}", "compute_capability": "9.0", "multiprocessors": 132}
    return {"number": number, **fields, "total_bytes": 2 * free_bytes, "free_bytes": free_bytes, "problem": ""}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two, with room for a small model on the second one only."""
    found = [device(0, 1 << 16), device(1, 1 << 30)]
    monkeypatch.setattr(_core, "cuda_problem", lambda: "")
    monkeypatch.setattr(_core, "cuda_devices", lambda: found)
    monkeypatch.setattr(_core, "cuda_free_bytes", lambda number: found[number]["free_bytes"])
    return found


LOADING = f"""
found["problem"], found["devices"] = _core.cuda_problem(), _core.cuda_devices()
for device in ("cuda", "cuda:1"):
    try:
        sterna.load({str(MODEL)!r}, device=device)
    except sterna.DeviceError as error:
        found[device] = str(error)
with sterna.load({str(MODEL)!r}, context=64, threads=1) as llm:
    found["info"] = [llm.info.device, llm.info.no_gpu, str(llm.info)]
    found["tokens"] = len(llm.generate([5, 6], max_tokens=3, ignore_eos=True).tokens)
"""


@pytest.mark.parametrize("kind", ["missing", "text", "another library"])
def test_a_library_that_cannot_be_used_is_a_reason_and_no_failure(kind: str, tmp_path: Path) -> None:
    library = tmp_path / "libsterna_cuda.so"
    if kind == "text":
        library.write_text("no library")
    elif kind == "another library":
        library = Path(_core.__file__)  # without the symbol
    found = in_process(LOADING, STERNA_CUDA_LIBRARY=str(library))
    problem = found["problem"]
    assert str(library) in problem
    assert ("of another version of sterna" if kind == "another library" else "cannot be opened") in problem
    assert found["devices"] == []
    for name in ("cuda", "cuda:1"):
        assert found[name] == f"device {name!r} is not there: {problem}; use device=\"cpu\""
    assert found["info"][:2] == ["cpu", problem]
    assert f"; no GPU: {problem}" in found["info"][2]
    assert found["tokens"] == 3


@pytest.mark.usefixtures("no_gpu")
def test_what_needs_a_gpu_says_why_there_is_none() -> None:
    for name in ("cuda", "cuda:7"):
        with pytest.raises(DeviceError, match=re.escape(f"device '{name}' is not there: {PROBLEM}; use device=\"cpu\"")):
            sterna.load(MODEL, device=name)
    for given in ("gpu", "cuda:", "cuda:-1", "cuda:1000", "CUDA", "", None, 0):
        for call in (sterna.load, sterna.plan):
            with pytest.raises(ArgumentError, match="device is"):
                call(MODEL, device=given)  # type: ignore[operator]
    with sterna.load(MODEL, context=64, device="cpu") as llm:
        assert llm.info.no_gpu is None
        assert "GPU" not in str(llm.info)
    with sterna.load(MODEL, context=64) as llm:
        assert (llm.info.device, llm.info.no_gpu) == ("cpu", PROBLEM)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_can_be_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    plan = sterna.plan(MODEL, device="cuda:2", context=512)
    assert plan.device == "cuda:2" and plan.budget is None and plan.max_context is None and plan.fits
    assert plan.weights > 0 and plan.scratch > 0 and plan.kv == 8 * plan.pools[0].page_bytes
    # The same weights, packed for other kernels.
    assert plan.weights == pytest.approx(sterna.plan(MODEL, device="cpu").weights, rel=0.2)
    tight = sterna.plan(MODEL, device="cuda", context=512, memory_budget=plan.total - 1)
    assert tight.device == "cuda:0" and not tight.fits and tight.max_context == 448
    with pytest.raises(sterna.MemoryBudgetError, match="the memory budget on cuda:0 is"):
        tight.check()
    assert main(["plan", str(MODEL), "--device", "cuda"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["device"], lines["budget"], lines["fits"]) == ("cuda:0", f"unknown: {PROBLEM}", "unknown")
    assert main(["plan", str(MODEL), "--device", "cuda", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == "cuda:0" and shown["budget"] is None


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", [["run", "Hi", "--raw"], ["bench", "-p", "8", "-n", "0"], ["perplexity", __file__]])
def test_commands_fail_in_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], str(MODEL), *command[1:], "--device", "cuda"]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if PROBLEM in line]


def doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["doctor", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("no_gpu")
def test_doctor_says_why_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor(capsys)
    assert report["gpu"] == {"cuda": f"none: {PROBLEM}"}
    assert PROBLEM not in str(report["problems"])  # a machine without one is in order


@pytest.mark.usefixtures("gpus")
def test_doctor_lists_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = doctor(capsys)["gpu"]
    assert gpu.keys() == {"cuda:0", "cuda:1"}
    assert gpu["cuda:1"] == "GPU of test 1, compute capability 9.0, 132 multiprocessors, 2.1 GB, 1.1 GB free"


def test_a_number_that_is_not_there_is_an_argument(gpus: list[dict[str, Any]]) -> None:
    for call in (sterna.load, sterna.plan):
        with pytest.raises(ArgumentError, match=r"device is 'cuda:2', the last one that is there is 'cuda:1'"):
            call(MODEL, device="cuda:2")  # type: ignore[operator]
    assert sterna.plan(MODEL, device="cuda:1").budget == int(0.9 * gpus[1]["free_bytes"])
    assert sterna.plan(MODEL, device="cuda").device == "cuda:0"
    assert not sterna.plan(MODEL, device="cuda").fits


def test_auto_is_the_first_gpu_that_the_model_fits_on(
    gpus: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sterna.plan(MODEL).device == "cuda:1"
    assert sterna.plan(MODEL, device="cpu").device == "cpu"
    assert sterna.plan(MODEL, memory_budget="1GiB").device == "cuda:0"  # who names a budget means it
    gpus.pop()
    with sterna.load(MODEL, context=64) as llm:
        assert llm.info.device == llm.info.memory.device == "cpu"
        assert llm.info.no_gpu is not None and re.search(r"needs .* with a context of 64 tokens, cuda:0 \(GPU of test 0\) has 57\.6 KiB", llm.info.no_gpu)
    # A context that nobody asked for is not cut down to nothing to make the model fit.
    room = sterna.plan(MODEL, device="cuda", memory_budget="1GiB")
    assert room.context == 512
    gpus[0]["free_bytes"] = int((room.total - room.pools[0].page_bytes) / 0.9) + 1
    assert sterna.plan(MODEL).device == "cpu"
    capped = sterna.plan(MODEL, device="cuda")
    assert capped.fits and capped.context == 448
    assert sterna.plan(MODEL, context=448).device == "cuda:0"

    def refuse(*_: object, **__: object) -> None:
        raise UnsupportedModelError("no such kernel")

    gpus[0]["free_bytes"] = 1 << 30
    assert sterna.plan(MODEL).device == "cuda:0"
    monkeypatch.setattr(_core, "plan_memory_cuda", refuse)
    assert sterna.plan(MODEL).device == "cpu"
    with pytest.raises(UnsupportedModelError, match="no such kernel"):
        sterna.plan(MODEL, device="cuda")


@pytest.mark.parametrize(("dim", "value_dim"), [(577, 64), (64, 577)])
def test_heads_that_are_too_large_are_found_when_planning(dim: int, value_dim: int) -> None:
    _core.plan_memory_cuda(Attention(Shape(2, 1, 576, 576), 1).program, kv_dtype="f32")
    with pytest.raises(UnsupportedModelError, match="attention y: the CUDA backend takes heads of up to 576 numbers, not 577"):
        _core.plan_memory_cuda(Attention(Shape(2, 1, dim, value_dim), 1).program)


@pytest.mark.parametrize("experts", [2048, 2049])
def test_too_many_experts_are_found_when_planning(experts: int) -> None:
    net = Net()
    x = net.rows(np.zeros((1, 32)))
    scores = net.node("linear", "scores", [("x", x), ("w", net.weight(np.zeros((experts, 32))))])[0]
    program = net.finish(net.node("route", "y", [("x", scores)], used=2)[1])
    _core.plan_memory(program)
    if experts <= 2048:
        _core.plan_memory_cuda(program)
        return
    with pytest.raises(UnsupportedModelError, match="route y: the CUDA backend takes up to 2048 experts, not 2049"):
        _core.plan_memory_cuda(program)


@pytest.mark.usefixtures("gpus")
def test_auto_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_DEVICE", "")
    assert sterna.plan(MODEL).device == "cuda:1"
    monkeypatch.setenv("STERNA_DEVICE", "auto")
    assert sterna.plan(MODEL).device == "cuda:1"
    monkeypatch.setenv("STERNA_DEVICE", "cuda")
    assert sterna.plan(MODEL).device == "cuda:0"
    assert sterna.plan(MODEL, device="cuda:1").device == "cuda:1"  # who names one means it
    monkeypatch.setenv("STERNA_DEVICE", "cpu")
    with sterna.load(MODEL, context=64) as llm:
        assert (llm.info.device, llm.info.no_gpu) == ("cpu", None)
    monkeypatch.setenv("STERNA_DEVICE", "cuda:2")
    with pytest.raises(ArgumentError, match="device is 'cuda:2', the last one that is there is 'cuda:1'"):
        sterna.plan(MODEL)
    monkeypatch.setenv("STERNA_DEVICE", "gpu")
    with pytest.raises(ArgumentError, match="STERNA_DEVICE is 'gpu', must be"):
        sterna.plan(MODEL)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_the_environment_asks_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_DEVICE", "cuda")
    with pytest.raises(DeviceError, match=f"device 'cuda' is not there: {PROBLEM}"):
        sterna.load(MODEL)


@pytest.mark.usefixtures("gpus")
def test_model_and_draft_are_compiled_for_the_device_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_cuda(program: object, file: object, *, device: int, **options: object) -> _core.CpuPlan:
        asked.append(device)
        return _core.compile_cpu(program, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_core, "compile_cuda", compile_cuda)
    with sterna.load(MODEL, device="cuda:1", draft=MODEL, context=64) as llm:
        assert asked == [1, 1]
        assert (llm.info.device, llm.info.isa, llm.info.no_gpu) == ("cuda:1 (GPU of test 1)", "sm_90", None)
        assert llm.info.memory.device == "cuda:1"
        assert "cuda:1 (GPU of test 1), sm_90" in str(llm.info)

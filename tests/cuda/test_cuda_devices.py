"""Several GPUs, other ones, full ones and ones that cannot be used: played by the CPU that stands in for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import oracle
import pytest
import sterna
from cuda_plans import EMULATED, in_process

MODEL = str(oracle.model_path("llama3"))
GIBIBYTE = str(1 << 30)

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs the CPU that stands in for a GPU ($STERNA_CUDA_LIBRARY)")

BEGIN = f"""
import contextlib, ctypes, io, os
from sterna.device import find_devices

MODEL = {MODEL!r}
library = ctypes.CDLL(os.environ["STERNA_CUDA_LIBRARY"])

def contexts():
    return [number for number in range(8) if library.sterna_emulation_has_context(number)]

def raised(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except sterna.SternaError as error:
        return [type(error).__name__, str(error)]

def doctor():
    from sterna.cli.main import main
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["doctor", "--json"])
    return json.loads(out.getvalue())["gpu"]

def compiled(device):
    file = _core.Gguf(MODEL)
    from sterna.trace import trace
    return _core.compile_cuda(trace(file).program.fuse(), file, device=device, threads=1)
"""


def played(code: str, devices: str, **options: str) -> dict[str, Any]:
    """What `code` puts into `found` where these devices are there."""
    variables = {f"STERNA_EMULATION_{name.upper()}": value for name, value in options.items()}
    return in_process(BEGIN + code, STERNA_EMULATION_DEVICES=devices, **variables)


def test_only_devices_that_may_be_used_are_started() -> None:
    found = played(
        """
found["listed"] = [_core.cuda_problem(), len(_core.cuda_devices()), [each.id for each in find_devices("auto")], contexts()]
found["cpu"] = [sterna.plan(MODEL, device="cpu").device, contexts()]
found["given budget"] = [sterna.plan(MODEL, memory_budget="1GiB", device="cuda:3").device, contexts()]
found["auto"] = [sterna.plan(MODEL).device, contexts()]
found["named"] = [sterna.plan(MODEL, device="cuda:2").device, contexts(), library.sterna_emulation_current()]
found["doctor"] = [len(doctor()), contexts(), library.sterna_emulation_current()]
""",
        "9.0 9.0 9.0 9.0",
        free=f"100000 {GIBIBYTE} {GIBIBYTE} {GIBIBYTE}",
    )
    assert found == {
        "listed": ["", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"], []],
        "cpu": ["cpu", []],
        "given budget": ["cuda:3", []],
        "auto": ["cuda:1", [0, 1]],
        "named": ["cuda:2", [0, 1, 2], 0],
        "doctor": [4, [0, 1, 2, 3], 0],
    }


def test_the_callers_thread_keeps_its_device() -> None:
    found = played(
        """
used = [library.sterna_emulation_current()]
llm = sterna.load(MODEL, device="cuda:2", context=64, threads=1)
used.append(library.sterna_emulation_current())
found["tokens"] = len(llm.generate([5, 6, 7], max_tokens=2, ignore_eos=True).tokens)
used.append(library.sterna_emulation_current())
llm.close()
del llm
used.append(library.sterna_emulation_current())
plan = compiled(1)
del plan
used.append(library.sterna_emulation_current())
found["used"], found["contexts"] = used, contexts()
""",
        "9.0 9.0 9.0",
    )
    assert found == {"tokens": 2, "used": [0, 0, 0, 0, 0], "contexts": [1, 2]}


def test_a_budget_that_is_no_size_starts_no_device() -> None:
    found = played('found["error"], found["contexts"] = raised(sterna.load, MODEL, memory_budget="much"), contexts()', "9.0")
    assert found["error"][0] == "ArgumentError" and "memory_budget is 'much'" in found["error"][1]
    assert found["contexts"] == []


def test_full_devices_are_each_a_reason() -> None:
    found = played(
        """
with sterna.load(MODEL, context=64, threads=1) as llm:
    found["info"] = [llm.info.device, llm.info.no_gpu]
""",
        "9.0 9.0",
        free="100000 200000",
    )
    device, reason = found["info"]
    assert device == "cpu"
    assert re.fullmatch(
        r"the model needs \S+ \S+ with a context of 64 tokens, cuda:0 \(emulated\) has 87.9 KiB, which is enough for 0; "
        r"the model needs \S+ \S+ with a context of 64 tokens, cuda:1 \(emulated\) has 175.8 KiB, which is enough for 0",
        reason,
    )


UNUSABLE = """
found["problem"] = _core.cuda_problem()
found["devices"] = [each["problem"] for each in _core.cuda_devices()]
found["compile"] = raised(compiled, 0)
found["free"] = raised(_core.cuda_free_bytes, 0)
found["load"] = raised(sterna.load, MODEL, device="cuda")
found["plan"] = sterna.plan(MODEL, device="cuda").budget
with sterna.load(MODEL, context=64, threads=1) as llm:
    found["info"] = [llm.info.device, llm.info.no_gpu]
found["doctor"] = doctor()
found["contexts"] = contexts()
"""


@pytest.mark.parametrize(
    ("capability", "compiled", "problem"),
    [
        ("8.6", "90-real", "cuda:0 (emulated, sm_86): the library has no code for it; build with STERNA_CUDA_ARCHITECTURES=86"),
        ("9.0", "100-virtual 120-real", "cuda:0 (emulated, sm_90): the library has no code for it; build with STERNA_CUDA_ARCHITECTURES=90"),
        ("7.0", "80-virtual", "cuda:0 (emulated, sm_70): it is older than sm_75"),
    ],
)
def test_a_device_without_code_is_a_reason(capability: str, compiled: str, problem: str) -> None:
    found = played(UNUSABLE, capability, compiled=compiled)
    assert found["problem"] == problem and found["devices"] == [problem]
    assert found["compile"] == found["free"] == ["DeviceError", problem]
    assert found["load"] == ["DeviceError", f"device 'cuda' is not there: {problem}; use device=\"cpu\""]
    assert found["plan"] is None
    assert found["info"] == ["cpu", problem]
    assert found["doctor"]["cuda:0"].endswith(f"; cannot be used: {problem}")
    assert found["contexts"] == []


def test_a_device_without_code_is_left_out() -> None:
    found = played(
        """
found["problem"] = _core.cuda_problem()
found["auto"] = [each.id for each in find_devices("auto")]
found["first"] = [each.id for each in find_devices("cuda")]
found["named"] = raised(sterna.load, MODEL, device="cuda:0")
found["beyond"] = raised(sterna.load, MODEL, device="cuda:2")
found["compile"] = raised(compiled, 0)
with sterna.load(MODEL, context=64, threads=1) as llm:
    found["info"] = [llm.info.device, llm.info.isa, llm.info.no_gpu]
found["contexts"] = contexts()
""",
        "8.6 9.0",
        compiled="90-real",
    )
    problem = "cuda:0 (emulated, sm_86): the library has no code for it; build with STERNA_CUDA_ARCHITECTURES=86"
    assert found["problem"] == ""
    assert (found["auto"], found["first"]) == (["cuda:1", "cpu"], ["cuda:1"])
    assert found["named"] == ["DeviceError", f"device 'cuda:0' cannot be used: {problem}"]
    assert found["beyond"] == ["ArgumentError", "device is 'cuda:2', the last one that is there is 'cuda:1'"]
    assert found["compile"] == ["DeviceError", problem]
    assert found["info"] == ["cuda:1 (emulated)", "sm_90", None]
    assert found["contexts"] == [1]


def test_a_device_that_cannot_run_the_code_that_is_there() -> None:
    """As with PTX that is newer than the driver: only the device can tell."""
    found = played(UNUSABLE.replace('found["plan"]', "# "), "9.0", broken="0")
    problem = "CUDA device 0, loading kernels: no kernel image is available"
    assert found["problem"] == ""
    assert found["compile"] == found["free"] == found["load"] == ["DeviceError", problem]
    assert found["info"] == ["cpu", f"cuda:0 (emulated): {problem}"]
    assert found["doctor"]["cuda:0"].endswith(f"; cannot be used: {problem}")
    found = played('found["auto"] = sterna.plan(MODEL).device', "9.0 9.0", broken="0")
    assert found["auto"] == "cuda:1"


def test_bfloats_need_a_device_that_multiplies_them(tmp_path: Path) -> None:
    bfloats = tmp_path / "bfloats.gguf"
    sterna.quantize(MODEL, bfloats, "BF16")
    found = played(
        f"""
MODEL = {str(bfloats)!r}
found["load"] = raised(sterna.load, MODEL, device="cuda")
found["plan"] = raised(sterna.plan, MODEL, device="cuda")
found["compile"] = raised(compiled, 0)
found["newer"] = sterna.plan(MODEL, device="cuda:1").device
found["auto"] = sterna.plan(MODEL, memory_budget="1GiB").device
with sterna.load(MODEL, device="cuda:1", context=64, threads=1) as llm:
    found["runs"] = len(llm.generate([5, 6], max_tokens=2, ignore_eos=True).tokens)
""",
        "7.5 8.0",
    )
    says = r"linear layers\.0/\S+: tensor blk\.0\.attn_\S+ holds bfloat16 numbers, which cuda:0 \(emulated, sm_75\) cannot multiply \(.*\.py:\d+\)"
    for name in ("load", "plan", "compile"):
        error, text = found[name]
        assert error == "UnsupportedModelError" and re.fullmatch(says, text), found[name]
    assert (found["newer"], found["auto"], found["runs"]) == ("cuda:1", "cuda:1", 2)
    found = played(
        f"""
with sterna.load({str(bfloats)!r}, context=64, threads=1) as llm:
    found["info"] = [llm.info.device, llm.info.no_gpu]
with sterna.load(MODEL, context=64, threads=1) as llm:
    found["floats"] = [llm.info.device, len(llm.generate([5, 6], max_tokens=2, ignore_eos=True).tokens)]
""",
        "7.5",
    )
    device, reason = found["info"]
    assert device == "cpu" and re.fullmatch(rf"cuda:0 \(emulated\): {says}", reason)
    assert found["floats"] == ["cuda:0 (emulated)", 2]

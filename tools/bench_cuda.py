"""Builds, checks and times sterna on one GPU, within minutes, on a machine with CUDA's compiler and no network.

    python tools/bench_cuda.py --out benchmarks/cuda.json [--wheels FOLDER] [--work FOLDER] [--minutes 8]
                               [--models 1b,8b,2b] [--llama-cpp SOURCE] [--peer-minutes 0]

Needs nvcc (CUDA 12.8 or later), CMake 3.25, a C++ compiler, and Python 3.11 with the packages of pyproject.toml and its
"test" extra, pybind11 too; --wheels installs those that are missing from a folder of wheels. What it does, each part in
what is left of the time; FILE has the results of every part that has ended, and says which were not reached:

build      core, module and CUDA library for this GPU, in FOLDER; beside it the models are written (tools/make_model.py)
limits     the bandwidth of a copy and the peak of mma instructions (tools/cuda_limits.cu), and of torch's matrix
           product where there is torch: instructions that sterna does not use may be faster
oracles    tests/cuda: models against transformers' logits, rows in company, the engine
kernels    the same folder's matrices of all formats against their definition
speeds of  tokens per second of decoding and of prompts, and the share of the nearer limit: bytes that the work needs at
           least by the copy's bandwidth, multiply-accumulates by the largest measured peak of halves; and of a run of
           one row and one of 512 the number of each kernel's steps and the seconds that they add
sanitizer  compute-sanitizer's memcheck and racecheck over the kernels' test
peer       llama-bench of llama.cpp's CUDA backend, built from SOURCE, on the same files; given minutes of its own

A speed is the median of its runs. Exit code 1 where something failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"1b": ("1b", "Q4_K_M"), "8b": ("8b", "Q4_K_M"), "2b": ("2b-bitnet", "TQ2_0")}
# What each is measured with, and the tokens per second that it shall reach on an H200.
TESTS: dict[str, dict[str, float | None]] = {
    "1b": {"tg128": 2000.0, "pp2048": None},
    "8b": {"tg128": 550.0, "pp2048": 25000.0, "tg64 b32": 10000.0},
    "2b": {"tg128": 2000.0, "pp2048": None},
}
REPETITIONS = 3


class OutOfTimeError(RuntimeError):
    """A part was not reached, or did not end in time."""


@dataclass
class Report:
    """What goes to the file, which is written anew after each part."""

    path: Path
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs a part and keeps what it gives; None where it failed or was not reached."""
        begin = time.monotonic()
        result = None
        try:
            if self.left() <= 0:
                raise OutOfTimeError("not reached")
            result = work()
            state: dict[str, Any] = {"state": "ok"}
        except OutOfTimeError as error:
            state = {"state": "not measured", "why": str(error)}
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            state = {"state": "failed", "why": str(error)}
        state["seconds"] = round(time.monotonic() - begin, 1)
        self.results.setdefault("parts", {})[name] = state
        if result is not None:
            self.results[name] = result
        self.path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {state['state']} in {state['seconds']} s {state.get('why', '')}", file=sys.stderr)
        return result

    @property
    def failed(self) -> bool:
        return any(part["state"] == "failed" for part in self.results.get("parts", {}).values())


def run(command: Sequence[str | Path], seconds: float, **options: Any) -> str:
    """What a command prints. RuntimeError when it fails, OutOfTimeError when it takes too long."""
    if seconds <= 0:
        raise OutOfTimeError("not reached")
    try:
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, timeout=seconds, check=False, **output, **options)
    except subprocess.TimeoutExpired as error:
        raise OutOfTimeError(f"{Path(command[0]).name} did not end in {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def gpu() -> dict[str, str]:
    """Name, driver and compute capability of the first GPU, as its driver tells."""
    names = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit")
    output = run(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"], 30)
    return dict(zip(names, [value.strip() for value in output.splitlines()[0].split(",")], strict=True))


class Bench:
    """The parts, in a folder of work."""

    def __init__(self, report: Report, work: Path, models: Sequence[str]) -> None:
        self.report, self.work, self.models = report, work, models
        self.site = work / "site"
        self.environment = {**os.environ, "PYTHONPATH": str(self.site), "PYTHONUNBUFFERED": "1"}
        self.capability = ""
        self._writers: dict[str, subprocess.Popen[str]] = {}

    # Building.

    def install(self, wheels: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
        run([*command, "--target", self.site, *sorted(wheels.glob("*.whl"))], 120)

    def write_models(self) -> None:
        """Begins to write the models; `model` waits for one."""
        for name in self.models:
            shape, file_format = MODELS[name]
            command = [sys.executable, ROOT / "tools" / "make_model.py", "--shape", shape, "--format", file_format]
            self._writers[name] = subprocess.Popen(
                [*command, "-o", self.work / f"{name}.gguf"], env=self.environment, stderr=subprocess.PIPE, text=True
            )

    def stop(self) -> None:
        for writer in self._writers.values():
            writer.kill()
            writer.wait()

    def model(self, name: str) -> Path:
        path = self.work / f"{name}.gguf"
        if writer := self._writers.get(name):
            try:
                _, errors = writer.communicate(timeout=max(0.0, self.report.left()))
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError(f"{path.name} was not written in time") from error
            if writer.returncode:
                raise RuntimeError(f"{path.name} could not be written: {errors.strip()[-500:]}")
        return path

    def build(self) -> dict[str, Any]:
        """Compiles, and puts the package together as a wheel would."""
        architecture = self.capability.replace(".", "")
        build = self.work / "build"
        pybind = run([sys.executable, "-m", "pybind11", "--cmakedir"], 30, env=self.environment).strip()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "STERNA_CUDA": "on",
            "STERNA_CUDA_ARCHITECTURES": f"{architecture}-real",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind,
        }
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        run(["cmake", "-S", ROOT, "-B", build, *generator, *(f"-D{k}={v}" for k, v in options.items())], 120)
        jobs = str(len(os.sched_getaffinity(0)))
        run(["cmake", "--build", build, "--parallel", jobs], self.report.left())
        run(["cmake", "--install", build, "--prefix", self.site], 60)
        package = self.site / "sterna"
        shutil.copytree(ROOT / "python" / "sterna", package, dirs_exist_ok=True)
        shutil.copytree(ROOT / "models", package / "models", dirs_exist_ok=True)
        code = "import json; from sterna import _core; print(json.dumps([_core.cuda_problem(), _core.cuda_devices()]))"
        problem, devices = json.loads(run([sys.executable, "-c", code], 60, env=self.environment))
        if problem:
            raise RuntimeError(problem)
        library = package / "libsterna_cuda.so"
        return {"devices": devices, "architecture": architecture, "library_bytes": library.stat().st_size}

    # Limits.

    def limits(self) -> dict[str, Any]:
        program = self.work / "cuda_limits"
        architecture = f"-arch=sm_{self.capability.replace('.', '')}"
        run(["nvcc", "-std=c++17", "-O3", architecture, "-o", program, ROOT / "tools" / "cuda_limits.cu"], 120)
        found: dict[str, Any] = json.loads(run([program], 60))
        found["torch_half_macs_per_second"] = self._torch_peak()
        peaks = (found["half_macs_per_second"], found["torch_half_macs_per_second"] or 0.0)
        found["largest_half_macs_per_second"] = max(peaks)
        return found

    @staticmethod
    def _torch_peak() -> float | None:
        """Multiply-accumulates per second of torch's product of half matrices, random ones; None without torch."""
        code = (
            "import torch; n = 8192; a = torch.randn(n, n, device='cuda', dtype=torch.half); b = a.clone()\n"
            "for _ in range(3): a @ b\n"
            "e = [torch.cuda.Event(enable_timing=True) for _ in range(2)]; torch.cuda.synchronize(); e[0].record()\n"
            "for _ in range(10): a @ b\n"
            "e[1].record(); torch.cuda.synchronize(); print(10 * n**3 / (e[0].elapsed_time(e[1]) * 1e-3))"
        )
        try:
            return float(run([sys.executable, "-c", code], 90).splitlines()[-1])
        except (RuntimeError, ValueError, IndexError):
            return None

    # Checks.

    def tests(self, *arguments: str | Path, prefix: Sequence[str] = (), seconds: float) -> dict[str, Any]:
        """Runs tests of tests/cuda; RuntimeError where some fail."""
        log = self.work / "tests.xml"
        log.unlink(missing_ok=True)
        command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={log}"]
        try:
            run([*command, *arguments], min(seconds, self.report.left()), cwd=ROOT, env=self.environment)
        except RuntimeError as error:
            if isinstance(error, OutOfTimeError) or not log.exists():
                raise
            raise RuntimeError(f"{test_counts(log)}; {str(error)[-1500:]}") from error
        counts = test_counts(log)
        if not counts["passed"]:
            raise RuntimeError(f"no test ran: {counts}")
        return counts

    def sanitizer(self) -> dict[str, Any]:
        if shutil.which("compute-sanitizer") is None:
            raise OutOfTimeError("there is no compute-sanitizer")
        found = {}
        for tool in ("memcheck", "racecheck"):
            # A few formats: instrumented kernels are slow.
            prefix = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", "--target-processes=all"]
            chosen = "F16 or Q4_K or Q6_K or TQ2_0"
            path = "tests/cuda/test_cuda_kernels.py"
            found[tool] = self.tests(path, "-k", chosen, prefix=prefix, seconds=120)
        return found

    # Speeds.

    def speeds(self, name: str, limits: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, Path(__file__), "--measure", self.model(name), "--tests", ",".join(TESTS[name])]
        output = run(command, min(120.0, self.report.left()), env=self.environment)
        goals = TESTS[name]
        found = json.loads(output.splitlines()[-1])
        rows = [
            {"model": " ".join(MODELS[name]), **row, **shares(row, limits), "goal_on_h200": goals[row["test"]]}
            for row in found["speeds"]
        ]
        return {"speeds": rows, "kernels": found["kernels"]}

    def peer(self, source: Path, seconds: float) -> list[dict[str, Any]]:
        build, end = self.work / "llama.cpp", time.monotonic() + seconds
        options = ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={self.capability.replace('.', '')}-real"]
        run(["cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", *options], 120)
        jobs = str(len(os.sched_getaffinity(0)))
        run(["cmake", "--build", build, "--target", "llama-bench", "--parallel", jobs], end - time.monotonic())
        (program,) = build.rglob("bin/llama-bench")
        rows = []
        for name in self.models:
            settings = f"-ngl 99 -fa 1 -p 2048 -n 128 -r {REPETITIONS} -o json".split()
            for row in json.loads(run([program, "-m", self.model(name), *settings], end - time.monotonic())):
                test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
                rows.append({"model": " ".join(MODELS[name]), "test": test, "tokens_per_second": row["avg_ts"]})
        return rows


def test_counts(log: Path) -> dict[str, Any]:
    """Tests that passed, failed and were skipped, and the names of those that failed, from a JUnit file."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failing": []}
    for case in ET.parse(log).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
            counts["failing"].append(f"{case.get('classname')}::{case.get('name')}")
        else:
            counts["skipped" if "skipped" in kinds else "passed"] += 1
    return counts


def shares(row: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """The parts of the copy's bandwidth and of the matrix peak that a speed uses, and the larger one's name."""
    memory = row["tokens_per_second"] * row["bytes_per_token"] / limits["copy_bytes_per_second"]
    matrix = row["tokens_per_second"] * row["macs_per_token"] / limits["largest_half_macs_per_second"]
    larger = {"share": max(memory, matrix), "limit": "copy bandwidth" if memory >= matrix else "matrix peak"}
    return {"memory_share": memory, "matrix_share": matrix, **larger}


def kernel_times(plan: Any, num_rows: int) -> dict[str, dict[str, float]]:
    """The kernels of a run of so many rows, the last ones of 512 positions."""
    positions = list(range(512 - num_rows, 512))
    plan.reserve_pages(8)
    plan.run([7] * num_rows, positions, [0] * num_rows, [list(range(8))], [num_rows - 1], largest=[1])
    return {name: {"number": number, "seconds": own} for name, (number, own) in plan.time_kernels().items()}


def measure(path: Path, names: Sequence[str], device: str) -> dict[str, Any]:
    """Times one model; in a process of its own, which imports the package that was built."""
    from sterna._core import CudaPlan, Engine, Gguf, Pieces
    from sterna.bench import BenchTest, work_of
    from sterna.bench import measure as timed
    from sterna.device import compile_for, find_devices
    from sterna.memory import PREFILL_TOKENS, ModelPart, PlanSettings
    from sterna.trace import trace

    tests = [BenchTest.parse(name) for name in names]
    most = max(test.batch for test in tests)
    file = Gguf(path)
    program = trace(file).program.fuse()
    (found,) = find_devices(device)
    begin = time.perf_counter()
    settings = PlanSettings(0, "f16", PREFILL_TOKENS, max(64, most), most, found.id)
    plan = compile_for(ModelPart(program, settings, program.num_layers), file)
    seconds = time.perf_counter() - begin
    context, kv_tokens = max(test.context for test in tests), max(test.kv_tokens for test in tests)
    engine = Engine(plan, Pieces.from_gguf(file), context=context, max_sequences=most, kv_tokens=kv_tokens)
    rows = []
    for test in tests:
        result = timed(engine, test, REPETITIONS)
        work = work_of(program, test, run_tokens=plan.max_tokens)
        speed = {"test": test.name, "tokens_per_second": result.tokens_per_second, "runs": result.runs}
        needed = {"bytes_per_token": work.bytes_per_token, "macs_per_token": work.macs_per_token}
        rows.append({**speed, **needed, "weights_bytes": plan.weight_bytes, "seconds_to_load": round(seconds, 2)})
    engine.close()
    kernels = {}
    if isinstance(plan, CudaPlan):
        kernels = {f"{rows} rows": kernel_times(plan, rows) for rows in (1, min(512, plan.max_tokens))}
    return {"speeds": rows, "kernels": kernels}


def bench(arguments: argparse.Namespace) -> int:
    """All parts in turn."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.out, time.monotonic() + 60 * arguments.minutes)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    report.results |= {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "goals": TESTS,
    }
    parts = Bench(report, work, arguments.models.split(","))
    try:
        found = report.part("gpu", gpu)
        if found is None:
            return 1
        parts.capability = found["compute_cap"]
        report.part("nvcc", lambda: run(["nvcc", "--version"], 30).splitlines()[-2])
        if arguments.wheels is not None:
            report.part("wheels", lambda: parts.install(arguments.wheels))
        parts.write_models()
        if report.part("build", parts.build) is None:
            return 1
        limits = report.part("limits", parts.limits)
        report.part("kernels", lambda: parts.tests("tests/cuda/test_cuda_kernels.py", seconds=60))
        tests = (ROOT / "tests" / "cuda").glob("test_*.py")
        others = sorted(path for path in tests if path.stem != "test_cuda_kernels")
        report.part("oracles", lambda: parts.tests(*others, seconds=120))
        for name in parts.models if limits is not None else ():
            report.part(f"speeds of {name}", partial(parts.speeds, name, limits))
        report.part("sanitizer", parts.sanitizer)
        if arguments.llama_cpp is not None:
            report.deadline = time.monotonic() + 60 * arguments.peer_minutes
            report.part("peer", lambda: parts.peer(arguments.llama_cpp, report.left()))
    finally:
        parts.stop()
    return 1 if report.failed else 0


def main() -> int:
    """Runs everything, or times one model for the run that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cuda.json"))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench-cuda", help="takes gigabytes")
    parser.add_argument("--wheels", type=Path, help="a folder of packages to install first")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--models", default=",".join(MODELS), help="some of: %(default)s")
    parser.add_argument("--llama-cpp", type=Path, help="a folder with llama.cpp's source")
    parser.add_argument("--peer-minutes", type=float, default=10.0, help="for llama.cpp, its build included")
    parser.add_argument("--measure", type=Path, metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--tests", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda:0", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.tests.split(","), arguments.device)))
        return 0
    return bench(arguments)


if __name__ == "__main__":
    sys.exit(main())

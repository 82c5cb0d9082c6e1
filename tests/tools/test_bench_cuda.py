"""The benchmark of a GPU, without one: what it keeps, counts and computes, and that its timing of a model works."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import model_path

_TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_cuda", _TOOLS / "bench_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_cuda"] = module
    spec.loader.exec_module(module)
    return module


def test_parts_are_kept_as_they_end(bench: Any, tmp_path: Path) -> None:
    report = bench.Report(tmp_path / "cuda.json", time.monotonic() + 1000)

    def fail() -> None:
        raise RuntimeError("no compiler")

    def late() -> None:
        raise bench.OutOfTimeError("not reached")

    assert report.part("build", lambda: {"seconds": 1}) == {"seconds": 1}
    assert report.part("torch", late) is None and not report.failed
    assert report.part("limits", fail) is None and report.failed
    report.deadline = 0.0
    assert report.part("speeds", lambda: 1) is None
    kept = json.loads((tmp_path / "cuda.json").read_text())
    assert kept["build"] == {"seconds": 1} and "limits" not in kept and "speeds" not in kept
    states = {name: (part["state"], part.get("why")) for name, part in kept["parts"].items()}
    assert states == {
        "build": ("ok", None),
        "torch": ("not measured", "not reached"),
        "limits": ("failed", "no compiler"),
        "speeds": ("not measured", "not reached"),
    }


def test_commands(bench: Any) -> None:
    assert bench.run([sys.executable, "-c", "print(3)"], 60) == "3\n"
    with pytest.raises(RuntimeError, match="ended with 1: .*broken"):
        bench.run([sys.executable, "-c", "import sys; sys.exit('broken')"], 60)
    with pytest.raises(bench.OutOfTimeError, match="not reached"):
        bench.run([sys.executable, "-c", ""], 0)
    with pytest.raises(bench.OutOfTimeError, match="did not end"):
        bench.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_counts(bench: Any, tmp_path: Path) -> None:
    log = tmp_path / "tests.xml"
    log.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>'
        '<testcase classname="b" name="z"><skipped/></testcase><testcase classname="b" name="w"/></testsuite></testsuites>'
    )
    assert bench.test_counts(log) == {"passed": 2, "failed": 1, "skipped": 1, "failing": ["a::y"]}


def test_shares(bench: Any) -> None:
    limits = {"copy_bytes_per_second": 4e12, "largest_half_macs_per_second": 4e14}
    row = {"tokens_per_second": 500.0, "bytes_per_token": 4e9, "macs_per_token": 8e9}
    found = bench.shares(row, limits)
    assert found == {"memory_share": 0.5, "matrix_share": 0.01, "share": 0.5, "limit": "copy bandwidth"}
    row = {"tokens_per_second": 25000.0, "bytes_per_token": 2e6, "macs_per_token": 8e9}
    assert bench.shares(row, limits)["limit"] == "matrix peak"


def test_a_model_is_timed(bench: Any) -> None:
    found = bench.measure(model_path("llama-256.mix-Q4_K_M"), ["pp16", "tg4", "tg4 b2"], "cpu")
    rows = found["speeds"]
    assert found["kernels"] == {}
    assert [row["test"] for row in rows] == ["pp16", "tg4", "tg4 b2"]
    for row in rows:
        assert len(row["runs"]) == bench.REPETITIONS and row["tokens_per_second"] > 0
        assert row["bytes_per_token"] > 0 and row["macs_per_token"] > 0 and row["weights_bytes"] > 0


def test_every_model_and_test_exists(bench: Any) -> None:
    from sterna.bench import BenchTest

    assert bench.MODELS.keys() == bench.TESTS.keys()
    for tests in bench.TESTS.values():
        assert [BenchTest.parse(name).name for name in tests] == list(tests)

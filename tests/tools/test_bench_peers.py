"""The benchmark beside llama.cpp, without llama.cpp: turns, medians, shares, the report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sterna.bench import BenchTest, Work

_TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench_peers() -> Any:
    sys.path.insert(0, str(_TOOLS))
    try:
        return _load("bench_peers")
    finally:
        sys.path.remove(str(_TOOLS))


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Machine:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def read_speeds(self, repetitions: int) -> list[tuple[int, bool, float]]:
        self._log.append("limit")
        return [(1, False, 40e9), (4, True, 50e9)]

    def macs_per_second(self, repetitions: int) -> float:
        return 1000e9


def test_pairs_take_turns(bench_peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers, "PAUSE_SECONDS", 0.0)
    log: list[str] = []

    def run(name: str, speed: float) -> float:
        log.append(name)
        return speed

    ours, theirs, bandwidths, peaks = bench_peers.run_pairs(
        lambda: run("ours", 2.0), lambda: run("theirs", 1.0), _Machine(log), 2
    )
    assert (ours, theirs) == ([2.0, 2.0], [1.0, 1.0])
    assert (bandwidths, peaks) == ([50e9, 50e9], [1000e9, 1000e9])
    assert log == ["ours", "theirs", "limit", "ours", "theirs", "limit", "theirs", "ours"]


def test_each_run_is_held_against_the_limit_beside_it(bench_peers: Any) -> None:
    work = Work(bytes_per_token=1e9, macs_per_token=1e9)
    share, limit = bench_peers.median_share(work, [45.0, 81.0, 45.0], [50e9, 90e9, 50e9], [1e12] * 3)
    assert (share, limit) == (pytest.approx(0.9), "memory")
    assert bench_peers.median_share(Work(1.0, 1e9), [500.0], [50e9], [1e12]) == (pytest.approx(0.5), "integer")


def test_settings_worth_trying(bench_peers: Any) -> None:
    alone, together = bench_peers.all_settings(1), bench_peers.all_settings(4)
    assert len(set(alone)) == 4 and not any(settings.unified_cache for settings in alone)
    assert len(set(together)) == 8 and set(alone) < set(together)


def test_names_on_the_command_line() -> None:
    assert BenchTest.parse("tg128b16") == BenchTest.parse("tg128 b16") == BenchTest(generate=128, batch=16)
    assert BenchTest.parse("tg128@d4096") == BenchTest(generate=128, depth=4096)


def test_report(bench_peers: Any) -> None:
    row = bench_peers.Row(
        model="folder/m.gguf",
        test="tg128",
        sterna=60.0,
        peer=50.0,
        peer_settings="repack on",
        ratio=1.2,
        ratio_range=(1.1, 1.3),
        pairs=7,
        share=0.9,
        peer_share=0.75,
        limit="memory",
        machine_bytes_per_second=50e9,
        machine_macs_per_second=1e12,
        work=Work(763e6, 1.2e9),
        sterna_runs=[60.0],
        peer_runs=[50.0],
    )
    line = bench_peers.format_row(row)
    assert line == "| m.gguf | tg128 | 60.0 | 50.0 | 1.20 (1.10 to 1.30) | 90 % / 75 % memory | repack on |"
    assert line.count("|") == bench_peers.HEADER.splitlines()[0].count("|")
    args = argparse.Namespace(models=["folder/m.gguf"], tests="tg128", pairs=7, threads=2)
    bench_peers.Peer.version = staticmethod(lambda: "llama.cpp of old")
    text = bench_peers.report([row], args)
    assert line in text and "llama.cpp of old" in text and "folder" not in text


def test_rows_of_an_earlier_run(bench_peers: Any, tmp_path: Path) -> None:
    row = bench_peers.Row(
        *("m.gguf", "pp512", 3.0, 2.0, "repack on", 1.5, (1.4, 1.6), 7, 0.5, 0.4, "integer", 5e10, 1e12),
        *(Work(1.0, 2.0), [3.0], [2.0]),
    )
    path = tmp_path / "rows.json"
    assert bench_peers.saved_rows(path) == []
    path.write_text(json.dumps([dataclasses.asdict(row)]))
    assert bench_peers.saved_rows(path) == [row]

"""What the soak script calls flat, and what it calls a fault."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import sterna
from oracle import model_path

_PATH = Path(__file__).parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> Any:
    spec = importlib.util.spec_from_file_location("soak", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def samples_of(soak: Any, mib: list[float]) -> list[Any]:
    counts = {"pages_in_use": 0}
    return [soak.Sample(500 * i, i / 10, int(at * soak.MIB), 3, 6, counts) for i, at in enumerate(mib)]


def test_slope_is_per_10000_requests(soak: Any) -> None:
    assert soak.slope(samples_of(soak, [40 + i / 20 for i in range(41)])) == pytest.approx(1.0)
    assert soak.slope(samples_of(soak, [40.0] * 41)) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="two times"):
        soak.slope(samples_of(soak, [40.0]))


def test_what_grows_before_the_first_quarter_does_not_count(soak: Any) -> None:
    assert soak.faults(samples_of(soak, [*range(10), *[10.0] * 30])) == []
    assert soak.faults(samples_of(soak, [10.0] * 20 + [10 + i / 10 for i in range(20)])) != []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 4}, "4 threads, 3 at the start"),
        ({"files": 7}, "7 open files, 6 at the start"),
        ({"engine": {"pages_in_use": 2}}, "2 pages in use, 0 at the start"),
    ],
)
def test_what_does_not_come_back(soak: Any, change: dict[str, Any], message: str) -> None:
    samples = samples_of(soak, [40.0] * 41)
    assert soak.faults(samples) == []
    samples[-1] = dataclasses.replace(samples[-1], **change)
    assert soak.faults(samples) == [message]


def test_every_kind_of_request_works_and_ends(soak: Any) -> None:
    with sterna.load(model_path("llama-256.Q4_0"), context=soak.CONTEXT, kv_tokens=soak.KV_TOKENS, threads=1) as llm:
        requests = soak.Requests(llm, random.Random(0))
        for _, call in requests.kinds():
            assert sum(call() for _ in range(5)) >= 5
        assert soak.crowd(llm, random.Random(1)) >= 4 * soak.CALLERS
        at = soak.sample(llm, 1, 0.0)
        assert at.engine["running"] == at.engine["waiting"] == at.engine["pages_in_use"] == 0
        assert at.rss_bytes > soak.MIB and at.threads >= 2 and at.files >= 3

"""The benchmark of many sequences, without llama.cpp: what it reads, computes, and writes; sterna's part for real."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sterna
from oracle import model_path

_TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(_TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("bench_batching", _TOOLS / "bench_batching.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_batching"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(_TOOLS))


def line(**changes: Any) -> str:
    row = {"pp": 128, "tg": 64, "pl": 4, "is_pp_shared": 0, "t_pp": 2.0, "t_tg": 1.0, "t": 3.0, "speed": 256.0}
    return json.dumps({**row, **changes})


def test_speeds(bench: Any) -> None:
    shape = bench.Shape(sequences=4, prompt=128, generate=64)
    run = bench.Run(prompt_seconds=2.0, seconds=3.0)
    assert (run.decode(shape), run.total(shape)) == (256.0, 256.0)
    assert (shape.context, shape.kv_tokens) == (193, 4 * 256)


def test_output_of_the_peer(bench: Any) -> None:
    shape = bench.Shape(4, 128, 64)
    output = f"log\n{line(tg=4, t_pp=9.0, t=10.0)}\n{line()}\n\nmore log\n"
    assert bench.parse_batched(output, shape, [4, 64]) == [bench.Run(9.0, 10.0), bench.Run(2.0, 3.0)]
    with pytest.raises(RuntimeError, match=r"measured \[\], not"):
        bench.parse_batched("log\n", shape, [64])
    for other in ({"pl": 3}, {"tg": 4}, {"is_pp_shared": 1}):
        with pytest.raises(RuntimeError, match="measured"):
            bench.parse_batched(line(**other), shape, [64])


def test_the_best_settings_stay(bench: Any, tmp_path: Path) -> None:
    program = tmp_path / "fake-bench"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "value = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "seconds = 2.0 - ('--kv-unified' in sys.argv) + (value('-fa') == 'off') + ('--no-repack' in sys.argv)\n"
        "for tg in value('-ntg').split(','):\n"
        "    row = dict(pp=int(value('-npp')), tg=int(tg), pl=int(value('-npl')), is_pp_shared=0, t_pp=0.5, t=seconds)\n"
        "    print(json.dumps(row))\n"
    )
    program.chmod(0o755)
    batched = bench.Batched(program, "m.gguf", bench.Shape(4, 8, 8), 2)
    batched.choose_settings()
    assert str(batched.settings) == "-fa on --kv-unified --repack"
    assert batched.run() == bench.Run(0.5, 1.0)
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('cannot load')\n")
    with pytest.raises(RuntimeError, match="ended with 1: cannot load"):
        batched.run()


def test_everybody_begins_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE_SECONDS", 0.0)
    log: list[str] = []

    def runner(name: str) -> Any:
        return lambda: log.append(name) or name

    runs = bench.take_turns([runner("a"), runner("b"), runner("c")], [3, 3, 2], 3)
    assert "".join(log) == "abc" + "bca" + "ab"
    assert [len(each) for each in runs] == [3, 3, 2]


def test_sterna_generates_what_was_asked_for(bench: Any) -> None:
    shape = bench.Shape(sequences=3, prompt=20, generate=5)
    with sterna.load(
        model_path("llama-256.Q4_0"), threads=1, context=shape.context, kv_tokens=shape.kv_tokens, max_sequences=3
    ) as llm:
        ours = bench.Sterna(llm, shape, np.random.default_rng(0))
        before = llm.engine.stats()
        run = ours.run()
        after = llm.engine.stats()
    assert run.prompt_seconds > 0 and run.seconds > 0
    # Prompts twice; the last token that is generated is not computed.
    assert after.tokens - before.tokens == 2 * 3 * 20 + 3 * 5
    assert after.preemptions == 0


def test_report_and_its_rows(bench: Any, tmp_path: Path) -> None:
    row = bench.Row(
        *("m.gguf", bench.Shape(16, 128, 64), 2, "2026-01-02", "-fa on", "flash_attn=False"),
        *(
            [bench.Run(1.0, 2.0), bench.Run(1.0, 3.0)],
            [bench.Run(2.0, 6.0), bench.Run(2.0, 6.0)],
            [bench.Run(8.0, 16.0)],
        ),
    )
    text = bench.format_row(row)
    assert text == (
        "| m.gguf | 16 | 768 | 256 | 3.00 (2.00 to 4.00) | 1280 | 512 | 2.50 (2.00 to 3.00) | 192 | 8.00 (8.00 to 8.00) "
        "| -fa on; flash_attn=False |"
    )
    assert text.count("|") == bench.HEADER.splitlines()[0].count("|")
    path = tmp_path / "folder" / "batching.md"
    bench.write(path, [row], ["llama.cpp of old"])
    written = path.read_text()
    assert text in written and "llama.cpp of old" in written and "--pairs 2" in written
    assert bench.saved_rows(path.with_suffix(".json")) == [row]
    assert bench.saved_rows(tmp_path / "none.json") == []
    without = dataclasses.replace(row, locked=[], locked_settings="")
    assert bench.format_row(without).endswith("|  |  | -fa on |")

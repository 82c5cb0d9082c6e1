"""Memory: planned before anything is allocated, and as planned afterwards."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import sterna
from oracle import model_path
from sterna import _core
from sterna.memory_budget import _cgroup_memory, available_memory, parse_budget, readable


def test_the_plan_is_what_is_allocated(tiny_path: Path) -> None:
    plan = sterna.plan(tiny_path, context=300, threads=2, memory_budget="1GiB")
    assert plan.total == plan.weights + plan.kv + plan.scratch
    assert plan.fits
    with sterna.load(tiny_path, context=300, threads=2, memory_budget="1GiB") as llm:
        assert llm.info.memory == plan
    file = _core.Gguf(tiny_path)
    from sterna.trace import trace

    compiled = _core.compile_cpu(trace(file).program.fuse(), file, threads=2, max_tokens=512, max_outputs=64)
    assert compiled.weight_bytes == pytest.approx(plan.weights, rel=0.05)
    assert compiled.scratch_bytes == pytest.approx(plan.scratch, rel=0.05)
    assert [(pool.window, pool.page_bytes) for pool in plan.pools] == compiled.kv_pools
    assert plan.kv == 5 * compiled.kv_pools[0][1]  # 300 tokens are 5 pages of 64


def test_a_budget_that_is_too_small_names_the_parts_and_what_would_fit(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sterna.plan(tiny_path, context=512)
    budget = whole.total - 1
    tight = sterna.plan(tiny_path, context=512, memory_budget=budget)
    assert not tight.fits
    assert tight.max_context == 448
    assert sterna.plan(tiny_path, context=448, memory_budget=budget).fits
    monkeypatch.setattr(_core, "compile_cpu", None)  # nothing may get as far as this
    with pytest.raises(
        sterna.MemoryBudgetError, match=r"weights .*, KV cache .* for 512 tokens, scratch .* 448 tokens"
    ):
        sterna.load(tiny_path, context=512, memory_budget=budget)
    with pytest.raises(MemoryError, match="no context would fit"):
        sterna.load(tiny_path, memory_budget=whole.weights)


@pytest.mark.parametrize("sizes", [{"kv_tokens": 2**31 - 1}, {"context": 2**31 - 1}, {"max_sequences": 1024, "context": 2**31 - 1}])
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    tiny_path: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not sterna.plan(tiny_path, **sizes).fits
    monkeypatch.setattr(_core, "compile_cpu", None)
    with pytest.raises(sterna.MemoryBudgetError, match="KV cache"):
        sterna.load(tiny_path, **sizes)


def test_a_context_that_is_not_asked_for_is_capped_and_said(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = sterna.plan(tiny_path)
    assert whole.context == 512
    budget = whole.weights + whole.scratch + 3 * whole.pools[0].page_bytes
    with caplog.at_level(logging.WARNING, "sterna"), sterna.load(tiny_path, memory_budget=budget) as llm:
        assert llm.info.context == llm.engine.context == 192
        assert llm.info.trained_context == 512
        assert llm.info.context_capped
        assert "capped" in str(llm.info)
    assert "context capped to 192 tokens" in caplog.text


def test_a_context_beyond_the_trained_one_is_allowed_and_said(
    tiny_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sterna"), sterna.load(tiny_path, context=1024) as llm:
        assert llm.info.context == 1024
        assert not llm.info.context_capped
    assert "1024 is longer than the 512 tokens" in caplog.text


def test_a_q8_0_cache_takes_half_as_much(tiny_path: Path) -> None:
    pages = {}
    for kv_dtype in ("f16", "q8_0"):
        with sterna.load(tiny_path, context=300, kv_dtype=kv_dtype) as llm:
            assert llm.info.kv_dtype == kv_dtype
            pages[kv_dtype] = llm.info.memory.pools[0].page_bytes
            assert len(llm.generate([5, 6, 7], max_tokens=100, ignore_eos=True).tokens) == 100
    assert 0.5 < pages["q8_0"] / pages["f16"] < 0.6


def test_the_cache_may_be_larger_than_one_context(tiny_path: Path) -> None:
    plan = sterna.plan(tiny_path, context=100, kv_tokens=1000)
    assert plan.kv == 16 * plan.pools[0].page_bytes
    with sterna.load(tiny_path, context=100, kv_tokens=1000, max_sequences=8) as llm:
        assert llm.engine.stats().page_limit == 16
        prompts = [[5 + i] * 50 for i in range(8)]
        together = llm.generate(prompts, max_tokens=49, temperature=0, ignore_eos=True)
        assert [len(out.tokens) for out in together] == [49] * 8
        assert llm.engine.stats().preemptions == 0
    assert sterna.plan(tiny_path, kv_tokens=100).context == 100


def test_logits_that_do_not_fit_are_refused(llm: sterna.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.measuring.available_memory", lambda: 100_000)
    with pytest.raises(sterna.MemoryBudgetError, match=r"result needs 125\.0 KiB"):
        llm.logits([5] * 100)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GiB", 4 << 30), ("4 gb", 4 * 10**9), ("1.5MiB", 3 << 19), ("100", 100), ("2k", 2000), (12345, 12345)],
)
def test_budgets_can_be_written_in_words(text: str | int, count: int) -> None:
    assert parse_budget(text) == count


def test_the_default_budget_is_a_share_of_what_is_available() -> None:
    available = available_memory()
    assert available is not None
    assert parse_budget(None) == pytest.approx(0.8 * available, rel=0.1)
    assert 1 << 20 < available < 1 << 50


def group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    root, groups = tmp_path / "cgroup", tmp_path / "groups"
    groups.write_text("0::/a/b\n")
    stat = "anon 5\ninactive_file 30"
    group(root / "a" / "b", {"memory.max": "max", "memory.current": 10, "memory.stat": stat})
    group(root / "a", {"memory.max": 1000, "memory.current": 400, "memory.stat": stat})
    assert _cgroup_memory(groups, root) == [None, 630, None]
    # Version 1, seen from a container: the path is the host's, the files are at the top.
    groups.write_text("5:cpu:/x\n4:memory:/docker/abc\n")
    old = {"memory.limit_in_bytes": 2000, "memory.usage_in_bytes": 500, "memory.stat": "total_inactive_file 100"}
    group(root / "memory", old)
    assert _cgroup_memory(groups, root) == [None, None, 1600]
    assert _cgroup_memory(tmp_path / "nothing", root) == []


def test_readable() -> None:
    assert [readable(n) for n in (5, 2048, 3 << 20, 5 << 40)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]


def test_info_can_be_printed_and_stored(llm: sterna.LLM) -> None:
    import json

    fields = llm.info.to_dict()
    assert json.loads(json.dumps(fields))["architecture"] == "llama"
    assert fields["memory"]["total"] == llm.info.memory.total
    assert fields["isa"] == _core.chosen_isa()
    assert sum(fields["formats"].values()) == len(_core.Gguf(llm.info.path).tensors)
    assert llm.info.architecture in str(llm.info)
    assert f"{llm.info.context} tokens" in str(llm.info)


def test_a_context_beyond_learned_positions_is_refused() -> None:
    path = model_path("gpt2")
    assert sterna.plan(path).context == 128
    with pytest.raises(sterna.ArgumentError, match="context is 192, the model has learned 128 positions"):
        sterna.plan(path, context=192)

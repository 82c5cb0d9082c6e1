"""Plans and their threads: wrong batches and programs are errors, any number of threads gives the same, nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import LEVELS, Floats, Net, assert_same_bits, compiled, random_weights, run_rows
from sterna import _core
from sterna.errors import ArgumentError, DeviceError, MemoryBudgetError, SternaError, UnsupportedModelError

SEED = 51
VOCAB = 37


def small_model(vocab: int = VOCAB, table_rows: int | None = None) -> tuple[_core.Program, dict[str, np.ndarray]]:
    """One layer of attention and a gated block, quantised; its vocabulary is no multiple of 16."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    net = Net()
    width = 64

    def linear(name: str, x: int, n: int, k: int = width) -> int:
        w = net.weight(random_weights("Q4_0", n, k, rng, largest=0.1), "Q4_0", (n, k), name=f"{name}.w")
        return net.node("linear", name, [("x", x), ("w", w)])[0]

    x = net.rows(rng.standard_normal((table_rows or vocab, width)))
    normed = net.node("rms_norm", "norm", [("x", x)], eps=1e-5)[0]
    operands = []
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        y = net.node("reshape", f"{name}.heads", [("x", linear(name, normed, 16 * heads))], dims=f"{heads}, 16")[0]
        if name != "v":
            y = net.node("rope", f"{name}.rope", [("x", y), ("positions", net.positions)], theta=1e4, rotary_dim=16)[0]
        operands.append((name, y))
    y = net.node("attention", "attention", operands, layer=0, scale=0.25)[0]
    x = net.node("add", "sum", [("a", x), ("b", linear("o", y, width))])[0]
    gated = net.node("glu", "glu", [("gate", linear("gate", x, 96)), ("up", linear("up", x, 96))])[0]
    x = net.node("add", "sum2", [("a", x), ("b", linear("down", gated, width, 96))])[0]
    w = net.weight(random_weights("Q8_0", vocab, width, rng), "Q8_0", (vocab, width), name="output")
    net.builder.set_outputs(net.node("unembed", "logits", [("x", x), ("w", w)]))
    return net.builder.finish(), net.source


def test_caches_beyond_any_memory_are_refused_before_anything_is_mapped() -> None:
    program, source = small_model()
    plan = _core.compile_cpu(program, source, threads=1, max_tokens=32, max_outputs=32)
    expected = logits(plan)
    pages = plan.num_pages
    with pytest.raises(MemoryBudgetError, match=r"KV cache of 2147483647 pages of \d+ bytes"):
        plan.reserve_pages(2**31 - 1)
    assert plan.num_pages == pages
    assert_same_bits(logits(plan), expected)


def logits(plan: _core.CpuPlan, length: int = 30, chunk: int = 7) -> Floats:
    plan.reserve_pages(1)
    tokens = np.arange(length, dtype=np.int32) * 5 % VOCAB
    got = []
    for first in range(0, length, chunk):
        last = min(first + chunk, length)
        positions = np.arange(first, last, dtype=np.int32)
        rows = np.arange(last - first, dtype=np.int32)
        got.append(plan.run(tokens[first:last], positions, np.zeros(last - first, np.int32), [[0]], rows))
    return np.concatenate(got)


OPTIONS = {"max_tokens": 32, "max_outputs": 32, "keep_values": False}


def test_more_threads_than_cores() -> None:
    program, source = small_model()
    want = logits(compiled(program, source, **OPTIONS))
    assert want.shape == (30, VOCAB) and np.isfinite(want).all()
    for threads in (2, 3, 4, 8, 33):
        plan = compiled(program, source, threads=threads, **OPTIONS)
        assert plan.threads == threads
        for chunk in (1, 30):
            assert_same_bits(logits(plan, chunk=chunk), want, f"{threads} threads, chunks of {chunk}")


def test_default_number_of_threads() -> None:
    program, source = small_model()
    assert compiled(program, source, **{**OPTIONS, "threads": 0}).threads == _core.available_cpus()


def test_plans_come_and_go() -> None:
    """200 plans made and dropped, some run, some idle long enough to sleep: no thread is left."""
    program, source = small_model()
    want = logits(compiled(program, source, **OPTIONS))
    before = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else None
    sleeping = compiled(program, source, threads=4, **OPTIONS)
    for i in range(200):
        plan = compiled(program, source, threads=1 + i % 4, **OPTIONS)
        if i % 20 == 0:
            assert_same_bits(logits(plan, chunk=30), want)
    time.sleep(0.05)
    assert_same_bits(logits(sleeping), want, "after sleeping")
    del plan, sleeping
    if before is not None:
        assert len(os.listdir("/proc/self/task")) <= before


def test_plans_run_side_by_side() -> None:
    program, source = small_model()
    want = logits(compiled(program, source, **OPTIONS))
    plans = [compiled(program, source, threads=2, **OPTIONS) for _ in range(4)]
    results: list[Floats | None] = [None] * len(plans)

    def work(i: int) -> None:
        for _ in range(5):
            results[i] = logits(plans[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(plans))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        assert result is not None
        assert_same_bits(result, want)


def test_threads_that_cannot_start() -> None:
    """1,024 stacks do not fit into what is left of the address space: an error, and the plan after it works."""
    script = """
import resource, sys
from test_plan import OPTIONS, compiled, logits, small_model
from sterna.errors import DeviceError, MemoryBudgetError
program, source = small_model()
want = logits(compiled(program, source, **OPTIONS))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
try:
    compiled(program, source, threads=1024, **OPTIONS)
    sys.exit("1,024 threads were started")
except (DeviceError, MemoryBudgetError) as error:
    print(error)
assert (logits(compiled(program, source, threads=3, **OPTIONS)) == want).all()
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "threads" in done.stdout


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_fork_a_plan_is_an_error() -> None:
    """The child has no workers: it gets an error, may drop the plan, may make its own, and ends."""
    program, source = small_model()
    plan = compiled(program, source, threads=3, **OPTIONS)
    want = logits(plan)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                logits(plan)
            except SternaError as error:
                status = 0 if "fork" in str(error) else 2
            del plan
            own = compiled(program, source, threads=2, **OPTIONS)
            if not (logits(own) == want).all():
                status = 3
            del own
        finally:
            os._exit(status)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert_same_bits(logits(plan), want)


def test_options_out_of_range() -> None:
    program, source = small_model()
    for options in (
        {"threads": -1},
        {"threads": 1_000_000},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_outputs": 0},
        {"kv_dtype": "f64"},
    ):
        with pytest.raises(ArgumentError):
            compiled(program, source, **{**OPTIONS, **options})
    for isa in ("sse9", "AVX2", "scalar "):
        with pytest.raises(DeviceError, match="instruction set"):
            compiled(program, source, isa=isa, **OPTIONS)
    with pytest.raises(MemoryBudgetError):
        compiled(program, source, **{**OPTIONS, "max_tokens": 2**31 - 1, "max_outputs": 2**31 - 1})


def test_instruction_set_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    program, source = small_model()
    assert _core.chosen_isa() in _core.supported_isas()
    for level in LEVELS:
        monkeypatch.setenv("STERNA_ISA", level)
        assert _core.chosen_isa() == level
        assert compiled(program, source, **OPTIONS).isa == level
    monkeypatch.setenv("STERNA_ISA", "none")
    with pytest.raises(DeviceError, match="none"):
        _core.chosen_isa()
    with pytest.raises(DeviceError, match="none"):
        compiled(program, source, **OPTIONS)
    monkeypatch.setenv("STERNA_ISA", "")
    assert _core.chosen_isa() == LEVELS[-1]


def test_wrong_batches_are_errors() -> None:
    program, source = small_model()
    plan = compiled(program, source, **OPTIONS)
    plan.reserve_pages(2)

    def batch(**changes: object) -> dict[str, object]:
        good = {"tokens": [1, 2], "positions": [0, 1], "sequences": [0, 0], "page_tables": [[1]], "output_rows": [1]}
        return {**good, **changes}

    want = plan.run(**batch())
    pages = plan.num_pages
    for wrong in (
        {"tokens": []},
        {"tokens": [1] * 33, "positions": list(range(33)), "sequences": [0] * 33},
        {"tokens": [1, VOCAB]},
        {"tokens": [-1, 2]},
        {"positions": [0]},
        {"positions": [0, 64]},
        {"positions": [-1, 0]},
        {"positions": [0, 2**31 - 1]},
        {"sequences": [0]},
        {"sequences": [0, 1]},
        {"sequences": [-1, 0]},
        {"page_tables": []},
        {"page_tables": [[]]},
        {"page_tables": [[pages]]},
        {"page_tables": [[-1]]},
        {"page_tables": [[1], [pages]]},
        {"output_rows": [2]},
        {"output_rows": [-1]},
        {"output_rows": [0] * 33},
    ):
        with pytest.raises(ArgumentError, match="batch"):
            plan.run(**batch(**wrong))
        assert_same_bits(plan.run(**batch()), want, str(wrong))


def test_rows_of_a_sequence_are_one_part_of_the_batch() -> None:
    """Who finds a sequence's first and last row finds all of them between."""
    program, source = small_model()
    plan = compiled(program, source, **OPTIONS)
    plan.reserve_pages(3)
    tables = [[0], [1], [2]]
    plan.run([1, 2, 3, 4], [0, 1, 0, 0], [2, 2, 0, 1], tables, [0])  # in any order
    for sequences, apart in (([0, 1, 0], 0), ([2, 0, 1, 0], 0), ([1, 1, 0, 2, 1], 1)):
        rows = len(sequences)
        positions = [sequences[:row].count(sequence) for row, sequence in enumerate(sequences)]
        with pytest.raises(ArgumentError, match=f"batch: rows of sequence {apart} lie apart"):
            plan.run(list(range(rows)), positions, sequences, tables, [0])


def test_tokens_stay_within_the_embedding_table() -> None:
    """A table with fewer rows than the logits have columns: ids behind it are no tokens."""
    program, source = small_model(vocab=VOCAB, table_rows=20)
    plan = compiled(program, source, **OPTIONS)
    plan.reserve_pages(1)
    plan.run([19], [0], [0], [[0]], [0])
    for token in (20, VOCAB - 1):
        with pytest.raises(ArgumentError, match="vocabulary"):
            plan.run([token], [0], [0], [[0]], [0])


def test_no_rows_wanted() -> None:
    """A chunk of a prompt may want no logits at all."""
    program, source = small_model()
    plan = compiled(program, source, threads=2, **OPTIONS)
    want = logits(compiled(program, source, **OPTIONS))
    plan.reserve_pages(1)
    tokens = np.arange(30, dtype=np.int32) * 5 % VOCAB
    none = plan.run(tokens[:20], np.arange(20), np.zeros(20), [[0]], [])
    assert none.shape == (0, VOCAB)
    got = plan.run(tokens[20:], np.arange(20, 30), np.zeros(10), [[0]], [1, 4, 9])
    assert_same_bits(got, want[[21, 24, 29]])


def test_weights_that_cannot_be_used() -> None:
    program, source = small_model()
    with pytest.raises(UnsupportedModelError, match="output"):
        compiled(program, {name: data for name, data in source.items() if name != "output"}, **OPTIONS)
    with pytest.raises(ArgumentError, match="up.w"):
        compiled(program, {**source, "up.w": source["up.w"][:-1]}, **OPTIONS)
    for threads in (1, 3):
        spoiled = source["output"].copy()
        spoiled[-34:-32] = (0, 0x7E)  # the scale of the last block
        with pytest.raises(UnsupportedModelError, match="output"):
            compiled(program, {**source, "output": spoiled}, **{**OPTIONS, "threads": threads})
    table = source["x.table"].copy()
    table[-4:] = (0, 0, 0x80, 0x7F)
    with pytest.raises(UnsupportedModelError, match=r"x\.table"):
        compiled(program, {**source, "x.table": table}, **OPTIONS)


def test_programs_without_a_kernel() -> None:
    net = Net()
    net.builder.set_outputs(net.node("scale", "rows", [("x", net.rows(np.zeros((16, 32))))], factor=2.0))
    with pytest.raises(UnsupportedModelError, match="rows"):
        compiled(net.builder.finish(), net.source)


def test_kept_values() -> None:
    program, source = small_model()
    keeping = compiled(program, source, **{**OPTIONS, "keep_values": True})
    assert keeping.value_names == [program.values[id].name for node in program.nodes() for id in node.outputs]
    plain = compiled(program, source, **OPTIONS)
    assert_same_bits(logits(keeping), logits(plain))
    assert keeping.scratch_bytes > plain.scratch_bytes
    assert plain.value_names == []
    run_rows(keeping, range(5))
    assert keeping.value("glu").size == 5 * 96
    for plan in (keeping, plain):
        with pytest.raises(ArgumentError, match="nothing"):
            plan.value("nothing")


def test_memory_is_known_beforehand() -> None:
    program, source = small_model()
    for threads, kv_dtype, max_tokens in ((1, "f16", 32), (2, "q8_0", 200), (3, "f32", 500)):
        options = {"threads": threads, "kv_dtype": kv_dtype, "max_tokens": max_tokens, "max_outputs": 8}
        plan = compiled(program, source, keep_values=False, **options)
        assert _core.plan_memory(program, **options) == (plan.weight_bytes, plan.scratch_bytes, plan.kv_pools)
        # Of keys and of values: heads of 16 elements, and for q8_0 a scale of two bytes.
        assert plan.kv_pools == [(0, 2 * 64 * 2 * {"f16": 16 * 2, "f32": 16 * 4, "q8_0": 16 + 2}[kv_dtype])]


def test_pages_keep_their_contents_when_more_come() -> None:
    program, source = small_model()
    want = logits(compiled(program, source, **OPTIONS))
    plan = compiled(program, source, **OPTIONS)
    tokens = np.arange(30, dtype=np.int32) * 5 % VOCAB
    plan.reserve_pages(1)
    plan.run(tokens[:11], np.arange(11), np.zeros(11), [[0]], [])
    plan.reserve_pages(5000)
    assert plan.num_pages >= 5000
    plan.reserve_pages(3)
    assert plan.num_pages >= 5000
    got = plan.run(tokens[11:], np.arange(11, 30), np.zeros(19), [[0]], np.arange(19))
    assert_same_bits(got, want[11:])


def lora_net(*, view: bool = False, one_weight: bool = False) -> tuple[_core.Program, dict[str, np.ndarray]]:
    """y = linear(x) with an adapter, whose matrices are 16 x 16."""
    rng = np.random.default_rng(SEED)
    net = Net()
    x = net.rows(rng.standard_normal((8, 16)))
    y = net.node("linear", "y", [("x", x), ("w", net.weight(rng.standard_normal((16, 16))))])[0]
    if view:
        y = net.node("reshape", "view", [("x", y)], dims="16")[0]
    a = net.weight(rng.standard_normal((16, 16)))
    b = a if one_weight else net.weight(rng.standard_normal((16, 16)))
    return net.finish(net.node("lora", "adapted", [("x", x), ("y", y), ("a", a), ("b", b)], adapter=0, factor=1.0)[0]), net.source


def test_what_adapters_change_is_nobody_elses() -> None:
    compiled(*lora_net())
    with pytest.raises(UnsupportedModelError, match="lora adapted: y is a view of what others read"):
        compiled(*lora_net(view=True))
    with pytest.raises(UnsupportedModelError, match="lora adapted: weight w2 is read by rows and by columns"):
        compiled(*lora_net(one_weight=True))


def test_rows_of_embeddings_are_as_wide_in_all_functions() -> None:
    def program(width: int) -> tuple[_core.Program, dict[str, np.ndarray]]:
        net = Net()
        x = net.rows(np.ones((16, 16)))
        w = net.weight(np.ones((16, 16)), name="output")
        net.builder.set_outputs(net.node("unembed", "logits", [("x", x), ("w", w)]))
        net.builder.begin_function("encode")
        rows = net.rows(np.ones((16, width)), "others")
        net.builder.set_outputs(net.node("pool", "vector", [("x", rows)], kind="last"))
        return net.builder.finish(), net.source

    assert compiled(*program(16)).encoding_size == 16
    with pytest.raises(UnsupportedModelError, match="embed others: rows of 32 numbers, those of another function have 16"):
        compiled(*program(32))


def test_pools_are_as_many_as_a_word_has_bits() -> None:
    def program(windows: int) -> tuple[_core.Program, dict[str, np.ndarray]]:
        net = Net()
        x = net.node("reshape", "heads", [("x", net.rows(np.ones((16, 16))))], dims="1, 16")[0]
        for layer in range(windows):
            y = net.node("attention", f"y.{layer}", [("q", x), ("k", x), ("v", x)], layer=layer, scale=1.0, window=layer)[0]
        return net.finish(y), net.source

    assert len(compiled(*program(64)).kv_pools) == 64
    with pytest.raises(UnsupportedModelError, match="65 different windows; a cache may have 64"):
        compiled(*program(65))


def test_vectors_beyond_any_memory_are_refused_before_they_are_allocated() -> None:
    net = Net()
    x = net.rows(np.ones((16, 16)))
    for i in range(2**12):
        net.builder.add_weight(f"vector.{i}", (2**31 - 1,), "F32")
    net.source.update({f"vector.{i}": np.zeros(0, np.uint8) for i in range(2**12)})
    with pytest.raises(MemoryBudgetError, match=r"weights that are read as floats take \d+ bytes"):
        compiled(net.finish(x), net.source)

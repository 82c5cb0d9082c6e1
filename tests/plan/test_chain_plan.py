"""Plans of the parts of a program as one plan: the bits of the whole, whatever the cut, the batch and the cache."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import oracle
import pytest
from kernel_cases import Floats
from plan_runs import run, run_company
from recurrent_models import RECURRENT, write_model
from sterna import _core
from sterna._core import Gguf, Program
from sterna.errors import ArgumentError, MemoryBudgetError
from sterna.trace import trace

# Dense; two windows; a chunked window; experts; latent keys; sinks; codes; states alone, and beside keys; layers that keep
# nothing.
ORACLES = ["llama3", "gemma3", "llama4-small", "mixtral", "deepseek2-groups", "gpt-oss-small", "llama-256.mix-Q4_K_M"]
ORACLES += ["bitnet.TQ2_0", "phi3-small", "gpt2", "bloom", "qwen3next-small", "granite-hybrid-small", "falcon-h1"]
ORACLES += ["mamba", "lfm2-small", "nemotron-h"]


@cache
def model(name: str) -> tuple[Gguf, Program]:
    """The file, and the program as it was traced."""
    if name not in RECURRENT:
        file = Gguf(oracle.model_path(name))
        return file, trace(file, embed=True).program
    with TemporaryDirectory() as folder:
        file = Gguf(write_model(RECURRENT[name](), Path(folder) / "model.gguf"))
        return file, trace(file, embed=True).program


def compiled(name: str, cut: int = 0, *, fused: bool = True, **options: object) -> _core.ProgramPlan:
    """A chain of two plans, or with cut 0 the plan of the whole."""
    file, program = model(name)
    parts = program.split_layers(cut) if cut else (program,)
    options = {"threads": 2, "max_tokens": 160, "max_outputs": 160, **options}
    plans = [_core.compile_cpu(part.fuse() if fused else part, file, **options) for part in parts]
    plan = plans[0] if cut == 0 else _core.compile_chain(program.fuse() if fused else program, plans)
    plan.reserve_pages(5)
    return plan


def tokens_of(plan: _core.ProgramPlan, count: int = 150) -> np.ndarray:
    return np.random.default_rng(3).integers(3, plan.vocab_size, count).astype(np.int32)


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("name", ORACLES)
def test_the_bits_of_the_whole(name: str, kv_dtype: str) -> None:
    whole = compiled(name, kv_dtype=kv_dtype)
    tokens = tokens_of(whole, 70 if kv_dtype == "f32" else 120)
    want = run(whole, tokens)
    for cut in range(1, model(name)[1].num_layers):
        chain = compiled(name, cut, kv_dtype=kv_dtype)
        assert chain.vocab_size == whole.vocab_size and chain.longrope_context == whole.longrope_context
        assert np.array_equal(run(chain, tokens), want), cut
        assert np.array_equal(run(chain, tokens, 7), want), cut
    unfused = compiled(name, 1, kv_dtype=kv_dtype, fused=False)
    assert np.array_equal(run(unfused, tokens, 31), want)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "deepseek2-groups", "phi3-small", "qwen3next-small", "mamba"])
def test_company_does_not_matter(name: str) -> None:
    whole, chain = compiled(name), compiled(name, 1)
    tokens = tokens_of(whole, 40)
    texts = {"a": tokens, "b": np.roll(tokens, 1)[:27], "c": np.roll(tokens, 2)[:13]}
    want = {key: run(whole, text) for key, text in texts.items()}
    steps = [{key: 1 for key, text in texts.items() if i < len(text)} for i in range(len(tokens))]
    chunks = [{"c": 6, "a": 35}, {"b": 26, "c": 7, "a": 1}, {"a": 4, "b": 1}]
    for batches in (steps, chunks):
        for key, got in run_company(chain, texts, batches).items():
            assert np.array_equal(got, want[key]), key


@pytest.mark.parametrize("name", ["llama3", "qwen3next-small"])
def test_vectors(name: str) -> None:
    whole, chain = compiled(name), compiled(name, 1)
    assert chain.encoding_size == whole.encoding_size > 0 and chain.encodes_whole == whole.encodes_whole
    tokens = tokens_of(whole, 90)
    sequences, positions = np.repeat([0, 1], [60, 30]), np.concatenate([np.arange(60), np.arange(30)])
    batch = (tokens, positions, sequences, [[0], [2]], [59, 89], "encode")
    assert np.array_equal(chain.run(*batch), whole.run(*batch))


@pytest.mark.parametrize("name", ["llama3", "mamba2", "qwen3next", "lfm2"])
def test_a_batch_that_was_interrupted_behind_the_first_part_runs_again(name: str) -> None:
    """The first part is as far as an interrupt lets it come: it has its keys, values and states of the batch."""
    whole, chain = compiled(name), compiled(name, 1)
    assert isinstance(chain, _core.ChainPlan)
    tokens = tokens_of(whole, 100)
    want = run(whole, tokens)
    first = chain.parts[0]
    for begin, end in ((0, 40), (40, 41), (41, 64), (64, 65), (65, 100)):
        batch = tokens[begin:end], np.arange(begin, end), np.zeros(end - begin, int), [[3, 1]]
        for _ in range(2):
            sent = first.run(*batch, [])
            assert len(sent) == end - begin
        if end - begin > 1:  # and with fewer rows than the batch that was interrupted
            fewer = tokens[begin : end - 1], *(array[:-1] for array in batch[1:3]), batch[3]
            first.run(*fewer, [])
        assert np.array_equal(chain.run(*batch, np.arange(end - begin)), want[begin:end])


def test_the_parts_alone() -> None:
    whole, chain = compiled("llama3"), compiled("llama3", 1)
    assert isinstance(chain, _core.ChainPlan)
    first, last = chain.parts
    batch = tokens_of(whole, 5), np.arange(5), np.zeros(5, int), [[0]]
    sent = first.run(*batch, [])
    width = sent.shape[1]
    assert sent.shape == (5, first.vocab_size)
    assert np.array_equal(last.run(*batch, [1, 4], received=sent), whole.run(*batch, [1, 4]))
    for wrong in (np.zeros(0), sent[:4], sent[:, 1:]):
        with pytest.raises(ArgumentError, match=f"numbers from the plan before this one, 5 rows have {5 * width}"):
            last.run(*batch, [4], received=wrong)
    with pytest.raises(ArgumentError, match=f"{5 * width} numbers from the plan before this one, 5 rows have 0"):
        first.run(*batch, [4], received=sent)
    with pytest.raises(ArgumentError, match="5 rows have 0"):
        chain.run(*batch, [4], received=sent)


def test_batches_are_checked() -> None:
    chain = compiled("llama3", 1)
    good = [5, 6], [0, 1], [0, 0], [[0]], [1]
    chain.run(*good)
    # The rows that cross have fewer numbers: ids above are tokens all the same.
    assert chain.run([chain.vocab_size - 1, 6], *good[1:]).shape == (1, chain.vocab_size)
    for at, value, problem in [
        (0, [5, chain.vocab_size], f"token {chain.vocab_size} is not in the vocabulary"),
        (0, [5, -1], "token -1 is not in the vocabulary"),
        (1, [0, 64], "position 64 has no page"),
        (2, [0, 1], "sequence 1"),
        (3, [[9]], "page 9 of 5"),
        (4, [2], "output row 2"),
        (0, np.full(161, 5), "161 tokens, the plan takes 1 to 160"),
    ]:
        with pytest.raises(ArgumentError, match=problem):
            chain.run(*good[:at], value, *good[at + 1 :])


@pytest.mark.parametrize("name", ["gemma3", "granite-hybrid-small", "nemotron-h"])
def test_memory_and_pools_are_sums(name: str) -> None:
    whole, chain = compiled(name), compiled(name, 1)
    assert isinstance(chain, _core.ChainPlan)
    parts = chain.parts
    assert chain.weight_bytes == sum(part.weight_bytes for part in parts) >= whole.weight_bytes
    assert chain.scratch_bytes == sum(part.scratch_bytes for part in parts)
    assert [window for window, _ in chain.kv_pools] == [window for window, _ in whole.kv_pools]
    for window, size in chain.kv_pools:
        held = [dict(part.kv_pools)[window] for part in parts if window in dict(part.kv_pools)]
        headers = 64 * (len(held) - 1) if window < 0 else 0  # each page of states has one
        assert size == sum(held) == dict(whole.kv_pools)[window] + headers
    assert chain.layouts == {key: sum(part.layouts.get(key, 0) for part in parts) for key in chain.layouts}
    layouts = {plan.kv_layout for plan in (whole, chain, compiled(name, 2) if name == "gemma3" else chain, *parts)}
    assert len(layouts) == (5 if name == "gemma3" else 4)  # no page of one is taken for one of another
    assert (chain.max_tokens, chain.max_outputs, chain.num_pages) == (160, 160, 5)


def test_pages_are_those_of_the_part_that_has_the_fewest() -> None:
    chain = compiled("llama3", 1)
    assert isinstance(chain, _core.ChainPlan)
    chain.parts[0].reserve_pages(9)
    assert chain.num_pages == 5
    with pytest.raises(MemoryBudgetError):
        chain.reserve_pages(2**31 - 1)
    assert chain.num_pages == 5
    chain.reserve_pages(7)
    assert chain.num_pages == 7


def test_a_chain_is_as_short_as_its_shortest_part() -> None:
    file, program = model("llama3")
    first, last = (part.fuse() for part in program.split_layers(1))
    options = {"threads": 1, "kv_dtype": "f16"}
    plans = [
        _core.compile_cpu(first, file, max_tokens=20, max_outputs=1, **options),
        _core.compile_cpu(last, file, max_tokens=30, max_outputs=4, **options),
    ]
    chain = _core.compile_chain(program, plans)
    assert (chain.max_tokens, chain.max_outputs) == (20, 4)


def test_plans_that_make_no_chain() -> None:
    file, program = model("llama3")
    first, last = (part.fuse() for part in program.split_layers(1))
    head, tail = (_core.compile_cpu(part, file, threads=1) for part in (first, last))
    other = _core.compile_cpu(last, file, threads=1, kv_dtype="q8_0")
    for plans, problem in [
        ([], "a chain of no plans"),
        ([head], "not the parts of its program"),
        ([head, other], "different KV caches"),
        ([tail, head], "last plan is not the end of its program"),
        ([head, head, tail], "not the parts of its program"),
    ]:
        with pytest.raises(ArgumentError, match=problem):
            _core.compile_chain(program, plans)


# Several values cross, of rank 2 and 3; one of them is an embedding of the second part's first layer.
CROSSING = """program 1
input %tokens [T]
input %positions [T]
weight @embd [50, 32] F32
weight @second [50, 20] F32
weight @w [32, 32] F32
weight @from [32, 20] F32
kv 0: 2 heads, 16, 16
kv 1: 2 heads, 16, 16
function logits
  %x [T, 32] = embed(tokens=%tokens, w=@embd)
  %x.heads [T, 2, 16] = reshape(x=%x) {dims="2,16"}
  %layers.0/attention [T, 32] = attention(q=%x.heads, k=%x.heads, v=%x.heads) {layer=0, scale=0.25}
  %layers.0/x [T, 32] = linear(x=%layers.0/attention, w=@w)
  %layers.1/own [T, 20] = embed(tokens=%tokens, w=@second)
  %layers.1/wide [T, 32] = linear(x=%layers.1/own, w=@from)
  %layers.1/h [T, 32] = add(a=%layers.0/x, b=%layers.1/wide)
  %layers.1/heads [T, 2, 16] = reshape(x=%layers.1/h) {dims="2,16"}
  %layers.1/attention [T, 32] = attention(q=%layers.1/heads, k=%x.heads, v=%x.heads) {layer=1, scale=0.25}
  %y [T, 32] = add(a=%layers.1/attention, b=%layers.0/x)
  %logits [L, 50] = unembed(x=%y, w=@embd)
  return %logits
"""


def test_several_values_cross() -> None:
    program = Program.parse(CROSSING)
    shapes = {"embd": (50, 32), "second": (50, 20), "w": (32, 32), "from": (32, 20)}
    random = np.random.default_rng(1)
    source = {key: random.normal(size=size).astype(np.float32).view(np.uint8).reshape(-1) for key, size in shapes.items()}
    parts = program.split_layers(1)
    sent = [value.shape for value in parts[1].values if value.name.startswith("receive")]
    assert sent == [("T", 2, 16), ("T", 32), ("T", 20)]
    tokens = random.integers(0, 50, 70)
    for fused in (False, True):
        plans = [_core.compile_cpu(part.fuse() if fused else part, source, threads=2) for part in (program, *parts)]
        chain = _core.compile_chain(program, plans[1:])
        results: list[Floats] = []
        for plan in (plans[0], chain):
            plan.reserve_pages(2)
            results.append(plan.run(tokens, np.arange(70), np.zeros(70, int), [[1, 0]], np.arange(64, 70)))
        assert np.array_equal(*results)


def test_values_are_found_in_their_part() -> None:
    file, program = model("llama3")
    parts = [part.fuse() for part in program.split_layers(1)]
    plans = [_core.compile_cpu(part, file, threads=1, keep_values=True) for part in parts]
    chain = _core.compile_chain(program.fuse(), plans)
    whole = _core.compile_cpu(program.fuse(), file, threads=1, keep_values=True)
    for plan in (chain, whole):
        plan.reserve_pages(1)
        plan.run([5, 6, 7], [0, 1, 2], [0, 0, 0], [[0]], [2])
    assert chain.value_names == [name for plan in plans for name in plan.value_names]
    common = [name for name in whole.value_names if name in chain.value_names and not name.startswith("encode/")]
    assert len(common) > 15
    for name in common:
        assert np.array_equal(chain.value(name), whole.value(name)), name
    with pytest.raises(ArgumentError, match='keeps no value "nothing"'):
        chain.value("nothing")

"""The same bits whatever the path: each model file on all instruction sets, token by token, and in company."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import oracle
import pytest
from kernel_cases import LEVELS, assert_same_bits
from plan_runs import KV_TYPES, compiled, run, run_company
from sterna import _core
from sterna._core import Gguf
from sterna.trace import trace

pytestmark = pytest.mark.reference

# Kinds of arithmetic and of attention, in all combinations.
INVARIANT = ["llama3", "qwen2", "qwen3", "gemma3", "mixtral", "mixtral.Q8_0", "qwen2moe", "qwen3moe", "deepseek-v2", "deepseek-v3", "llama4", "gpt-oss-q.MXFP4_MOE", "bitnet-b158.TQ2_0", "bitnet.TQ2_0", "llama-256.mix-Q4_K_M", "llama-256.Q4_0"]
# The rest, once each.
OTHERS = [name for name in oracle.FLOAT_MODELS if name not in INVARIANT]
CHUNKS = [1, 7, 64, 0]
# Rows of three sequences in each batch: in front of the first, behind it, and on both sides; prompts beside single tokens.
LENGTHS = {"a": 70, "b": 41, "c": 23}
COMPANY = [{"c": 9, "a": 17, "b": 30}, {"a": 1, "b": 1}, {"b": 1, "c": 13, "a": 1}, {"a": 46, "c": 1, "b": 1}]
COMPANY += [{"b": 1, "a": 1}] * 5 + [{"b": 3}]
STEPS = [{key: 1 for key, length in LENGTHS.items() if i < length} for i in range(70)]



def require(name: str) -> Path:
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


def tokens_of(name: str, root: Path | None = None) -> np.ndarray:
    """The 70 tokens of an oracle, or of the one that it is a variant of."""
    folders = [root / part if root else oracle.folder(part) for part in (name, name.split(".")[0])]
    found = next(folder for folder in folders if (folder / "reference.npz").exists())
    with np.load(found / "reference.npz") as arrays:
        return arrays["tokens_2"]


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
@pytest.mark.parametrize("name", INVARIANT)
def test_every_path_gives_the_same_bits(name: str, kv_dtype: str, tmp_path: Path) -> None:
    """Threads, chunks, fusion and levels: all of each, and each pair of values of two of them somewhere."""
    if name == "bitnet-b158.TQ2_0":
        path = oracle.ternary_model("bitnet-b158", tmp_path)
    elif name == "mixtral.Q8_0":
        path = tmp_path / "model.gguf"
        oracle.quantised_twin(require("mixtral"), path, "Q8_0")
    else:
        path = require(name)
    tokens = tokens_of(name)
    assert len(tokens) == 70
    want = run(compiled(path, kv_dtype=kv_dtype, threads=1), tokens)
    assert np.isfinite(want).all()
    for number, (threads, fused) in enumerate(product((1, 2, 3, 4), (True, False))):
        level = LEVELS[1:][number % 2 - 1] if len(LEVELS) > 1 else LEVELS[0]
        plan = compiled(path, kv_dtype=kv_dtype, threads=threads, fused=fused, isa=level)
        for chunk in CHUNKS if threads <= 2 else CHUNKS[1:3]:
            what = f"{threads} threads, chunks of {chunk}, {level}, {'fused' if fused else 'unfused'}"
            assert_same_bits(run(plan, tokens, chunk, pages=(3, 1)), want, what)
    scalar = compiled(path, kv_dtype=kv_dtype, isa="scalar")
    assert_same_bits(run(scalar, tokens[:20], 7, total=70), want[:20], "scalar")


@pytest.mark.parametrize("name", OTHERS)
def test_paths_of_other_models(name: str) -> None:
    """As above, a few of each: what differs between the paths are kernels, and those have tests of their own."""
    path, tokens = require(name), tokens_of(name)
    kv_dtype = KV_TYPES[OTHERS.index(name) % 3]
    want = run(compiled(path, kv_dtype=kv_dtype, threads=1), tokens)
    for number, (threads, fused, chunk) in enumerate([(2, False, 1), (1, True, 7), (3, False, 64)]):
        level = LEVELS[1:][number % 2 - 1] if len(LEVELS) > 1 else LEVELS[0]
        plan = compiled(path, kv_dtype=kv_dtype, threads=threads, fused=fused, isa=level)
        assert_same_bits(run(plan, tokens, chunk, pages=(3, 1)), want, f"{threads} threads, chunks of {chunk}, {level}")
    scalar = compiled(path, kv_dtype=kv_dtype, isa="scalar")
    assert_same_bits(run(scalar, tokens[:20], 7, total=70), want[:20], "scalar")


@pytest.mark.parametrize("level", LEVELS[1:])
def test_all_of_threads_chunks_and_fusion(level: str) -> None:
    path, tokens = require("llama3"), tokens_of("llama3")
    want = run(compiled(path, threads=1, isa=LEVELS[-1]), tokens)
    for threads, fused in product((1, 2, 3, 4), (True, False)):
        plan = compiled(path, threads=threads, fused=fused, isa=level)
        for chunk in CHUNKS:
            assert_same_bits(run(plan, tokens, chunk), want, f"{threads} threads, chunks of {chunk}, fused {fused}")


@cache
def subset() -> dict[str, _core.Program]:
    """The program of each small oracle."""
    return {path.parent.name: trace(Gguf(path)).program for path in sorted(oracle.SUBSET.glob("*/model.gguf"))}


def decoders() -> list[str]:
    return [name for name, program in subset().items() if program.functions == ["logits"]]


@pytest.mark.parametrize("name", decoders())
def test_token_by_token_in_company_and_on_all_levels(name: str) -> None:
    """Each row is that of one prefill of its sequence alone."""
    path, tokens = oracle.SUBSET / name / "model.gguf", tokens_of(name, oracle.SUBSET)
    texts = {key: np.roll(tokens, i)[:length] for i, (key, length) in enumerate(LENGTHS.items())}
    alone = compiled(path, threads=1)
    want = {key: run(alone, text) for key, text in texts.items()}
    assert all(np.isfinite(rows).all() and len(rows) == LENGTHS[key] for key, rows in want.items())
    for level in LEVELS:
        plan = compiled(path, isa=level, threads=1)
        for batches in (COMPANY, STEPS):
            for key, got in run_company(plan, texts, batches).items():
                assert_same_bits(got, want[key], f"{level}, {key} in company that begins with {batches[0]}")
        # On pages that others have left.
        assert_same_bits(run(plan, tokens, 1, pages=(2, 3)), want["a"], f"{level}, token by token")


def test_every_model_file_has_a_small_oracle() -> None:
    """Those above, and the encoders and T5, whose tests are test_encoders.py and test_encoder_decoder.py."""
    programs = subset().values()
    found = {program.nodes(function)[-1].source for program in programs for function in program.functions}
    files = {path.name for path in (Path(__file__).parents[2] / "models").glob("*.py")} - {"__init__.py"}
    assert {source.split(":")[0].removeprefix("models/") for source in found} == files

"""Whole models on a GPU: against transformers and llama.cpp, and each row the same bits whatever runs beside it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cuda_plans import EMULATED, cases, compiled, needs_cuda, path_of
from kernel_cases import Floats, assert_same_bits
from oracle_marks import MISSES
from plan_runs import run, run_company
from reference import reference_dir
from sterna._core import Gguf
from sterna.device import find_devices
from sterna.diff import diff
from sterna.trace import trace

pytestmark = needs_cuda

# The oracles' own marks.
MARKS = {"f32": 2e-4, "f16": 3e-3}
TERNARY_MARK = 1e-2
QUANTISED_RATIO = 1.10

# One of each kind of layer: all that there is time for where kernels run on the CPU.
KINDS = [
    "llama3",
    "gemma3",
    "gpt2",
    "mixtral",
    "qwen3moe-small",
    "deepseek2-groups",
    "mamba2-small",
    "qwen3next-small",
    "lfm2-small",
    "gpt-oss-small",
]
KINDS_OF_ATTENTION = ["llama3", "gemma3", "deepseek2-groups", "gpt-oss-small"]
# Without a GPU the f16 cache is that of models whose attention differs: others have the same kernels.
FLOAT_CASES = (
    [(name, "f32") for name in KINDS] + [(name, "f16") for name in KINDS_OF_ATTENTION]
    if EMULATED
    else [(name, kv_dtype) for name in (*oracle.FLOAT_MODELS, "bitnet", "bitnet-b158") for kv_dtype in MARKS]
)
TERNARY_MODELS = ["bitnet.TQ2_0", "bitnet-b158.TQ2_0"]


def quantised_models() -> list[str]:
    if EMULATED:
        return ["llama-256.Q4_0", "llama-256.mix-Q4_K_M", "llama-256.IQ2_XXS"]
    found = [path for kind in ("llama-256.*", "gpt-oss-q.*") for path in sorted(reference_dir("oracle").glob(kind))]
    return [path.name for path in found if (path / "model.gguf").exists()]


@pytest.mark.parametrize(("name", "kv_dtype"), FLOAT_CASES)
def test_float_models(name: str, kv_dtype: str) -> None:
    plan = compiled(path_of(name), kv_dtype=kv_dtype)
    pairs = [(run(plan, case.tokens), case.logits) for case in cases(name)]
    error = oracle.relative_rms(pairs)
    print(f"{name}, {kv_dtype}: {error:.2e}")
    assert error <= max(MARKS[kv_dtype], 1.1 * MISSES.get(name, {}).get(kv_dtype, 0.0))


def median_error(pairs: list[tuple[Floats, Floats]]) -> float:
    """The median over positions of ||y - reference|| / ||reference||."""
    errors = [np.linalg.norm(y - want, axis=1) / np.linalg.norm(want, axis=1) for y, want in pairs]
    return float(np.median(np.concatenate(errors)))


@pytest.mark.parametrize("name", quantised_models())
def test_quantised_models(name: str) -> None:
    plan = compiled(path_of(name), kv_dtype="f32")
    reference, peer = cases(name), cases(name, "llamacpp")
    ours = median_error([(run(plan, case.tokens), case.logits) for case in reference])
    theirs = median_error([(other.logits, case.logits) for case, other in zip(reference, peer, strict=True)])
    print(f"{name}: {ours:.3e}, llama.cpp {theirs:.3e}, ratio {ours / theirs:.3f}")
    assert ours <= QUANTISED_RATIO * theirs


@pytest.mark.parametrize("name", TERNARY_MODELS)
def test_ternary_models(name: str) -> None:
    plan = compiled(path_of(name), kv_dtype="f32")
    source = name.split(".")[0]
    pairs = [(run(plan, case.tokens), case.logits) for case in cases(source, "logits_a8")]
    error = oracle.relative_rms(pairs)
    print(f"{name}: {error:.2e}")
    assert error <= TERNARY_MARK


@pytest.mark.parametrize("name", [*KINDS, *TERNARY_MODELS, *quantised_models()])
def test_each_value_is_the_interpreters(name: str) -> None:
    """Every node of the fused plan, given the plan's own inputs: `sterna diff --device cuda`."""
    file = Gguf(path_of(name))
    tokens = list(range(3, 9 if EMULATED else 40))
    (device,) = find_devices("cuda")
    differences = list(diff(file, trace(file).program.fuse(), tokens, kv_dtype="f32", threads=1, device=device))
    assert differences
    assert not [each for each in differences if each.diverges]


@pytest.mark.parametrize("name", [*KINDS, *TERNARY_MODELS, "llama-256.mix-Q4_K_M"])
def test_rows_depend_on_their_own_sequence(name: str) -> None:
    """A prompt at once and token by token, alone and in company, on these pages and on those, gives the same bits."""
    tokens = cases(name.split(".")[0] if name in TERNARY_MODELS else name)[-1].tokens[: 8 if EMULATED else None]
    texts = {"a": tokens, "b": np.roll(tokens, 1)[: len(tokens) * 2 // 3], "c": np.roll(tokens, 2)[: len(tokens) // 3]}
    plan = compiled(path_of(name))
    want = {key: run(plan, text) for key, text in texts.items()}
    assert all(np.isfinite(rows).all() for rows in want.values())
    assert_same_bits(run(plan, tokens), want["a"], "again")
    steps = [{key: 1 for key, text in texts.items() if i < len(text)} for i in range(len(tokens))]
    half = len(texts["c"]) // 2
    chunks = [{"c": half, "a": len(tokens) - 5}, {"b": len(texts["b"]) - 1, "c": len(texts["c"]) - half, "a": 1}]
    chunks += [{"a": 4, "b": 1}]
    for batches in (steps, chunks):
        for key, got in run_company(plan, texts, batches).items():
            assert_same_bits(got, want[key], f"{key} in company that begins with {batches[0]}")
    assert_same_bits(run(plan, tokens, 3, pages=(2, 3)), want["a"], "in chunks of 3, on pages that others have left")

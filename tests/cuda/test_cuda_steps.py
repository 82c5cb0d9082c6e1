"""How many kernels a run takes on a GPU, and that fewer of them give the same bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import sterna
from cuda_plans import cases, compiled, needs_cuda, path_of
from kernel_cases import Floats, assert_same_bits
from sterna import _core

pytestmark = needs_cuda

LAYERS = 2


def counts(plan: _core.CudaPlan, rows: int, outputs: int) -> dict[str, int]:
    """Steps by kernel of a run of one sequence."""
    at = np.arange(rows)
    plan.run(at + 3, at, 0 * at, [[0]], at[rows - outputs :])
    return {name: steps for name, (steps, _) in plan.time_kernels(1).items()}


@pytest.mark.parametrize("name", ["llama-256.Q4_0", "llama-256.mix-Q4_K_M"])
def test_a_layer_of_a_decode_step_is_eight_kernels(name: str) -> None:
    plan = compiled(path_of(name))
    # Norm; queries, keys and values; cache; attention; output; norm; gate and up; down. Then the last layer takes the
    # wanted rows of attention and of the residual, and prepares the former; last a norm and the logits. First of all
    # tokens are looked up, and angles.
    assert counts(plan, 1, 1)["all"] == 2 + 8 * LAYERS + 3 + 2
    for rows in (1, 8):
        found = counts(plan, rows, rows)
        assert (found["matmul"], found["prepare"]) == (4 * LAYERS + 1, 2 * LAYERS + 1 + 1)
    # More rows than matmuls prepare: those of attention in the first layer and of both gates; one of a prompt's.
    assert counts(plan, 9, 9)["prepare"] == 2 * LAYERS + 1 + 1 + 3
    assert counts(plan, 9, 1)["prepare"] == 2 * LAYERS + 1 + 1 + 2


@pytest.mark.parametrize("name", ["llama3", "bitnet.TQ2_0"])
def test_rows_that_need_other_numbers_are_prepared_by_a_kernel(name: str) -> None:
    """Float weights meet floats, and BitNet's norms come before its outputs."""
    plan = compiled(path_of(name))
    assert counts(plan, 1, 1) == counts(plan, 12, 12)


def rows_of(plan: _core.CudaPlan, tokens: np.ndarray) -> Floats:
    """Logits of a prompt, then of one row, of two and of one again."""
    cuts = [0, len(tokens) - 4, len(tokens) - 3, len(tokens) - 1, len(tokens)]
    got = []
    for first, last in pairwise(cuts):
        rows = np.arange(last - first)
        got.append(plan.run(tokens[first:last], first + rows, 0 * rows, [[2, 0]], rows))
    return np.concatenate(got)


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("name", ["llama-256.Q4_0", "llama-256.mix-Q4_K_M", "llama-256.IQ2_XXS"])
def test_fewer_kernels_change_no_bit(name: str, kv_dtype: str) -> None:
    """Against every value being kept, and against each node of the unfused program alone."""
    tokens = cases(name)[-1].tokens[:14]
    want = rows_of(compiled(path_of(name), kv_dtype=kv_dtype), tokens)
    kept = compiled(path_of(name), kv_dtype=kv_dtype, keep_values=True)
    assert_same_bits(rows_of(kept, tokens), want, "values are kept")
    last = kept.value("layers.0/attention")
    assert last.shape == (256,) and np.isfinite(last).all() and last.any()
    unfused = compiled(path_of(name), fused=False, kv_dtype=kv_dtype)
    assert_same_bits(rows_of(unfused, tokens), want, "unfused")

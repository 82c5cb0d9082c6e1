"""How many kernels a run takes on a GPU, and that fewer of them give the same bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
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


def test_a_layer_of_a_decode_step_is_eight_kernels() -> None:
    plan = compiled(path_of("llama-256.mix-Q4_K_M"))
    # Norm; queries, keys and values; cache; attention; output; norm; gate and up; down. Then the last layer takes the
    # wanted rows of attention and of the residual, and prepares the former; last a norm and the logits. First of all
    # tokens are looked up, and angles.
    found = counts(plan, 1, 1)
    assert found["all"] == 2 + 8 * LAYERS + 3 + 2
    assert (found["matmul"], found["prepare"]) == (4 * LAYERS + 1, 2 * LAYERS + 1 + 1)
    # More rows than matmuls prepare: those of attention and of the gate in the first layer; one row of the last.
    assert counts(plan, 9, 1)["prepare"] == 2 * LAYERS + 1 + 1 + 2


@pytest.mark.parametrize(("name", "prepared"), [("llama3", 2 * LAYERS + 1), ("mixtral", 3 * LAYERS + 1)])
def test_float_weights_take_rows_as_they_are(name: str, prepared: int) -> None:
    """All but those that a norm goes before, or that experts sort: the router's are."""
    plan = compiled(path_of(name))
    found = counts(plan, 1, 1)
    assert found["prepare"] == prepared
    assert found == counts(plan, 9, 1)


def rows_of(plan: _core.CudaPlan, tokens: np.ndarray) -> Floats:
    """Logits of a prompt, then of one row, of two and of one again."""
    cuts = [0, len(tokens) - 4, len(tokens) - 3, len(tokens) - 1, len(tokens)]
    got = []
    for first, last in pairwise(cuts):
        rows = np.arange(last - first)
        got.append(plan.run(tokens[first:last], first + rows, 0 * rows, [[2, 0]], rows))
    return np.concatenate(got)


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("name", ["llama-256.Q4_0", "llama-256.mix-Q4_K_M", "llama-256.IQ2_XXS"])
def test_fewer_kernels_change_no_bit(name: str, kv_dtype: str) -> None:
    """Against so many rows at once that all are prepared by a kernel, and against every value being kept."""
    tokens = cases(name)[-1].tokens[:14]
    plan = compiled(path_of(name), kv_dtype=kv_dtype)
    got = rows_of(plan, tokens)
    at = np.arange(len(tokens))
    assert_same_bits(got, plan.run(tokens, at, 0 * at, [[1, 3]], at), "all rows at once")
    kept = compiled(path_of(name), kv_dtype=kv_dtype, keep_values=True)
    assert_same_bits(got, rows_of(kept, tokens), "values are kept")
    last = kept.value("layers.0/attention")
    assert last.shape == (256,) and np.isfinite(last).all() and last.any()

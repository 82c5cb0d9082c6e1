"""The largest logits that a GPU finds, and texts that are sampled from them."""

from __future__ import annotations

import numpy as np
import pytest
import sterna
from cuda_plans import MOST, compiled, needs_cuda, path_of
from sterna import _core
from sterna.errors import ArgumentError
from sterna.trace import trace

pytestmark = needs_cuda

TOKENS = [5, 9, 100, 17, 33, 8]
ALL = list(range(len(TOKENS)))
ROWS = (TOKENS, ALL, [0] * len(TOKENS), [[0]], ALL)


def test_they_are_the_largest() -> None:
    plan = compiled(path_of("llama3"))
    assert plan.most_largest == 256
    want = plan.run(*ROWS)
    wanted = [1, 0, 40, 256, 0, 7]
    got = plan.run(*ROWS, largest=wanted)
    assert (got == want).all()  # rows that did not come at once are fetched
    for row, count in enumerate(wanted):
        order = np.lexsort((np.arange(want.shape[1]), -want[row]))[:count]
        assert plan.largest_logits(row) == [(int(token), float(want[row][token])) for token in order]


@pytest.mark.parametrize("largest", [[257], [-1], [1, 1]])
def test_refused(largest: list[int]) -> None:
    plan = compiled(path_of("llama3"))
    with pytest.raises(ArgumentError, match="largest logits"):
        plan.run([1], [0], [0], [[0]], [0], largest=largest)


def test_the_cpu_finds_none() -> None:
    file = _core.Gguf(path_of("llama3"))
    plan = _core.compile_cpu(trace(file).program.fuse(), file, max_tokens=MOST, threads=1)
    plan.reserve_pages(1)
    assert plan.most_largest == 0
    with pytest.raises(ArgumentError, match="1 largest logits, the plan finds up to 0"):
        plan.run([1], [0], [0], [[0]], [0], largest=[1])


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {}, {"repetition_penalty": 1.3}, {"top_k": 0, "top_p": 1.0}], ids=str
)
def test_texts_are_those_of_whole_rows(sampling: dict[str, float]) -> None:
    """With log-probabilities whole rows are read."""
    with sterna.load(path_of("llama3"), device="cuda", context=128, threads=1) as llm:
        options = {"max_tokens": 6, "seed": 11, "ignore_eos": True, **sampling}
        fast = llm.generate(TOKENS, **options)
        assert llm.generate(TOKENS, logprobs=0, **options).tokens == fast.tokens

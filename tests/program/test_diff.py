"""`sterna.diff`: plans agree with the reference, and a value that does not is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle
import pytest
import sterna.diff
from sterna._core import Gguf
from sterna.diff import NodeDifference, diff
from sterna.memory import KvDtype
from sterna.trace import trace

MODELS = ["llama3", "gemma3", "mixtral", "bitnet.TQ2_0", "llama-256.mix-Q4_K_M"]


def differences(name: str, fused: bool, kv_dtype: KvDtype = "f16") -> list[NodeDifference]:
    file = Gguf(oracle.model_path(name))
    program = trace(file).program
    return list(diff(file, program.fuse() if fused else program, list(range(3, 40)), kv_dtype=kv_dtype))


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_plans_agree_with_the_reference(name: str, fused: bool, kv_dtype: KvDtype) -> None:
    found = differences(name, fused, kv_dtype)
    assert len(found) > 8
    assert [d.name for d in found if d.diverges] == []
    assert all(math.isfinite(d.error) for d in found)


def test_quantised_experts_agree_with_the_reference(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    oracle.quantised_twin(oracle.model_path("mixtral"), path, "Q8_0")
    file = Gguf(path)
    found = list(diff(file, trace(file).program.fuse(), list(range(3, 40))))
    assert [d.name for d in found if d.diverges] == []
    assert sum(d.op == "expert_glu" for d in found) == 2


@pytest.mark.parametrize("fused", [False, True])
def test_the_node_that_differs_is_named(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(sterna.diff.TensorValues):
        """One row of one weight is 2 % larger than the plan's."""

        def __call__(self, name: str) -> npt.NDArray[np.float32]:
            values: npt.NDArray[Any] = super().__call__(name)
            if name == "blk.1.attn_output":
                values = values.copy()
                values[5] *= 1.02
            return values

    monkeypatch.setattr(sterna.diff, "TensorValues", Wrong)
    found = [d for d in differences("llama3", fused) if d.diverges]
    assert [(d.op, d.name.split("/")[0]) for d in found] == [("linear", "layers.1")]
    assert found[0].tolerance == sterna.diff.TOLERANCE

"""Shared experts that a file leaves out, by tensors or by keys: one clear error each, never a model without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import oracle
import pytest
from sterna._core import Gguf
from sterna.errors import ModelFormatError
from sterna.metadata import TensorInfo
from sterna.trace import trace

KEYS = re.compile(r"\.expert_shared_(count|feed_forward_length)$")
PARTS = ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"]
GATED = ["qwen2moe-small", "qwen3next-small"]
ALWAYS = [*GATED, "deepseek2-groups", "glm4moe", "dots1", "granite-hybrid-small", "hunyuan-moe"]
DECLARED = ["ernie4_5-moe", "granitemoe"]  # some models of these families have none
MISSING = [
    *((name, part) for name in (*ALWAYS, *DECLARED, "llama4-small") for part in PARTS),
    *((name, "ffn_gate_inp_shexp") for name in GATED),
]


@dataclass(frozen=True)
class Edited:
    """A model file without the tensors, and without the keys, that the patterns find."""

    file: Gguf
    tensors_gone: re.Pattern[str]
    keys_gone: re.Pattern[str]

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [tensor for tensor in self.file.tensors if not self.tensors_gone.search(tensor.name)]

    def __contains__(self, key: str) -> bool:
        return not self.keys_gone.search(key) and key in self.file

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.get(key, default) if key in self else default

    def array_length(self, key: str) -> int:
        return self.file.array_length(key)

    def weight_format(self, name: str) -> str:
        return self.file.weight_format(name)

    def fail(self, key: str, problem: str) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {key}: {problem}", self.path, key)


NOTHING = re.compile(r"(?!)")
SHARED_TENSORS = re.compile(r"_shexp\.")


def edited(name: str, tensors_gone: re.Pattern[str] = NOTHING, keys_gone: re.Pattern[str] = NOTHING) -> Edited:
    return Edited(Gguf(oracle.SUBSET / name / "model.gguf"), tensors_gone, keys_gone)


@pytest.mark.parametrize("name", [*ALWAYS, *DECLARED])
def test_whole_files_are_read(name: str) -> None:
    assert "ffn_up_shexp" in trace(edited(name)).program.text()


@pytest.mark.parametrize(("name", "part"), MISSING)
def test_a_missing_tensor_is_named(name: str, part: str) -> None:
    with pytest.raises(ModelFormatError, match=rf"tensor blk\.\d+\.{part}: is missing"):
        trace(edited(name, re.compile(rf"\.{part}\.")))


@pytest.mark.parametrize("name", [*ALWAYS, *DECLARED, "llama4-small"])
def test_none_of_the_tensors(name: str) -> None:
    with pytest.raises(ModelFormatError, match=r"tensor blk\.\d+\.ffn_gate_shexp: is missing"):
        trace(edited(name, SHARED_TENSORS))


@pytest.mark.parametrize("tensors_gone", [NOTHING, SHARED_TENSORS], ids=["keys", "keys and tensors"])
@pytest.mark.parametrize("name", ALWAYS)
def test_families_that_always_have_shared_experts_need_a_key(name: str, tensors_gone: re.Pattern[str]) -> None:
    with pytest.raises(ModelFormatError, match=r"\.expert_shared_feed_forward_length: is missing or 0, expert_shared_count is 0"):
        trace(edited(name, tensors_gone, KEYS))


@pytest.mark.parametrize("name", DECLARED)
def test_tensors_that_no_key_declares_are_refused(name: str) -> None:
    with pytest.raises(ModelFormatError, match=r"ffn_gate_shexp\.weight at byte \d+: has shape \[\d+, \d+\], expected \[0, "):
        trace(edited(name, NOTHING, KEYS))


@pytest.mark.parametrize("name", DECLARED)
def test_families_that_declare_shared_experts_may_have_none(name: str) -> None:
    text = trace(edited(name, SHARED_TENSORS, KEYS)).program.text()
    assert "expert_glu(" in text
    assert "shexp" not in text

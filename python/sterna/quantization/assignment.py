"""`assign`: the format of every tensor of a file in a mix, with what had to give way to the width of its rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sterna import _core
from sterna.errors import ArgumentError
from sterna.quantization.mixes import EMBEDDINGS, FALLBACKS, OUTPUT, Mix, Place, choose, is_kept, role_of

if TYPE_CHECKING:
    from sterna._core import Gguf, TensorInfo

# Architectures whose 80-layer model llama.cpp calls the 70B one (LLM_TYPE_70B).
_LARGE = {"llama": True, "deci": False, "qwen2": False, "olmo": False}  # whether only with shared keys


@dataclass(frozen=True)
class Assignment:
    """Formats by tensor, and (tensor, wanted, given) where rows are no whole blocks of the wanted format."""

    formats: dict[str, str]
    fallbacks: list[tuple[str, str, str]]


def assign(file: Gguf, mix: Mix, *, head: str | None = None, has_importance: bool = False) -> Assignment:
    """The formats that `mix` gives the tensors of `file`; `head` is that of embedding and output instead of the mix's.

    ArgumentError: a `head` that cannot be, or whose blocks do not fit the rows.
    """
    names = {tensor.name for tensor in file.tensors}
    tied = OUTPUT not in names
    facts = _facts(file)
    counts: Counter[str] = Counter(role_of(tensor.name, tensor.shape, tied) for tensor in file.tensors)
    seen: Counter[str] = Counter()
    formats: dict[str, str] = {}
    fallbacks: list[tuple[str, str, str]] = []
    # Rules count tensors in the order of layers, whatever the order of the file.
    for tensor in sorted(file.tensors, key=lambda t: (_layer(t.name), t.name)):
        if is_kept(tensor.name, tensor.shape):
            formats[tensor.name] = tensor.format
            continue
        role = role_of(tensor.name, tensor.shape, tied)
        if head is not None and (tensor.name in EMBEDDINGS or tensor.name == OUTPUT):
            _check_head(head, tensor)
            formats[tensor.name] = head
            continue
        index = seen[role]
        seen[role] += 1
        count = counts[role]
        if role == "down":
            count = facts.num_layers
            if facts.num_experts > 1:
                index = _layer(tensor.name)
        place = Place(index, count, facts.queries_per_key, facts.num_experts, has_importance)
        is_expert = len(tensor.shape) > 2 and tensor.shape[0] > 1
        wanted = choose(mix, role, place, is_expert=is_expert, is_large=facts.is_large)
        if role == "head" and not _fits(tensor, mix.format):
            wanted = "Q8_0"
        given = wanted
        if not _fits(tensor, given):
            given = FALLBACKS.get(given, given)
            given = given if _fits(tensor, given) else "F16"
            fallbacks.append((tensor.name, wanted, given))
        formats[tensor.name] = given
    return Assignment({tensor.name: formats[tensor.name] for tensor in file.tensors}, fallbacks)


@dataclass(frozen=True)
class _Facts:
    num_layers: int
    num_experts: int
    queries_per_key: int
    is_large: bool


def _facts(file: Gguf) -> _Facts:
    architecture = file.get_string("general.architecture")
    layers = file.find_u32(f"{architecture}.block_count") or 0
    heads = _of_first_layer(file, f"{architecture}.attention.head_count", 1)
    key_heads = _of_first_layer(file, f"{architecture}.attention.head_count_kv", heads)
    large = layers == 80 and architecture in _LARGE and not (_LARGE[architecture] and heads == key_heads)
    experts = file.find_u32(f"{architecture}.expert_count") or 0
    return _Facts(layers, experts, heads // key_heads if key_heads else 0, large)


def _of_first_layer(file: Gguf, key: str, default: int) -> int:
    if key not in file:
        return default
    if file.type_of(key).startswith("array"):
        values = file.get_i32_array(key)
        return int(values[0]) if len(values) else default
    return file.get_u32(key)


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _fits(tensor: TensorInfo, format: str) -> bool:
    return tensor.shape[-1] % format_info(format).block_size == 0


def _check_head(head: str, tensor: TensorInfo) -> None:
    if not _fits(tensor, head):
        block = format_info(head).block_size
        raise ArgumentError(
            f"head: rows of {tensor.shape[-1]} weights of {tensor.name} are no whole blocks of {head} ({block} weights)"
        )


def format_info(name: str) -> _core.FormatInfo:
    """The row of the format table."""
    return _FORMATS[name]


_FORMATS = {info.name: info for info in _core.formats()}

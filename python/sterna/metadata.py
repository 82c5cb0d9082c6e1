"""The metadata and the tensor table of a model file, as model files read them: typed, and within ranges.

Both are untrusted. Errors name the file and the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from sterna.errors import UnsupportedModelError
from sterna.typed_reads import TypedReads, shown

MAX_CONTEXT = 1 << 31
MAX_LAYERS = 1024
MAX_EXTENT = 1 << 24  # hidden, feed-forward and vocabulary sizes
MAX_HEADS = 4096


class TensorInfo(Protocol):
    """One entry of a file's tensor table."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]:
        """Rows first, as numpy has it."""

    @property
    def format(self) -> str:
        """Name of the storage format, such as "Q4_K"."""

    @property
    def entry_offset(self) -> int:
        """Where the entry stands in the file, in bytes."""


class ModelFile(Protocol):
    """What tracing reads of a model file; sterna._core.Gguf has it."""

    @property
    def path(self) -> str: ...
    @property
    def tensors(self) -> Sequence[TensorInfo]: ...
    def __contains__(self, key: str) -> bool: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def array_length(self, key: str) -> int: ...
    def weight_format(self, name: str) -> str:
        """The format that a tensor is packed from: its own, or the ternary one that its contents allow."""

    def fail(self, key: str, problem: str) -> object:
        """Raises ModelFormatError about a key."""


class Metadata(TypedReads):
    """Typed, range-checked reads of the keys of one architecture. Errors name the file and the key."""

    def __init__(self, file: ModelFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture
        self._shapes = {tensor.name: tuple(tensor.shape) for tensor in file.tensors}

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Shape of a tensor of the file, None when there is none."""
        return self._shapes.get(tensor)

    def key(self, name: str) -> str:
        """The full key: "block_count" -> "llama.block_count"; general and tokenizer keys as they are."""
        return name if name.startswith(("general.", "tokenizer.")) else f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        return self.key(name) in self.file

    def fail(self, name: str, problem: str) -> NoReturn:
        self.file.fail(self.key(name), problem)
        raise AssertionError("fail() returned")

    def value(self, name: str) -> Any:
        return self.file.get(self.key(name))

    def by_layer(self, name: str, layers: int, low: int, high: int, default: int | None = None) -> tuple[int, ...]:
        """An integer within [low, high] for each layer: from an array of one per layer, or one number for all."""
        value = self.value_or(name, default)
        if isinstance(value, int | float | str):
            return (self.integer(name, low, high, default),) * layers
        if len(value) != layers:
            self.fail(name, f"has {len(value)} elements for {layers} layers")
        items: list[Any] = value.tolist() if hasattr(value, "tolist") else list(value)
        for item in items:
            if type(item) is not int or not low <= item <= high:
                self.fail(name, f"has an element {shown(item)}, expected integers from {low} to {high}")
        return tuple(items)

    def layer_booleans(self, name: str, layers: int) -> list[bool]:
        """An array of one for each layer."""
        value = self.value_or(name, None)
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, list) or len(items) != layers or any(type(item) is not bool for item in items):
            self.fail(name, f"is {shown(value)}, expected true or false for each of {layers} layers")
        return items

    def per_layer(self, name: str, layers: int, low: int, high: int, default: int | None = None) -> int:
        """The same where all layers must agree, but for zeros where low is 0."""
        items = set(self.by_layer(name, layers, low, high, default))
        if len(items) > 1:
            items.discard(0)
        if len(items) != 1:
            raise UnsupportedModelError(f"{self.file.path}: {self.key(name)} differs from layer to layer")
        return items.pop()

    def required_window(self) -> int:
        """The sliding window of a family whose every model has one."""
        return self.integer("attention.sliding_window", 1, MAX_CONTEXT)

    def sliding_layers(self, count: int, period: int | None = None) -> tuple[bool, ...]:
        """Which of `count` layers have a sliding window: a flag each, or all but every n-th; by default `period`."""
        name = "attention.sliding_window_pattern"
        value = self.value_or(name, period)
        if isinstance(value, int | float | str):
            every = self.integer(name, 1, MAX_LAYERS, period)
            return tuple((i + 1) % every != 0 for i in range(count))
        flags: list[Any] = value.tolist() if hasattr(value, "tolist") else list(value)
        if len(flags) != count or not all(type(flag) is bool for flag in flags):
            self.fail(name, f"is {shown(flags)}, expected {count} times true or false, one a layer")
        return tuple(flags)

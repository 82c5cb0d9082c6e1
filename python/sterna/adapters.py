"""LoRA adapters in GGUF files (arXiv:2106.09685): small matrices a, b beside linear layers, y + s * alpha / r * b a x.

Any number of them is loaded beside a model, and each request says which one it uses; the model's own weights stay as
they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sterna.errors import ArgumentError, ModelFormatError, UnsupportedModelError

if TYPE_CHECKING:
    from sterna._core import Gguf, SequenceContext
    from sterna.metadata import TensorInfo

MAX_ADAPTERS = 64
MAX_RANK = 1 << 14
_SUFFIXES = (".lora_a", ".lora_b")


@dataclass(frozen=True)
class AdapterPair:
    """The two matrices for one weight: a [rank, k] and b [n, rank], with their names in the adapter's file."""

    a: TensorInfo
    b: TensorInfo
    factor: float  # alpha / rank


class Adapter:
    """One adapter's file: which weights it has matrices for."""

    def __init__(self, name: str, file: Gguf, index: int) -> None:
        """ModelFormatError for a file that is no LoRA adapter, or contradicts itself."""
        self.name = name
        self.file = file
        self.index = index
        for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
            if file.get(key) != expected:
                file.fail(key, f"is {file.get(key)!r:.40}, expected {expected!r}: this is no LoRA adapter")
        alpha = file.get("adapter.lora.alpha")
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            file.fail("adapter.lora.alpha", f"is {alpha!r:.40}, expected a number")
        self.architecture = file.get("general.architecture")
        self.pairs = dict(self._read_pairs(float(alpha or 0)))  # by the weight's name, without ".weight"
        self._used: set[str] = set()

    def _read_pairs(self, alpha: float) -> Iterator[tuple[str, AdapterPair]]:
        tensors = {tensor.name: tensor for tensor in self.file.tensors}
        for full, tensor in tensors.items():
            base = next((full.removesuffix(suffix) for suffix in _SUFFIXES if full.endswith(suffix)), None)
            if base is None:
                self.fail(tensor, "is neither a .lora_a nor a .lora_b")
            a, b = (tensors.get(base + suffix) for suffix in _SUFFIXES)
            if a is None or b is None:
                self.fail(tensor, "has no counterpart")
            shapes = tuple(a.shape), tuple(b.shape)
            if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1]:
                self.fail(tensor, f"the shapes {list(shapes[0])} and {list(shapes[1])} are not [r, k] and [n, r]")
            if not 1 <= shapes[0][0] <= MAX_RANK:
                self.fail(tensor, f"its rank is {shapes[0][0]}, expected 1 to {MAX_RANK}")
            # Without alpha, llama.cpp takes the scale alone.
            yield base.removesuffix(".weight"), AdapterPair(a, b, alpha / shapes[0][0] if alpha else 1.0)

    def use(self, weight: str) -> AdapterPair | None:
        """The matrices for a weight, which from now on counts as adapted."""
        self._used.add(weight)
        return self.pairs.get(weight)

    def check_used(self) -> None:
        """UnsupportedModelError when there are matrices for what is no linear layer of the model."""
        for weight in self.pairs.keys() - self._used:
            raise UnsupportedModelError(
                f"{self.file.path}: tensor {self.pairs[weight].a.name}: the model has no linear layer {weight}"
            )

    def fail(self, tensor: TensorInfo, problem: str) -> NoReturn:
        raise ModelFormatError(
            f"{self.file.path}: tensor {tensor.name} at byte {tensor.entry_offset}: {problem}",
            self.file.path,
            tensor.name,
            tensor.entry_offset,
        )


def open_adapters(lora: Mapping[str, str | Path] | None, architecture: str) -> list[Adapter]:
    """Reads the adapters of `load(lora=...)`. ArgumentError, FileError, ModelFormatError, UnsupportedModelError."""
    from sterna._core import Gguf

    if lora is None:
        return []
    if not isinstance(lora, Mapping) or not all(isinstance(name, str) and name for name in lora):
        raise ArgumentError("lora must be a dict of names and paths")
    if len(lora) > MAX_ADAPTERS:
        raise ArgumentError(f"lora has {len(lora)} adapters; {MAX_ADAPTERS} may be loaded")
    adapters = []
    for index, (name, path) in enumerate(lora.items()):
        if not isinstance(path, str | Path):
            raise ArgumentError(f"lora[{name!r:.40}] is {type(path).__name__}, must be a path")
        adapter = Adapter(name, Gguf(str(path)), index)
        if adapter.architecture != architecture:
            raise UnsupportedModelError(
                f"{adapter.file.path}: the adapter is for {adapter.architecture!r:.40}, the model is {architecture!r}"
            )
        adapters.append(adapter)
    return adapters


class ContextMaker:
    """What requests are computed from beside their tokens, and the keys that keep apart the KV of those that differ."""

    def __init__(self, adapters: Mapping[str, int], hidden_size: int) -> None:
        """`adapters`: their indices in the plan, by name."""
        self._adapters = dict(adapters)
        self._hidden_size = hidden_size

    def make(
        self, lora: object, embeddings: object, encoder_tokens: Sequence[int] = ()
    ) -> tuple[SequenceContext | None, bytes, int]:
        """The context (None for a plain request), its key, and how many input rows stand before the tokens.

        lora: a name, or (name, scale). embeddings: numbers [n, hidden_size]. encoder_tokens: the text that is encoded
        first, of models that need one. ArgumentError.
        """
        if lora is None and embeddings is None and not encoder_tokens:
            return None, b"", 0
        from sterna._core import SequenceContext

        index, scale = self._adapter(lora)
        rows = None if embeddings is None else self._rows(embeddings)
        digest = hashlib.sha256(f"adapter {index} {scale.hex()}\n".encode())
        if rows is not None:
            digest.update(rows.tobytes())
        if encoder_tokens:
            digest.update(f"\nencoder {list(encoder_tokens)}".encode())
        context = SequenceContext(
            adapter=index, adapter_scale=scale, embeddings=rows, encoder_tokens=list(encoder_tokens)
        )
        return context, digest.digest(), 0 if rows is None else len(rows)

    def _adapter(self, lora: object) -> tuple[int, float]:
        if lora is None:
            return -1, 1.0
        name, scale = lora if isinstance(lora, tuple) and len(lora) == 2 else (lora, 1.0)
        if name not in self._adapters:
            known = ", ".join(map(repr, self._adapters)) or "none: load(lora={name: path}) brings them"
            raise ArgumentError(f"lora is {lora!r:.60}, must be a name or (name, scale); adapters: {known}")
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ArgumentError(f"lora is {lora!r:.60}: the scale must be a finite number")
        return self._adapters[name], float(scale)

    def _rows(self, embeddings: object) -> Any:
        import numpy as np

        try:
            rows = np.ascontiguousarray(embeddings, dtype=np.float32)
        except (TypeError, ValueError):
            raise ArgumentError(f"embeddings must be an array of numbers, not {type(embeddings).__name__}") from None
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != self._hidden_size:
            raise ArgumentError(f"embeddings have shape {list(rows.shape)}, expected [n, {self._hidden_size}]")
        if not np.isfinite(rows).all():
            at = np.argwhere(~np.isfinite(rows))[0]
            raise ArgumentError(f"embeddings[{at[0]}, {at[1]}] is {rows[tuple(at)]}")
        return rows

"""A model file that exists in memory only: metadata and a tensor table, as tracing reads them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

from sterna.errors import ModelFormatError


@dataclass(frozen=True)
class FakeTensor:
    """One entry of the tensor table."""

    name: str
    shape: tuple[int, ...]
    format: str
    entry_offset: int


class FakeModel:
    """A llama-like model, 4 heads over 2 K/V heads; `metadata` overrides keys of the architecture, None removes one."""

    path = "fake.gguf"

    def __init__(
        self, architecture: str, *, layers: int = 2, hidden: int = 32, intermediate: int = 64, **metadata: Any
    ) -> None:
        heads, kv_heads, head_dim, vocab = 4, 2, 8 * hidden // 32, 50
        self.architecture = architecture
        self.head_dim = head_dim
        self.sizes = {
            "attn_q": heads * head_dim,
            "attn_k": kv_heads * head_dim,
            "attn_v": kv_heads * head_dim,
            "attn_output": hidden,
            "ffn_gate": intermediate,
            "ffn_up": intermediate,
            "ffn_down": hidden,
        }
        self.layers = layers
        self.hidden = hidden
        keys = {
            "block_count": layers,
            "context_length": 128,
            "embedding_length": hidden,
            "feed_forward_length": intermediate,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
            **metadata,
        }
        self.metadata: dict[str, Any] = {"general.architecture": architecture}
        for key, value in keys.items():
            if value is not None:
                self.metadata[key if key.startswith("tokenizer.") else f"{architecture}.{key}"] = value
        self._tensors: dict[str, FakeTensor] = {}
        self._add("token_embd.weight", (vocab, hidden))
        self._add("output_norm.weight", (hidden,))
        self._add("output.weight", (vocab, hidden))
        for i in range(layers):
            self._add(f"blk.{i}.attn_norm.weight", (hidden,))
            self._add(f"blk.{i}.ffn_norm.weight", (hidden,))
            for name, size in self.sizes.items():
                columns = {"attn_output": heads * head_dim, "ffn_down": intermediate}.get(name, hidden)
                self._add(f"blk.{i}.{name}.weight", (size, columns))

    @property
    def tensors(self) -> list[FakeTensor]:
        return list(self._tensors.values())

    def __contains__(self, key: str) -> bool:
        return key in self.metadata

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)

    def array_length(self, key: str) -> int:
        value = self.metadata[key]
        return len(value) if isinstance(value, list) else self.fail(key, "is no array")

    def weight_format(self, name: str) -> str:
        return self._tensors[name].format

    def fail(self, key: str, problem: str) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {key}: {problem}", self.path, key, 0)

    def _add(self, name: str, shape: tuple[int, ...], format: str = "F32") -> None:
        self._tensors[name] = FakeTensor(name, shape, format, 100 + len(self._tensors))

    def _copy(self) -> Self:
        return deepcopy(self)

    def with_tensor(self, name: str, shape: tuple[int, ...], format: str = "F32") -> Self:
        """With a tensor added, or replaced."""
        model = self._copy()
        model._add(name, shape, format)
        return model

    def without_tensor(self, name: str) -> Self:
        model = self._copy()
        del model._tensors[name]
        return model

    def with_layer_tensor(self, name: str, shape: tuple[int, ...]) -> Self:
        """With "blk.*.{name}" in every layer."""
        model = self._copy()
        for i in range(self.layers):
            model._add(f"blk.{i}.{name}", shape)
        return model

    def with_layer_vectors(self, *names: str) -> Self:
        """With norm weights of hidden_size in every layer."""
        model = self
        for name in names:
            model = model.with_layer_tensor(f"{name}.weight", (self.hidden,))
        return model

    def with_biases(self, *names: str) -> Self:
        model = self
        for name in names:
            model = model.with_layer_tensor(f"{name}.bias", (self.sizes[name],))
        return model

    def with_head_norms(self) -> Self:
        """With the norms of each head of q and k."""
        shape = (self.head_dim,)
        return self.with_layer_tensor("attn_q_norm.weight", shape).with_layer_tensor("attn_k_norm.weight", shape)

    def with_experts(self, count: int, used: int, size: int, shared: int = 0) -> Self:
        """With a mixture of experts instead of each layer's feed-forward network, and an expert that all rows share."""
        model = self._copy()
        model.metadata |= {
            f"{self.architecture}.expert_count": count,
            f"{self.architecture}.expert_used_count": used,
            f"{self.architecture}.expert_feed_forward_length": size,
        }
        shapes: dict[str, tuple[int, ...]] = {
            "ffn_gate_inp": (count, self.hidden),
            "ffn_gate_exps": (count, size, self.hidden),
            "ffn_up_exps": (count, size, self.hidden),
            "ffn_down_exps": (count, self.hidden, size),
        }
        if shared:
            model.metadata[f"{self.architecture}.expert_shared_feed_forward_length"] = shared
            shapes |= {
                "ffn_gate_inp_shexp": (1, self.hidden),
                "ffn_gate_shexp": (shared, self.hidden),
                "ffn_up_shexp": (shared, self.hidden),
                "ffn_down_shexp": (self.hidden, shared),
            }
        for i in range(self.layers):
            for name in ("ffn_gate", "ffn_up", "ffn_down"):
                del model._tensors[f"blk.{i}.{name}.weight"]
            for name, shape in shapes.items():
                model._add(f"blk.{i}.{name}.weight", shape)
        return model

    def with_layer_format(self, format: str) -> Self:
        """With all matrices of the layers in this format."""
        model = self._copy()
        for name, tensor in model._tensors.items():
            if name.startswith("blk.") and len(tensor.shape) == 2:
                model._tensors[name] = replace(tensor, format=format)
        return model

"""`ModelInfo`: what was loaded and how it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sterna.memory import MemoryPlan
from sterna.memory_budget import readable


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded and how it runs. `print(llm.info)` shows it."""

    name: str
    path: str
    architecture: str
    parameters: int
    file_bytes: int
    formats: dict[str, int]  # tensors per storage format of the file
    layouts: dict[str, int]  # matrices per packing that the kernels read
    context: int
    trained_context: int
    context_capped: bool  # by the memory budget
    max_sequences: int
    vocab_size: int
    embedding_size: int  # of the vectors that `embed` makes; 0: none
    max_embedded: int  # tokens of a text that `embed` takes
    tokenizer: str
    template_source: str | None  # "file", "argument", "default (ChatML)", or None: no chat
    device: str  # "cpu", "cuda:0 (NVIDIA H200)", "cpu + cuda:0 (NVIDIA H200), 20 of 32 layers"
    isa: str  # "avx2", "sm_90"
    threads: int  # of the CPU that compute; 0: a GPU does
    kv_dtype: str
    memory: MemoryPlan
    fingerprint: str  # of the program, the tensor table, and samples of the weights
    draft: str | None = None  # path of the draft model
    no_gpu: str | None = None  # why it runs on the CPU, unless that was asked for
    gpu_layers: int = 0  # on a GPU

    @property
    def speculation(self) -> bool:
        """Whether tokens may be guessed ahead: not where layers keep states, which cannot be taken back."""
        return not self.memory.has_states

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory.to_dict(), "speculation": self.speculation}

    def __str__(self) -> str:
        capped = ", capped by the memory budget" if self.context_capped else ""
        memory = self.memory
        threads = f", {self.threads} threads" if self.threads else ""
        rows = {
            "model": f"{self.name} ({self.architecture}, {self.parameters / 1e6:.1f} M parameters)",
            "file": f"{self.path} ({readable(self.file_bytes)})",
            "formats": _counts(self.formats),
            "layouts": _counts(self.layouts),
            "context": f"{self.context} tokens (trained on {self.trained_context}{capped})",
            "vocabulary": f"{self.vocab_size} tokens, {self.tokenizer}",
            "embedding": f"{self.embedding_size} numbers, of up to {self.max_embedded} tokens"
            if self.embedding_size
            else "none",
            "template": self.template_source or "none",
            "device": f"{self.device}, {self.isa}{threads}" + (f"; no GPU: {self.no_gpu}" if self.no_gpu else ""),
            "memory": f"{readable(memory.total)}: weights {readable(memory.weights)}, KV cache {readable(memory.kv)} "
            f"({self.kv_dtype}, {memory.kv_tokens} tokens), scratch {readable(memory.scratch)}"
            + (f", draft model {readable(memory.draft)}" if self.draft else ""),
            **({"draft": self.draft} if self.draft else {}),
            "sequences": f"up to {self.max_sequences} at a time",
        }
        if not self.speculation:
            rows["drafts"] = "none: the states of recurrent layers cannot be taken back"
        return "\n".join(f"{name:<11}{value}" for name, value in rows.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))

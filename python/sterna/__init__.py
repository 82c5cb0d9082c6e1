"""sterna runs quantised language models from GGUF files on your own machine.

`load` gives an `LLM`; `plan` tells how much memory one takes; `quantize` writes a model in other formats. Everything is
imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sterna.errors import (
    ArgumentError,
    ContextOverflowError,
    DeadlineError,
    DeviceError,
    DownloadError,
    FileError,
    MemoryBudgetError,
    ModelFormatError,
    NumericError,
    QueueFullError,
    SternaError,
    TemplateError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from sterna.aio import AsyncChatStream, AsyncTextStream
    from sterna.answers import ChatStream
    from sterna.chat import Message, ToolCall
    from sterna.conversion import Conversion, convert
    from sterna.divergence import Divergence
    from sterna.generation import TextStream
    from sterna.info import ModelInfo
    from sterna.llm import LLM
    from sterna.loading import load, plan
    from sterna.memory import MemoryPlan
    from sterna.quantization import Quantized, quantize
    from sterna.results import ChatEvent, Completion, Perplexity, Stats, TextPiece, Timings, TokenLogprob, Usage
    from sterna.sampling import Sampling
    from sterna.session import Session

    __version__: str

__all__ = [
    "LLM",
    "ArgumentError",
    "AsyncChatStream",
    "AsyncTextStream",
    "ChatEvent",
    "ChatStream",
    "Completion",
    "ContextOverflowError",
    "Conversion",
    "DeadlineError",
    "DeviceError",
    "Divergence",
    "DownloadError",
    "FileError",
    "MemoryBudgetError",
    "MemoryPlan",
    "Message",
    "ModelFormatError",
    "ModelInfo",
    "NumericError",
    "Perplexity",
    "Quantized",
    "QueueFullError",
    "Sampling",
    "Session",
    "Stats",
    "SternaError",
    "TemplateError",
    "TextPiece",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "convert",
    "load",
    "plan",
    "quantize",
]

# Where the names live that are imported on first use (PEP 562).
_LAZY = {
    "LLM": "llm",
    "AsyncChatStream": "aio",
    "AsyncTextStream": "aio",
    "ChatEvent": "results",
    "ChatStream": "answers",
    "Completion": "results",
    "Conversion": "conversion",
    "Divergence": "divergence",
    "MemoryPlan": "memory",
    "Message": "chat",
    "ModelInfo": "info",
    "Perplexity": "results",
    "Quantized": "quantization",
    "Sampling": "sampling",
    "Session": "session",
    "Stats": "results",
    "TextPiece": "results",
    "TextStream": "generation",
    "Timings": "results",
    "TokenLogprob": "results",
    "ToolCall": "chat",
    "Usage": "results",
    "convert": "conversion",
    "load": "loading",
    "plan": "loading",
    "quantize": "quantization",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("sterna")
    elif name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(f"sterna.{_LAZY[name]}"), name)
    else:
        raise AttributeError(f"module 'sterna' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})

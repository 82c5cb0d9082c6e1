"""Chat: templates that turn conversations into text of known origin, and the reading of what a model answers.

Everything is imported when it is first used: continuing a text needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sterna.chat.message import Message, OutputSplitter, Piece, ToolCall, split_output
    from sterna.chat.source import CHATML, FoundTemplate, find_template
    from sterna.chat.template import ChatTemplate, Rendered, choose_template, make_template

__all__ = [
    "CHATML",
    "ChatTemplate",
    "FoundTemplate",
    "Message",
    "OutputSplitter",
    "Piece",
    "Rendered",
    "ToolCall",
    "choose_template",
    "find_template",
    "make_template",
    "split_output",
]

# Where the names live (PEP 562).
_MODULES = {
    "message": ("Message", "OutputSplitter", "Piece", "ToolCall", "split_output"),
    "source": ("CHATML", "FoundTemplate", "find_template"),
    "template": ("ChatTemplate", "Rendered", "choose_template", "make_template"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"sterna.chat.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'sterna.chat' has no attribute {name!r}")

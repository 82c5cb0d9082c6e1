"""Chat: templates that turn conversations into text of known origin, and the reading of what a model answers."""

from sterna.chat.message import Message, OutputSplitter, Piece, ToolCall, split_output
from sterna.chat.template import CHATML, ChatTemplate, Rendered, choose_template

__all__ = [
    "CHATML",
    "ChatTemplate",
    "Message",
    "OutputSplitter",
    "Piece",
    "Rendered",
    "ToolCall",
    "choose_template",
    "split_output",
]

"""What a model answers: `Message`, and the splitter that tells reasoning, content and tool calls apart while text
streams in.

Only what is unambiguous is taken out of the content: reasoning between `<think>` and `</think>` where the prompt opened
it or the answer begins with it, and `<tool_call>` blocks that are all well-formed JSON. Everything else stays content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

_OPEN = "<think>"
_CLOSE = "</think>"
_CALL_OPEN = "<tool_call>"
_CALL_CLOSE = "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: dict[str, Any]
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's form, the arguments as JSON text."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass
class Message:
    """One answer. `content` is what the user should read; `reasoning` is what the model thought before it, if it
    did."""

    content: str = ""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    role: str = "assistant"
    finish_reason: str | None = None
    usage: Any = None

    def __str__(self) -> str:
        return self.content

    def to_dict(self) -> dict[str, Any]:
        """As a message of the next request."""
        result: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            result["reasoning_content"] = self.reasoning
        if self.tool_calls:
            result["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return result


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer."""

    kind: Literal["reasoning", "content"]
    text: str


class OutputSplitter:
    """Takes the model's text as it comes; gives pieces as soon as it is sure what they are.

    `reasoning_open`: the prompt ended inside `<think>` (`Rendered.opens_reasoning`). `tools`: the request offered
    tools, so text from the first `<tool_call>` on is held back until the end.
    """

    def __init__(self, *, reasoning_open: bool = False, tools: bool = False) -> None:
        self.tool_calls: list[ToolCall] = []
        self._tools = tools
        self._state: Literal["start", "reasoning", "content", "calls"] = "reasoning" if reasoning_open else "start"
        self._held = ""
        self._begun = False

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that are certain after `text`."""
        self._held += text
        return self._advance(final=False)

    def finish(self) -> Iterator[Piece]:
        """The rest. Afterwards `tool_calls` is complete."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> Iterator[Piece]:
        if self._state == "start":
            stripped = self._held.lstrip()
            if stripped.startswith(_OPEN):
                self._state = "reasoning"
                self._held = stripped[len(_OPEN) :]
            elif final or not _OPEN.startswith(stripped):
                self._state = "content"
                self._begun = True
        if self._state == "reasoning":
            yield from self._reasoning(final)
        if self._state == "content":
            yield from self._content(final)
        if self._state == "calls" and final:
            yield from self._calls()

    def _reasoning(self, final: bool) -> Iterator[Piece]:
        end = self._held.find(_CLOSE)
        if end >= 0:
            yield from self._piece("reasoning", self._held[:end].rstrip())
            self._held = self._held[end + len(_CLOSE) :]
            self._state = "content"
            self._begun = False
        elif final:
            yield from self._piece("reasoning", self._held.rstrip())
            self._held = ""
        else:
            sure = self._held[: len(self._held) - _partial(self._held, _CLOSE)].rstrip()
            yield from self._piece("reasoning", sure)
            self._held = self._held[len(sure) :]

    def _content(self, final: bool) -> Iterator[Piece]:
        sure = len(self._held)
        if self._tools:
            found = self._held.find(_CALL_OPEN)
            if found >= 0:
                sure = found
                self._state = "calls"
            elif not final:
                sure -= _partial(self._held, _CALL_OPEN)
            if found >= 0 or not final:
                # White space before a tool call separates; it is no content.
                sure = len(self._held[:sure].rstrip())
        yield from self._piece("content", self._held[:sure])
        self._held = self._held[sure:]

    def _calls(self) -> Iterator[Piece]:
        rest, self.tool_calls = parse_tool_calls(self._held)
        yield from self._piece("content", rest if self.tool_calls else self._held)
        self._held = ""

    def _piece(self, kind: Literal["reasoning", "content"], text: str) -> Iterator[Piece]:
        if not self._begun:
            # The line breaks around the tags belong to the format.
            text = text.lstrip()
        if text:
            self._begun = True
            yield Piece(kind, text)


def _partial(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """(what stands around the `<tool_call>{json}</tool_call>` blocks, the calls); all blocks must be well-formed, or
    none is."""
    calls: list[ToolCall] = []
    rest = ""
    position = 0
    while (start := text.find(_CALL_OPEN, position)) >= 0:
        end = text.find(_CALL_CLOSE, start)
        call = _parse_call(text[start + len(_CALL_OPEN) : end], len(calls)) if end >= 0 else None
        if call is None:
            return text, []
        calls.append(call)
        rest += text[position:start].strip()
        position = end + len(_CALL_CLOSE)
    return rest + text[position:].strip(), calls


def _parse_call(text: str, index: int) -> ToolCall | None:
    try:
        value = json.loads(text)
        name = value["name"]
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, f"call_{index}")


def split_output(text: str, *, reasoning_open: bool = False, tools: bool = False) -> Message:
    """A whole answer as a `Message`."""
    splitter = OutputSplitter(reasoning_open=reasoning_open, tools=tools)
    pieces = [*splitter.feed(text), *splitter.finish()]
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    return Message(content, reasoning or None, splitter.tool_calls)

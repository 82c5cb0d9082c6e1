"""Turns the messages, tools and keyword arguments of a request into the values that a chat template sees.

Only JSON reaches a template: everything is rebuilt out of str, int, float, bool, None, lists and dicts, and what is
something else is an error that names its place. Roles come from a fixed list, so their text counts as the engine's own:
templates do build control tokens around them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sterna.chat.budget import MAX_INT_BITS, MAX_NESTING, MAX_OUTPUT_BYTES
from sterna.chat.text import trusted
from sterna.chat.values import Dict, List
from sterna.errors import ArgumentError

ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_SHOWN = 60
_ROOM_FOR_TEMPLATE = 16
"""Levels of nesting left to the template, which wraps what it gets."""


Place = str | tuple["Place", str | int]
"""Where a value stands in the request. Written out only for an error: long keys in deep nests would cost a lot."""


def _show(place: Place) -> str:
    steps: list[str] = []
    while not isinstance(place, str):
        place, key = place
        steps.append(f"[{key}]" if isinstance(key, int) else f".{key[:_SHOWN]}")
    return place + "".join(reversed(steps))[: 4 * _SHOWN]


def _brief(value: object) -> str:
    return repr(value[:_SHOWN]) if isinstance(value, str) else type(value).__name__


@dataclass(frozen=True)
class Forms:
    """How a template wants what requests may write in two ways."""

    string_content: bool = True
    """Shows a content that is a string; a template that does not gets a list with one text part."""
    content_parts: bool = False
    """Shows a list of content parts; a template that does not gets the texts joined by a newline."""
    json_arguments: bool = False
    """Wants the arguments of a tool call as JSON text; otherwise they are a dict."""


class Reader:
    """Reads one request; counts its characters."""

    def __init__(self, forms: Forms) -> None:
        self._forms = forms
        self._characters = 0

    def messages(self, messages: object) -> List:
        """A str (one user message) or a list of messages."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray):
            raise ArgumentError(f"messages: expected a str or a list of messages, not {type(messages).__name__}")
        return List([self._message(message, ("messages", i)) for i, message in enumerate(messages)])

    def tools(self, tools: object) -> List | None:
        """A list of JSON schemas, or None."""
        if tools is None:
            return None
        if not isinstance(tools, Sequence) or isinstance(tools, str | bytes | bytearray):
            raise ArgumentError(f"tools: expected a list of dicts, not {type(tools).__name__}")
        for i, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                raise ArgumentError(f"tools[{i}]: expected a dict, not {type(tool).__name__}")
        return List([self.value(tool, ("tools", i)) for i, tool in enumerate(tools)])

    def value(self, value: object, place: Place, depth: int = 0) -> Any:
        """Any JSON value."""
        if depth > MAX_NESTING - _ROOM_FOR_TEMPLATE:
            raise ArgumentError(f"{_show(place)}: nested more than {MAX_NESTING - _ROOM_FOR_TEMPLATE} deep")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._string(value, place)
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise ArgumentError(f"{_show(place)}: a number of more than {MAX_INT_BITS} bits")
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, Mapping):
            return Dict({self._key(k, place): self.value(v, (place, k), depth + 1) for k, v in value.items()})
        if isinstance(value, list | tuple):
            return List([self.value(item, (place, i), depth + 1) for i, item in enumerate(value)])
        raise ArgumentError(f"{_show(place)}: {type(value).__name__} is no JSON value")

    def _key(self, key: object, place: Place) -> str:
        if not isinstance(key, str):
            raise ArgumentError(f"{_show(place)}: a key is {type(key).__name__}, not str")
        return self._string(key, place)

    def _string(self, value: str, place: Place) -> str:
        self._characters += len(value)
        if self._characters > MAX_OUTPUT_BYTES:
            raise ArgumentError(f"{_show(place)}: the request has more than {MAX_OUTPUT_BYTES >> 20} Mi characters")
        # Of a subclass, only the characters: a template must never meet foreign methods, or a mask.
        value = str.__str__(value)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ArgumentError(f"{_show(place)}: character {error.start} is half of a surrogate pair") from None
        return value

    def _message(self, message: object, place: Place) -> Dict:
        if hasattr(message, "to_dict"):
            message = message.to_dict()
        if not isinstance(message, Mapping):
            raise ArgumentError(f"{_show(place)}: expected a dict with role and content, not {type(message).__name__}")
        given = message.get("role")
        role = str.__str__(given) if isinstance(given, str) else ""
        if role not in ROLES:
            raise ArgumentError(f"{_show(place)}.role: {_brief(given)} is not one of {', '.join(ROLES)}")
        result: dict[str, Any] = {"role": trusted(role)}
        for key, value in message.items():
            inner = (place, key)
            if key == "role":
                continue
            if key == "content":
                result[key] = self._content(value, inner, role)
            elif key == "tool_calls" and value is not None:
                result[key] = self._tool_calls(value, inner)
            else:
                result[self._key(key, place)] = self.value(value, inner)
        if "content" not in result and not result.get("tool_calls"):
            raise ArgumentError(f"{_show(place)}.content: missing")
        reasoning = next((result[key] for key in _REASONING_KEYS if result.get(key) is not None), None)
        if reasoning is not None:
            # Templates disagree about the name; transformers fills these two.
            result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
        return Dict(result)

    def _content(self, content: object, place: Place, role: str) -> Any:
        if content is None and role == "assistant":
            return None
        if isinstance(content, str):
            text = self._string(content, place)
            return text if self._forms.string_content else List([Dict({"type": "text", "text": text})])
        if not isinstance(content, list | tuple):
            raise ArgumentError(f"{_show(place)}: expected a str or a list of parts, not {type(content).__name__}")
        texts = []
        for i, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = _brief(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
                raise ArgumentError(
                    f'{_show(place)}[{i}]: only parts {{"type": "text", "text": ...}} are supported, not {kind}'
                )
            texts.append(self._string(part["text"], ((place, i), "text")))
        if self._forms.content_parts or not self._forms.string_content:
            return List([Dict({"type": "text", "text": text}) for text in texts])
        return "\n".join(texts)

    def _tool_calls(self, calls: object, place: Place) -> List:
        if not isinstance(calls, list | tuple):
            raise ArgumentError(f"{_show(place)}: expected a list, not {type(calls).__name__}")
        return List([self._tool_call(call, (place, i)) for i, call in enumerate(calls)])

    def _tool_call(self, call: object, place: Place) -> Dict:
        if hasattr(call, "to_dict"):
            call = call.to_dict()
        if not isinstance(call, Mapping):
            raise ArgumentError(f"{_show(place)}: expected a dict, not {type(call).__name__}")
        if isinstance(call.get("function"), Mapping):
            function = self._function(call["function"], (place, "function"))
            return Dict({**self.value({**call, "function": None}, place), "function": function})
        return self._function(call, place)

    def _function(self, function: Mapping[str, Any], place: Place) -> Dict:
        if not isinstance(function.get("name"), str):
            raise ArgumentError(f"{_show(place)}.name: expected a str")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _object_of(arguments)
        elif not isinstance(arguments, Mapping):
            raise ArgumentError(
                f"{_show(place)}.arguments: expected a dict or JSON text, not {type(arguments).__name__}"
            )
        result = self.value({**function, "arguments": None}, place)
        arguments = self.value(arguments, (place, "arguments"))
        if self._forms.json_arguments and isinstance(arguments, Dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return Dict({**result, "arguments": arguments})


def _object_of(text: str) -> Any:
    """The object that a JSON text stands for, or the text itself if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text

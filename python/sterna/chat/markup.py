"""`Safe`: what the filters `safe` and `escape` yield, behaving as markupsafe's Markup does, with origin kept.

Nothing is HTML here, but `safe` occurs in chat templates, and adding to its result escapes the other operand; rendering
as jinja2 does means doing that as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.chat.formatting import output, percent
from sterna.chat.text import Text, concat, origin, tracked, untrusted

_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))


class Safe(Text):
    """Text that counts as markup already."""

    __slots__ = ()

    def __str__(self) -> str:
        return Text(str.__getitem__(self, slice(None)), self.mask)

    def __html__(self) -> Safe:
        return self

    def __repr__(self) -> str:
        return f"Markup({str.__repr__(self)})"

    def __getitem__(self, key: Any) -> Safe:
        return mark(super().__getitem__(key))


Safe.__name__ = "Markup"
Safe.__module__ = "markupsafe"


def mark(value: str) -> Safe:
    """The filter `safe`."""
    return Safe(value, origin(value))


def escape(value: Any) -> Safe:
    """The filter `escape`: the five characters of HTML as entities; what is `Safe` stays."""
    if isinstance(value, Safe):
        return value
    text = output(value)
    for character, entity in _ENTITIES:
        if character in text:
            text = text.replace(character, untrusted(entity))
    return mark(text)


def add(left: str, right: str) -> Text:
    """`left + right`; if one is `Safe`, the other is escaped."""
    if isinstance(left, Safe) or isinstance(right, Safe):
        return mark(concat((str(escape(left)), str(escape(right)))))
    return concat((left, right))


def modulo(pattern: str, values: Any) -> Text:
    """`pattern % values`; a pattern that is `Safe` escapes the values."""
    if not isinstance(pattern, Safe):
        return percent(tracked(pattern), values)
    if isinstance(values, tuple):
        escaped: Any = tuple(map(_escape_argument, values))
    elif isinstance(values, Mapping):
        escaped = {key: _escape_argument(value) for key, value in values.items()}
    else:
        escaped = _escape_argument(values)
    return mark(percent(Text(pattern, pattern.mask), escaped))


def _escape_argument(value: Any) -> Any:
    return value if isinstance(value, int | float) else str(escape(value))


_ESCAPED_ARGUMENT = {"replace": 1, "center": 1, "ljust": 1, "rjust": 1}
"""Which argument of a method of markup becomes part of the result."""


def call_method(owner: Safe, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`owner.name(*args, **kwargs)`, strings in the result being `Safe`."""
    if name == "join" and args:
        args = ([str(escape(item)) for item in args[0]], *args[1:])
    place = _ESCAPED_ARGUMENT.get(name)
    if place is not None and len(args) > place:
        args = (*args[:place], str(escape(args[place])), *args[place + 1 :])
    result = getattr(Text(owner, owner.mask), name)(*args, **kwargs)
    if isinstance(result, str):
        return mark(result)
    if isinstance(result, list | tuple):
        return type(result)(map(mark, result))
    return result

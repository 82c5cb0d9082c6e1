"""The operators and methods of chat templates that build text from a pattern, with origin kept and cost checked first.

For `%`, CPython makes the text, and the origins of the pieces it should consist of count only if they add up to it. For
`format`, the text is the pieces, as in `string.Formatter`, which jinja2's sandbox uses too.
"""

from __future__ import annotations

import re
from _string import formatter_field_name_split  # type: ignore[import-not-found]
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from sterna.chat.budget import check_length, current
from sterna.chat.text import Text, concat, origin, plain, tracked, untrusted
from sterna.chat.values import represented, written

_NUMBER = re.compile(r"\d+")
_CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"[hlL]?(?P<type>[diouxXeEfFgGcrsa%])"
)


def _numbers(text: str) -> int:
    """The sum of all numbers in a format: widths and precisions are how a short pattern makes a long text."""
    return sum(int(number[0][:9]) for number in _NUMBER.finditer(text))


def output(value: Any) -> Text:
    """What `{{ value }}` prints."""
    if isinstance(value, str):
        # Markup says by `__str__` what it was made of.
        return tracked(str(value))
    return untrusted(written(value))


def percent(pattern: str, values: Any) -> Text:
    """`pattern % values`."""
    arguments = values if isinstance(values, tuple) else (values,)
    mapping = values if isinstance(values, Mapping) else {}
    mask = origin(pattern)
    pieces: list[str] = []
    known = True
    position = used = 0
    bound = len(pattern)
    for conversion in _CONVERSION.finditer(pattern):
        current().step()
        pieces.append(Text(pattern[position : conversion.start()], mask[position : conversion.start()]))
        position = conversion.end()
        if conversion["type"] == "%":
            pieces.append(Text("%", mask[position - 1 : position]))
            known = known and len(conversion[0]) == 2
            continue
        for field in (conversion["width"], conversion["precision"]):
            if field == "*":
                known = False
                bound += abs(arguments[used]) if used < len(arguments) and isinstance(arguments[used], int) else 0
                used += 1
            else:
                bound += _numbers(field or "")
        if conversion["key"] is not None:
            value = mapping.get(conversion["key"])
        else:
            value = arguments[used] if used < len(arguments) else None
            used += 1
        simple = conversion["width"] is None and conversion["precision"] is None
        known = known and conversion["type"] == "s" and simple
        if conversion["type"] == "s":
            pieces.append(output(value))
        elif conversion["type"] in "ra":
            pieces.append(untrusted(represented(value, repr if conversion["type"] == "r" else ascii)))
        bound += len(pieces[-1])
        check_length(bound)
    pieces.append(Text(pattern[position:], mask[position:]))
    check_length(bound)
    text = str.__mod__(plain(pattern), values)
    joined = concat(pieces) if known else untrusted(text)
    return joined if joined == text else untrusted(text)


class _Fields(Formatter):
    """`str.format` with pieces that keep their origin; field names reach into values through the sandbox only."""

    def __init__(self, args: Any, kwargs: Any, get: Callable[[Any, Any, bool], Any]) -> None:
        self._args = args
        self._kwargs = kwargs
        self._get = get
        self._automatic: int | None = 0
        self._length = 0

    def render(self, pattern: str, depth: int = 2) -> Text:
        if depth < 0:
            raise ValueError("Max string recursion exceeded")
        mask = origin(pattern)
        alike = mask[:1] * len(mask) == mask
        pieces: list[str] = []
        for literal, name, spec, conversion in self.parse(plain(pattern)):
            # A literal has lost its place in the pattern ("{{" became "{"): it has an origin only if all share one.
            pieces.append(Text(literal, mask[:1] * len(literal)) if alike else untrusted(literal))
            if name is not None:
                value, _ = self.get_field(self._numbered(name), self._args, self._kwargs)
                value = self.convert_field(value, conversion)
                pieces.append(self.format_field(value, str.__str__(self.render(spec or "", depth - 1))))
            self._length += sum(map(len, pieces[-2:]))
            check_length(self._length)
        return concat(pieces)

    def _numbered(self, name: str) -> str:
        if name == "":
            if self._automatic is None:
                raise ValueError("cannot switch from manual field specification to automatic field numbering")
            self._automatic += 1
            return str(self._automatic - 1)
        if name.isdigit():
            if self._automatic:
                raise ValueError("cannot switch from manual field specification to automatic field numbering")
            self._automatic = None
        return name

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        first, rest = formatter_field_name_split(field_name)
        value = self.get_value(first, args, kwargs)
        for is_attribute, name in rest:
            value = self._get(value, name, is_attribute)
        return value, first

    def format_field(self, value: Any, format_spec: str) -> Text:
        current().step()
        if not format_spec:
            return output(value)
        check_length(_numbers(format_spec))
        return untrusted(format(plain(value), format_spec))

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "s":
            return output(value)
        if conversion == "r":
            return untrusted(represented(value))
        if conversion == "a":
            return untrusted(represented(value, ascii))
        return super().convert_field(value, conversion)


def brace(pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any], get: Callable[[Any, Any, bool], Any]) -> Text:
    """`pattern.format(*args, **kwargs)`; `get(value, name, is_attribute)` reads what a field name reaches into."""
    return _Fields(args, kwargs, get).render(pattern)

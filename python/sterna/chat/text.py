"""`Text`: a string that knows, for each of its characters, whether the template or the request wrote it.

Why request text cannot become a control token (the argument that the tokenizer relies on):

1. A character is trusted only if its byte in `Text.mask` is 1. Masks with ones are created in two places: for the
   literals in a template's source (the code generator wraps them) and for the engine's constants (bos and eos texts,
   role names that have passed the allow-list, the date). Strings of a request enter as plain `str`, and a plain `str`
   counts as untrusted in whole. Nothing in the text itself is a mark, so there is nothing that a request could forge.
2. An operation either copies the byte of a character together with the character, or yields untrusted characters. Every
   method below does the first; a method that is not overridden, a C function that joins or formats strings,
   `json.dumps` and `repr` return plain `str`, that is the second. Forgetting a case can only lose trust, never create
   it.
3. Where origin is rebuilt beside the operation instead of carried through it (`%`, letters changing case), the text
   comes from CPython itself and the mask is used only if the rebuilt pieces fit that text. A mask whose length is not
   the text's is dropped.

Numbers count as data, as do JSON and printed lists in whole. A template that writes control text around an empty string
from the request still writes it: what counts is who wrote the characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

from sterna.chat.budget import Budget, OverBudget, check_length, current

TRUSTED = b"\x01"
_LEASED_CHARS = 512
_MAX_PARTS = 1 << 17
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class _Lease:
    """Gives the bytes of a long string back to the account when the string dies."""

    __slots__ = ("budget", "size")

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget = budget
        self.size = size
        budget.allocate(size)

    def __del__(self) -> None:
        self.budget.live_bytes -= self.size


class Text(str):
    """A string with `mask`: one byte per character, 1 where the template wrote it, 0 where a request did or nobody
    knows."""

    __slots__ = ("_lease", "mask")
    mask: bytes
    _lease: _Lease | None

    def __new__(cls, value: str, mask: bytes) -> Text:
        self = str.__new__(cls, value)
        length = len(self)
        self.mask = mask if len(mask) == length else bytes(length)
        size = 2 * length + 128 if self.isascii() else 5 * length + 128
        budget = current()
        if length < _LEASED_CHARS:
            budget.allocate(size)
            self._lease = None
        else:
            self._lease = _Lease(budget, size)
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Text:
        value = str.__getitem__(self, key)
        if isinstance(key, slice):
            return Text(value, self.mask[key])
        return Text(value, bytes((self.mask[key],)))

    def __iter__(self) -> Iterator[Text]:
        for i, character in enumerate(str.__iter__(self)):
            yield Text(character, self.mask[i : i + 1])

    def strip(self, chars: str | None = None, /) -> Text:
        return self._inner(str.strip(self, chars), len(self) - len(str.lstrip(self, chars)))

    def lstrip(self, chars: str | None = None, /) -> Text:
        value = str.lstrip(self, chars)
        return self._inner(value, len(self) - len(value))

    def rstrip(self, chars: str | None = None, /) -> Text:
        return self._inner(str.rstrip(self, chars), 0)

    def removeprefix(self, prefix: str, /) -> Text:
        value = str.removeprefix(self, prefix)
        return self._inner(value, len(self) - len(value))

    def removesuffix(self, suffix: str, /) -> Text:
        return self._inner(str.removesuffix(self, suffix), 0)

    def _inner(self, value: str, start: int) -> Text:
        """The part `value` of this text, which begins at `start`."""
        return Text(value, self.mask[start : start + len(value)])

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = _few(str.split(self, sep, _bounded(maxsplit)))
        if sep is not None:
            return self._separated(parts, len(sep))
        result: list[str] = []
        position = 0
        for part in parts:
            # Only whitespace lies between `position` and the part, and the part begins with none: the first match is
            # it.
            position = str.find(self, part, position)
            result.append(self._inner(part, position))
            position += len(part)
        return result

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = _few(str.rsplit(self, sep, _bounded(maxsplit)))
        if sep is not None:
            return self._separated(parts, len(sep))
        result: list[str] = []
        end = len(self)
        for part in reversed(parts):
            end = str.rfind(self, part, 0, end)
            result.append(self._inner(part, end))
        result.reverse()
        return result

    def _separated(self, parts: list[str], gap: int) -> list[str]:
        result: list[str] = []
        position = 0
        for part in parts:
            result.append(self._inner(part, position))
            position += len(part) + gap
        return result

    def splitlines(self, keepends: bool = False) -> list[str]:
        if sum(map(self.count, _LINE_ENDS)) > _MAX_PARTS:
            raise _too_many_parts()
        result: list[str] = []
        position = 0
        for part, line in zip(str.splitlines(self, keepends), str.splitlines(self, True), strict=True):
            result.append(self._inner(part, position))
            position += len(line)
        return result

    def partition(self, sep: str, /) -> tuple[Text, Text, Text]:
        return self._thirds(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[Text, Text, Text]:
        return self._thirds(str.rpartition(self, sep))

    def _thirds(self, parts: tuple[str, str, str]) -> tuple[Text, Text, Text]:
        head, middle, tail = parts
        second = len(head)
        return self._inner(head, 0), self._inner(middle, second), self._inner(tail, second + len(middle))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Text:
        limit = count.__index__()
        if limit == 0:
            return self
        found = str.count(self, old)
        found = found if limit < 0 else min(found, limit)
        check_length(len(self) + found * (len(new) - len(old)))
        value = str.replace(self, old, new, limit)
        mask = origin(new)
        if TRUSTED not in self.mask and TRUSTED not in mask:
            return untrusted(value)
        if found > _MAX_PARTS:
            raise _too_many_parts()
        if old:
            pieces = []
            position = 0
            for part in str.split(self, old, limit):
                pieces.append(self.mask[position : position + len(part)])
                position += len(part) + len(old)
        else:
            last = found - 1
            pieces = [b"", *(self.mask[i : i + 1] for i in range(last)), self.mask[last:]]
        return Text(value, mask.join(pieces))

    def join(self, parts: Iterable[str], /) -> Text:
        items = list(parts)
        if all(isinstance(item, str) for item in items):
            check_length(sum(map(len, items)) + len(self) * max(len(items) - 1, 0))
        return Text(str.join(self, items), self.mask.join(map(origin, items)))

    def lower(self) -> Text:
        return self._recased(str.lower)

    def upper(self) -> Text:
        return self._recased(str.upper)

    def capitalize(self) -> Text:
        return self._recased(str.capitalize)

    def title(self) -> Text:
        return self._recased(str.title)

    def swapcase(self) -> Text:
        return self._recased(str.swapcase)

    def casefold(self) -> Text:
        return self._recased(str.casefold)

    def _recased(self, change: Callable[[str], str]) -> Text:
        value = change(self)
        if len(value) == len(self):
            # A letter becomes one to three letters, never none: equal length means one for one.
            return Text(value, self.mask)
        if TRUSTED not in self.mask or b"\x00" not in self.mask:
            return Text(value, self.mask[:1] * len(value))
        if change in (str.title, str.capitalize):
            # What a letter becomes depends on its neighbours, so widths of single letters prove nothing.
            return untrusted(value)
        widths = [len(change(character)) for character in str.__iter__(self)]
        return Text(value, b"".join(self.mask[i : i + 1] * width for i, width in enumerate(widths)))

    def center(self, width: SupportsIndex, fill: str = " ", /) -> Text:
        return self._padded(str.center, width, fill)

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> Text:
        return self._padded(str.ljust, width, fill)

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> Text:
        return self._padded(str.rjust, width, fill)

    def _padded(self, pad: Callable[[str, int, str], str], width: SupportsIndex, fill: str) -> Text:
        check_length(width.__index__())
        value = pad(self, width.__index__(), fill)
        # The same call on the mask: padding is placed by length alone. Padding itself is never trusted.
        mask = pad(self.mask.decode("latin-1"), width.__index__(), "\x00")
        return Text(value, mask.encode("latin-1"))

    def zfill(self, width: SupportsIndex, /) -> Text:
        check_length(width.__index__())
        return untrusted(str.zfill(self, width))


# Errors of CPython and jinja2 name the type of an operand; a template's author knows it by this name.
Text.__name__ = "str"
Text.__module__ = "builtins"


def _too_many_parts() -> OverBudget:
    return OverBudget(f"the template cuts a text into more than {_MAX_PARTS} parts")


def _bounded(maxsplit: SupportsIndex) -> int:
    """A maxsplit that lets one part too many through, for `_few` to find."""
    limit = maxsplit.__index__()
    return _MAX_PARTS if limit < 0 else min(limit, _MAX_PARTS)


def _few(parts: list[str]) -> list[str]:
    if len(parts) > _MAX_PARTS:
        raise _too_many_parts()
    return parts


def origin(value: str) -> bytes:
    """The mask of any string: a plain `str` is untrusted."""
    return value.mask if isinstance(value, Text) else bytes(len(value))


def trusted(value: str) -> Text:
    """`value` as a literal of the template or a constant of the engine."""
    return Text(value, TRUSTED * len(value))


def untrusted(value: str) -> Text:
    """`value` as data."""
    return Text(value, bytes(len(value)))


def tracked(value: str) -> Text:
    """`value` itself if it is a `Text`, otherwise as data."""
    return value if isinstance(value, Text) else untrusted(value)


def plain(value: Any) -> Any:
    """A string without its mask; anything else as it is."""
    return str.__str__(value) if isinstance(value, Text) else value


def concat(parts: Iterable[str]) -> Text:
    """The parts one after the other."""
    items = list(parts)
    check_length(sum(map(len, items)))
    return Text("".join(items), b"".join(map(origin, items)))


def repeat(value: str, count: int) -> Text:
    """`value * count`."""
    check_length(len(value) * max(count, 0))
    return Text(str.__mul__(value, count), origin(value) * count)


_RUN = re.compile(rb"\x00+|\x01+")


def spans(value: str) -> list[tuple[str, bool]]:
    """The text as maximal (part, trusted) runs."""
    if not isinstance(value, Text):
        return [(value, False)] if value else []
    text = str.__str__(value)
    return [(text[m.start() : m.end()], value.mask[m.start()] == 1) for m in _RUN.finditer(value.mask)]

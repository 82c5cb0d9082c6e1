"""The filters of chat templates: jinja2's and transformers' results, with origins kept and costs counted.

Left out on purpose: `attr` and `pprint` (reflection), `random`, and those for web pages and files (`filesizeformat
forceescape striptags urlencode urlize wordwrap xmlattr`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import chain, groupby
from typing import Any

from jinja2 import pass_context, pass_environment
from jinja2.exceptions import FilterArgumentError
from jinja2.filters import make_attrgetter, make_multi_attrgetter, prepare_map, prepare_select_or_reject
from jinja2.runtime import Undefined

from sterna.chat.budget import check_length, current
from sterna.chat.formatting import output
from sterna.chat.markup import Safe, add, call_method, escape, mark, modulo
from sterna.chat.sandbox import steps
from sterna.chat.text import Text, concat, plain, tracked, trusted, untrusted
from sterna.chat.values import (
    Dict,
    Group,
    Lazy,
    List,
    check_weight,
    collect,
    measure,
    to_json,
)

_MAX_ROUNDING = 300
_MAX_DIGITS = 4300


def _soft(value: Any) -> Text:
    """`soft_str` of markupsafe: a string as it is, markup included; anything else as printed."""
    return tracked(value) if isinstance(value, str) else output(value)


def _method(name: str) -> Callable[..., Any]:
    """A filter that is a method of strings."""

    def apply(value: Any, *args: Any) -> Any:
        text = _soft(value)
        if isinstance(text, Safe):
            return call_method(text, name, args, {})
        return getattr(text, name)(*args)

    return apply


_capitalize, _center, _lower, _strip, _upper = map(_method, ("capitalize", "center", "lower", "strip", "upper"))


def _do_center(value: str, width: int = 80) -> Any:
    return _center(value, width)


def _do_trim(value: str, chars: str | None = None) -> Any:
    return _strip(value, chars)


def _do_title(value: str) -> Text:
    text = tracked(str(_soft(value)))
    parts: list[str] = []
    start = 0
    for gap in _WORD_BREAK.finditer(text):
        parts += [*_word(text[start : gap.start()]), text[gap.start() : gap.end()]]
        start = gap.end()
    return concat([*parts, *_word(text[start:])])


def _word(word: Text) -> tuple[Text, Text]:
    return word[:1].upper(), word[1:].lower()


_WORD_BREAK = re.compile(r"[-\s({\[<]+")


def _do_replace(value: Any, old: Any, new: Any, count: int | None = None) -> Text:
    return output(value).replace(plain(output(old)), output(new), -1 if count is None else count)


def _do_default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


@pass_environment
def _do_join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> Text:
    items: Iterable[Any] = steps(value)
    if attribute is not None:
        items = map(make_attrgetter(environment, plain(attribute)), items)
    parts = []
    length = 0
    separator = output(d)
    for item in items:
        parts.append(output(item))
        length += len(parts[-1]) + len(separator)
        check_length(length - len(separator))
    return separator.join(parts)


def _do_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    if not isinstance(s, str):
        return s + "\n"  # raises what jinja2 raises
    text = tracked(str(s))
    if isinstance(width, str):
        indention = tracked(str(width))
    else:
        check_length(width)
        indention = trusted(" " * width)
    newline = trusted("\n")
    lines = concat((text, newline)).splitlines()
    check_length(len(text) + len(lines) * len(indention))
    if blank:
        result = concat((newline, indention)).join(lines)
    else:
        result = newline.join([lines[0], *(concat((indention, line)) if line else line for line in lines[1:])])
    if first:
        result = concat((indention, result))
    return mark(result) if isinstance(s, Safe) else result


@pass_environment
def _do_truncate(
    env: Any, s: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int | None = None
) -> Any:
    leeway = 5 if leeway is None else leeway
    if length < len(end):
        raise FilterArgumentError(f"expected length >= {len(end)}, got {length}")
    if leeway < 0:
        raise FilterArgumentError(f"expected leeway >= 0, got {leeway}")
    if len(s) <= length + leeway:
        return s
    head = s[: length - len(end)] if not isinstance(s, str) else tracked(s)[: length - len(end)]
    return add(head if killwords else tracked(head).rsplit(" ", 1)[0], end)


def _do_reverse(value: Any) -> Any:
    if isinstance(value, str):
        return tracked(value)[::-1]
    try:
        return Lazy(value, reversed(value))
    except TypeError:
        try:
            return List(reversed(collect(value)))
        except TypeError as error:
            raise FilterArgumentError("argument must be iterable") from error


def _do_format(value: Any, *args: Any, **kwargs: Any) -> Text:
    if args and kwargs:
        raise FilterArgumentError("can't handle positional and keyword arguments at the same time")
    return modulo(_soft(value), Dict(kwargs) if kwargs else args)


def _do_tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> Text:
    return untrusted(to_json(x, ensure_ascii, indent, separators, sort_keys))


def _do_items(value: Any) -> Lazy:
    def pairs() -> Iterator[Any]:
        if isinstance(value, Undefined):
            return
        if not isinstance(value, Mapping):
            raise TypeError("Can only get item pairs from a mapping.")
        yield from value.items()

    return Lazy(value, pairs())


def _ignore_case(value: Any) -> Any:
    return plain(value).lower() if isinstance(value, str) else value


def _do_dictsort(value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False) -> List:
    if by not in ("key", "value"):
        raise FilterArgumentError('You can only sort by either "key" or "value"')
    place = 0 if by == "key" else 1

    def key(item: Any) -> Any:
        current().step()
        return item[place] if case_sensitive else _ignore_case(item[place])

    return List(sorted(value.items(), key=key, reverse=reverse))


def _key(environment: Any, attribute: Any, case_sensitive: bool, default: Any = None) -> Callable[[Any], Any]:
    get = make_attrgetter(environment, plain(attribute), None if case_sensitive else _ignore_case, default)

    def key(item: Any) -> Any:
        current().step()
        return get(item)

    return key


@pass_environment
def _do_sort(
    environment: Any, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> List:
    get = make_multi_attrgetter(environment, plain(attribute), None if case_sensitive else _ignore_case)

    def key(item: Any) -> Any:
        current().step()
        return get(item)

    return List(sorted(collect(value), key=key, reverse=reverse))


@pass_environment
def _do_unique(environment: Any, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Lazy:
    key = _key(environment, attribute, case_sensitive)

    def items() -> Iterator[Any]:
        seen = set()
        for item in steps(value):
            identity = key(item)
            if identity not in seen:
                seen.add(identity)
                yield item

    return Lazy(value, items())


@pass_environment
def _do_groupby(
    environment: Any, value: Any, attribute: Any, default: Any = None, case_sensitive: bool = False
) -> List:
    key = _key(environment, attribute, case_sensitive, default)
    shown = _key(environment, attribute, True, default)
    groups = [(name, List(items)) for name, items in groupby(sorted(collect(value), key=key), key)]
    return List(Group((name if case_sensitive else shown(items[0]), items)) for name, items in groups)


def _extreme(environment: Any, value: Any, choose: Callable[..., Any], case_sensitive: bool, attribute: Any) -> Any:
    items = steps(value)
    for first in items:
        return choose(chain([first], items), key=_key(environment, attribute, case_sensitive))
    return environment.undefined("No aggregated item, sequence was empty.")


@pass_environment
def _do_min(environment: Any, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
    return _extreme(environment, value, min, case_sensitive, attribute)


@pass_environment
def _do_max(environment: Any, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
    return _extreme(environment, value, max, case_sensitive, attribute)


@pass_environment
def _do_sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    items: Iterable[Any] = steps(iterable)
    if attribute is not None:
        items = map(make_attrgetter(environment, plain(attribute)), items)
    if isinstance(start, str):
        return sum(items, start)  # raises what Python raises
    for item in items:
        start = environment.call_binop(None, "+", start, item)
    return start


@pass_environment
def _do_first(environment: Any, seq: Any) -> Any:
    for item in seq:
        return item
    return environment.undefined("No first item, sequence was empty.")


@pass_environment
def _do_last(environment: Any, seq: Any) -> Any:
    for item in reversed(tracked(seq)) if isinstance(seq, str) else reversed(seq):
        return item
    return environment.undefined("No last item, sequence was empty.")


@pass_context
def _do_map(context: Any, value: Any, *args: Any, **kwargs: Any) -> Lazy:
    def items() -> Iterator[Any]:
        if value:
            change = prepare_map(context, args, kwargs)
            for item in steps(value):
                yield change(item)

    return Lazy(value, items())


def _selecting(wanted: bool, by_attribute: bool) -> Callable[..., Lazy]:
    @pass_context
    def select(context: Any, value: Any, *args: Any, **kwargs: Any) -> Lazy:
        def items() -> Iterator[Any]:
            if value:
                test = prepare_select_or_reject(
                    context, args, kwargs, lambda found: bool(found) is wanted, by_attribute
                )
                for item in steps(value):
                    if test(item):
                        yield item

        return Lazy(value, items())

    return select


def _do_batch(value: Any, linecount: int, fill_with: Any = None) -> Lazy:
    def batches() -> Iterator[List]:
        batch: list[Any] = []
        for item in steps(value):
            if len(batch) == linecount:
                yield List(batch)
                batch = []
            batch.append(item)
        if batch:
            if fill_with is not None and len(batch) < linecount:
                check_weight(linecount * measure(fill_with)[0])
                batch += [fill_with] * (linecount - len(batch))
            yield List(batch)

    return Lazy(value, batches())


def _do_slice(value: Any, slices: int, fill_with: Any = None) -> Lazy:
    def parts() -> Iterator[List]:
        items = collect(value)
        size, extra = divmod(len(items), slices)
        start = 0
        for i in range(slices):
            current().step()
            end = start + size + (i < extra)
            part = list.__getitem__(items, slice(start, end))
            if fill_with is not None and i >= extra:
                part.append(fill_with)
            yield List(part)
            start = end

    return Lazy(value, parts())


def _do_round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if method not in {"common", "ceil", "floor"}:
        raise FilterArgumentError("method must be common, ceil or floor")
    if abs(precision) > _MAX_ROUNDING:
        raise FilterArgumentError(f"precision must be within {_MAX_ROUNDING} digits")
    if method == "common":
        return round(value, precision)
    return getattr(math, plain(method))(value * (10**precision)) / (10**precision)


def _do_int(value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        return default
    try:
        return int(plain(value), base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            return int(float(value))
        except (TypeError, ValueError, OverflowError):
            return default


def _do_float(value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _do_wordcount(s: Any) -> int:
    count = 0
    inside = False
    for i, character in enumerate(str.__iter__(_soft(s))):
        if i % 4096 == 0:
            current().step()
        word = character.isalnum() or character == "_"
        count += word and not inside
        inside = word
    return count


def _length(value: Sized) -> int:
    return len(value)


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "batch": _do_batch,
    "capitalize": _capitalize,
    "center": _do_center,
    "count": _length,
    "d": _do_default,
    "default": _do_default,
    "dictsort": _do_dictsort,
    "e": escape,
    "escape": escape,
    "first": _do_first,
    "float": _do_float,
    "format": _do_format,
    "groupby": _do_groupby,
    "indent": _do_indent,
    "int": _do_int,
    "items": _do_items,
    "join": _do_join,
    "last": _do_last,
    "length": _length,
    "list": collect,
    "lower": _lower,
    "map": _do_map,
    "max": _do_max,
    "min": _do_min,
    "reject": _selecting(False, False),
    "rejectattr": _selecting(False, True),
    "replace": _do_replace,
    "reverse": _do_reverse,
    "round": _do_round,
    "safe": lambda value: value if isinstance(value, Safe) else mark(output(value)),
    "select": _selecting(True, False),
    "selectattr": _selecting(True, True),
    "slice": _do_slice,
    "sort": _do_sort,
    "string": _soft,
    "sum": _do_sum,
    "title": _do_title,
    "tojson": _do_tojson,
    "trim": _do_trim,
    "truncate": _do_truncate,
    "unique": _do_unique,
    "upper": _upper,
    "wordcount": _do_wordcount,
}

"""Containers as chat templates see them: each knows its weight and depth, so that no walk over one runs away.

Lists that hold one another twice double the work of comparing, printing or hashing them with every level, and deep ones
exhaust the machine stack inside C code. Both are refused when a container is made. Templates cannot change a list or
dict, so what was measured stays true; a namespace can change, and is a leaf to every walk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from sterna.chat.budget import MAX_NESTING, MAX_OUTPUT_BYTES, MAX_WEIGHT, OverBudget, check_length, current
from sterna.chat.text import plain

_CHARS_PER_WEIGHT = 32
_BYTES_PER_ELEMENT = 64
_MAX_ODD_KEYS = 1000


class List(list[Any]):
    """A list with weight and depth."""

    __slots__ = ("depth", "weight")
    depth: int
    weight: int

    def __init__(self, items: Iterable[Any] = (), measured: tuple[int, int] | None = None) -> None:
        super().__init__(items)
        self.weight, self.depth = measured or _measure_all(self)


class Tuple(tuple[Any, ...]):
    """A tuple with weight and depth."""

    depth: int
    weight: int

    def __new__(cls, items: Iterable[Any] = (), measured: tuple[int, int] | None = None) -> Tuple:
        self = super().__new__(cls, items)
        self.weight, self.depth = measured or _measure_all(self)
        return self


class Group(Tuple):
    """What the filter `groupby` yields: (grouper, list)."""

    @property
    def grouper(self) -> Any:
        return self[0]

    @property
    def list(self) -> Any:
        return self[1]


class Dict(dict[Any, Any]):
    """A dict with weight and depth."""

    __slots__ = ("depth", "weight")
    depth: int
    weight: int

    def __init__(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), **more: Any) -> None:
        super().__init__(items, **more)
        keys = _measure_all(self)
        values = _measure_all(self.values())
        self.weight, self.depth = keys[0] + values[0], max(keys[1], values[1])

    # Views of our own, because those of `dict` do not tell whose they are, and so not how much they hold.
    def keys(self) -> Keys:  # type: ignore[override]
        return Keys(self)

    def values(self) -> Values:  # type: ignore[override]
        return Values(self)

    def items(self) -> Items:  # type: ignore[override]
        return Items(self)


class Keys(KeysView[Any]):
    _mapping: Dict

    def __repr__(self) -> str:
        return f"dict_keys({list(self._mapping)!r})"


class Values(ValuesView[Any]):
    _mapping: Dict

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.values(self._mapping))

    def __repr__(self) -> str:
        return f"dict_values({list(self)!r})"


class Items(ItemsView[Any, Any]):
    _mapping: Dict

    def __iter__(self) -> Iterator[Tuple]:
        return map(Tuple, dict.items(self._mapping))

    def __repr__(self) -> str:
        return f"dict_items({list(self)!r})"


class Lazy:
    """A generator of a filter such as `map`; knows how many generators feed it."""

    __slots__ = ("_items", "depth")

    def __init__(self, source: object, items: Iterator[Any]) -> None:
        self.depth = _checked_depth(measure(source)[1] + 1)
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self

    def __repr__(self) -> str:
        return "<generator object>"

    def __next__(self) -> Any:
        current().step()
        return next(self._items)


class Method:
    """A method of a string or container, as a template gets it by naming it."""

    __slots__ = ("call", "name", "owner")

    def __init__(self, owner: object, name: str, call: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current().step()
        return adopt(self.call(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<built-in method {self.name} of {type(self.owner).__name__} object>"


for _class, _name in (
    (List, "list"),
    (Tuple, "tuple"),
    (Group, "tuple"),
    (Dict, "dict"),
    (Keys, "dict_keys"),
    (Values, "dict_values"),
    (Items, "dict_items"),
    (Lazy, "generator"),
):
    # Errors of CPython and jinja2 name the type of an operand; a template's author knows it by this name.
    _class.__name__ = _name
    _class.__module__ = "builtins"


def adopt(value: Any) -> Any:
    """A list, tuple or dict that a Python function returned, as one of ours; the elements are ours already."""
    match value:
        case List() | Tuple() | Dict():
            return value
        case list():
            return List(value)
        case tuple():
            return Tuple(value)
        case dict():
            return Dict(value)
    return value


def measure(value: object) -> tuple[int, int]:
    """(weight, depth) of any value; a scalar is (1, 0)."""
    if isinstance(value, str):
        return 1 + len(value) // _CHARS_PER_WEIGHT, 0
    if isinstance(value, List | Tuple | Dict):
        return value.weight, value.depth
    if isinstance(value, Keys | Values | Items):
        return value._mapping.weight, value._mapping.depth + 1
    if isinstance(value, Lazy):
        return 1, value.depth
    if isinstance(value, Method):
        weight, depth = measure(value.owner)
        return weight, depth + 1
    return 1, 0


def _measure_all(items: Iterable[Any]) -> tuple[int, int]:
    weight, depth, count = 1, 0, 0
    budget = current()
    for item in items:
        count += 1
        if count % 4096 == 0:
            budget.step(512)
        item_weight, item_depth = measure(item)
        weight += item_weight
        if item_depth > depth:
            depth = item_depth
    check_weight(weight)
    budget.allocate(_BYTES_PER_ELEMENT * (count + 2))
    budget.step()
    return weight, _checked_depth(depth + 1)


def joined(left: List | Tuple, right: List | Tuple) -> Any:
    """`left + right` of two lists or two tuples."""
    weight = left.weight + right.weight - 1
    check_weight(weight)
    current().allocate(_BYTES_PER_ELEMENT * (len(left) + len(right)))
    measured = weight, max(left.depth, right.depth)
    if isinstance(left, List):
        return List([*left, *right], measured)
    return Tuple((*left, *right), measured)


def multiplied(value: List | Tuple, count: int) -> Any:
    """`value * count` of a list or tuple."""
    count = max(count, 0)
    weight = 1 + (value.weight - 1) * count
    check_weight(weight)
    current().allocate(_BYTES_PER_ELEMENT * len(value) * count)
    if isinstance(value, List):
        return List(list.__mul__(value, count), (weight, value.depth))
    return Tuple(tuple.__mul__(value, count), (weight, value.depth))


def check_weight(weight: int) -> None:
    """Refuses a container of that weight."""
    if weight > MAX_WEIGHT:
        raise OverBudget(f"the template makes a list or dict with more than {MAX_WEIGHT} elements")


def _checked_depth(depth: int) -> int:
    if depth > MAX_NESTING:
        raise OverBudget(f"the template nests values more than {MAX_NESTING} deep")
    return depth


def collect(items: Iterable[Any]) -> List:
    """`list(items)`, counted while it grows."""
    if isinstance(items, List | Tuple | Dict):
        return List(items)
    result = []
    budget = current()
    for item in items:
        budget.step()
        result.append(item)
        if len(result) > MAX_WEIGHT:
            check_weight(len(result))
    return List(result)


def make_dict(pairs: Iterable[Any]) -> Dict:
    """`dict(pairs)`, counted while it grows."""
    budget = current()
    result: dict[Any, Any] = {}
    odd_keys = 0
    for key, value in pairs:
        budget.step()
        result[key] = value
        # Numbers can be chosen to collide, and then each costs as much as all before it. Strings cannot.
        odd_keys += not isinstance(key, str)
        if odd_keys > _MAX_ODD_KEYS:
            raise OverBudget(f"the template makes a dict with more than {_MAX_ODD_KEYS} keys that are not strings")
    return Dict(result)


def _strings(value: object) -> Iterator[str]:
    """Every string in a value, keys included."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Dict):
            stack.extend(item)
            stack.extend(dict.values(item))
        elif isinstance(item, List | Tuple):
            stack.extend(item)


def _check_written(value: object, write: Callable[[str], str], growth: int, per_element: int) -> None:
    """Refuses a value whose text would be too long. `write` makes a character up to `growth` characters long."""
    budget = current()
    budget.step()
    weight = measure(value)[0]
    bound = weight * (_CHARS_PER_WEIGHT * growth + per_element)
    if bound <= MAX_OUTPUT_BYTES:
        return
    total = weight * per_element
    check_length(total)
    for string in _strings(value):
        budget.step()
        for start in range(0, len(string), 1 << 16):
            budget.step()
            total += len(write(str.__getitem__(string, slice(start, start + (1 << 16)))))
            check_length(total)


def written(value: object) -> str:
    """`str(value)` of a value that is no string, with its cost checked first."""
    if isinstance(value, List | Tuple | Dict | Keys | Values | Items):
        _check_written(value._mapping if isinstance(value, Keys | Values | Items) else value, repr, 10, 4)
    return str(value)


def represented(value: object, write: Callable[[Any], str] = repr) -> str:
    """`repr(value)` or `ascii(value)` with its cost checked first."""
    _check_written(value, write, 10, 4)
    return write(value)


def to_json(value: Any, ensure_ascii: bool, indent: Any, separators: Any, sort_keys: bool) -> str:
    """`json.dumps(value, ...)` with its cost checked first."""
    per_element = 8
    if separators is not None:
        per_element += sum(len(plain(s)) for s in separators if isinstance(s, str))
    if indent is not None:
        step = len(indent) if isinstance(indent, str) else int(indent)
        per_element += 2 + max(step, 0) * (measure(value)[1] + 1)
    _check_written(value, lambda text: json.dumps(text, ensure_ascii=bool(ensure_ascii)), 12, per_element)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

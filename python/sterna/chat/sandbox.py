"""The jinja2 environment of chat templates: no host objects, no reflection, every operation charged to the budget.

A template gets at values, at the methods named here, at the filters, tests and functions of `callables.py`, and at
nothing else. jinja2's own sandbox stays underneath.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any, ClassVar

from jinja2 import nodes, runtime
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner

from sterna.chat.budget import (
    MAX_BLOCK_DEPTH,
    MAX_INT_BITS,
    MAX_LOOP_DEPTH,
    MAX_PARSE_DEPTH,
    MAX_TOKENS,
    OverBudget,
    current,
)
from sterna.chat.compiler import TrackingCodeGenerator
from sterna.chat.formatting import brace, output
from sterna.chat.markup import Safe, add, call_method, modulo
from sterna.chat.text import Text, concat, plain, repeat, tracked, trusted
from sterna.chat.values import (
    Dict,
    Group,
    Items,
    Keys,
    Lazy,
    List,
    Method,
    Tuple,
    Values,
    joined,
    make_dict,
    multiplied,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STRING_METHODS = _names(
    "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace "
    "rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
CONTAINER_METHODS: dict[type, frozenset[str]] = {
    List: frozenset({"copy", "count", "index"}),
    Tuple: frozenset({"count", "index"}),
    Group: frozenset({"count", "index"}),
    Dict: frozenset({"copy", "get", "items", "keys", "values"}),
}
FORBIDDEN_TAGS = frozenset({"autoescape", "block", "extends", "from", "import", "include", "trans"})
_OPENING = frozenset({"lparen", "lbracket", "lbrace"})
_CLOSING = frozenset({"rparen", "rbracket", "rbrace"})
_NESTING_TAGS = frozenset({"call", "filter", "for", "generation", "if", "macro", "with"})


def steps(items: Iterable[Any]) -> Iterator[Any]:
    """Iterates over `items`, one step each."""
    return _steps(iter(items))


def _steps(items: Iterator[Any]) -> Iterator[Any]:
    budget = current()
    for item in items:
        budget.step()
        yield item


class Loop(runtime.LoopContext):
    """The variable `loop`."""

    @staticmethod
    def _to_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
        return steps(iterable)

    def __call__(self, iterable: Iterable[Any]) -> str:
        budget = current()
        budget.enter()
        try:
            return super().__call__(iterable)
        finally:
            budget.leave()


Loop.__name__ = "LoopContext"


class Macro(runtime.Macro):
    """A macro of the template."""

    def _invoke(self, arguments: list[Any], autoescape: bool) -> str:
        # varargs and kwargs arrive as containers that Python made.
        tracked_arguments = [
            Tuple(a) if type(a) is tuple else Dict(a) if type(a) is dict else a  # bare ones come from Python only
            for a in arguments
        ]
        budget = current()
        budget.step()
        budget.enter()
        try:
            return super()._invoke(tracked_arguments, autoescape)
        finally:
            budget.leave()


class Namespace:
    """What `namespace(...)` makes: the one thing that a template can change."""

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(*args: Any, **kwargs: Any) -> None:
        # The signature leaves every name free to be an attribute, `self` included.
        self, *rest = args
        self._values = dict(*rest, **kwargs)
        for name in self._values:
            _check_attribute_name(name)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute_name(name)
        self._values[name] = value

    def __repr__(self) -> str:
        # Its values are not shown: a namespace may hold itself.
        return "<Namespace>"


def _check_attribute_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute named {plain(name)!r}: names with _ are reserved")


PROPERTIES: dict[type, frozenset[str]] = {
    Group: frozenset({"grouper", "list"}),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
    Loop: _names("depth depth0 first index index0 last length nextitem previtem revindex revindex0"),
    Cycler: frozenset({"current"}),
}
METHODS: dict[type, frozenset[str]] = {
    **CONTAINER_METHODS,
    Loop: frozenset({"changed", "cycle"}),
    Cycler: frozenset({"next", "reset"}),
}
_SEEN_AS: dict[type, type] = {
    List: list,
    Tuple: tuple,
    Group: tuple,
    Dict: dict,
    Keys: type({}.keys()),
    Values: type({}.values()),
    Items: type({}.items()),
    Lazy: GeneratorType,
    Namespace: object,
}
"""The type whose attributes a template is told about when it asks for one that it cannot have."""


class ChatExtension(Extension):
    """Bounds the source before jinja2's recursive parser meets it, and parses the tag `generation`."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        budget = current()
        depth = block_depth = loop_depth = 0
        after_block_begin = False
        for count, token in enumerate(stream):
            budget.step()
            if count >= MAX_TOKENS:
                raise OverBudget(f"the template has more than {MAX_TOKENS} tokens")
            if token.type in _OPENING:
                depth += 1
            elif token.type in _CLOSING:
                depth -= 1
            elif after_block_begin and token.type == "name":
                if token.value in FORBIDDEN_TAGS:
                    raise TemplateSyntaxError(f"a chat template cannot use the tag {token.value!r}", token.lineno)
                block_depth += token.value in _NESTING_TAGS
                block_depth -= token.value.startswith("end") and token.value[3:] in _NESTING_TAGS
                loop_depth += (token.value == "for") - (token.value == "endfor")
            if depth > MAX_PARSE_DEPTH or block_depth > MAX_BLOCK_DEPTH or loop_depth > MAX_LOOP_DEPTH:
                most = f"{MAX_PARSE_DEPTH} brackets, {MAX_BLOCK_DEPTH} tags or {MAX_LOOP_DEPTH} loops"
                raise OverBudget(f"line {token.lineno}: the template is nested more than {most} deep")
            after_block_begin = token.type == "block_begin"
            yield token

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """transformers' configuration of jinja2, with `Text` for literals and a budget."""

    code_generator_class = TrackingCodeGenerator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    concat = staticmethod(concat)
    # What generated code calls, beside the methods below.
    output = staticmethod(output)
    literal = staticmethod(trusted)
    make_dict = staticmethod(make_dict)
    steps = staticmethod(steps)
    runtime_classes: ClassVar[dict[str, type]] = {"LoopContext": Loop, "Macro": Macro, "Namespace": Namespace}

    def __init__(self, filters: dict[str, Any], tests: dict[str, Any], functions: dict[str, Any]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[ChatExtension, LoopControlExtension], optimized=False
        )
        self.filters = dict(filters)
        self.tests = dict(tests)
        self.globals = dict(functions)
        self._functions = frozenset(map(id, (steps, *functions.values())))

    def getattr(self, obj: Any, attribute: str) -> Any:
        current().step()
        if isinstance(obj, runtime.Undefined):
            return obj[attribute]  # raises
        found, value = self._attribute(obj, attribute)
        if found:
            return value
        try:
            return obj[attribute]
        except (TypeError, LookupError, AttributeError):
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        current().step()
        try:
            return tracked(obj)[argument] if isinstance(obj, str) else obj[argument]
        except (TypeError, LookupError, AttributeError):
            if isinstance(argument, str):
                found, value = self._attribute(obj, plain(argument))
                if found:
                    return value
        return self.undefined(obj=obj, name=plain(argument))

    def _attribute(self, obj: Any, name: str) -> tuple[bool, Any]:
        """(whether the object has such an attribute, it or an undefined value that explains)."""
        kind = type(obj)
        if isinstance(obj, str):
            kind = str
            if name in STRING_METHODS:
                return True, self._string_method(tracked(obj), name)
        elif name in METHODS.get(kind, ()):
            return True, Method(obj, name, getattr(obj, name))
        elif name in PROPERTIES.get(kind, ()):
            return True, getattr(obj, name)
        if hasattr(_SEEN_AS.get(kind, kind), name):
            return True, self.unsafe_undefined(obj, name)
        return False, None

    def _string_method(self, text: Text, name: str) -> Method:
        if name == "format":
            return Method(text, name, lambda *args, **kwargs: self._format(text, args, kwargs))
        if isinstance(text, Safe):
            return Method(text, name, lambda *args, **kwargs: call_method(text, name, args, kwargs))
        return Method(text, name, getattr(text, name))

    def _format(self, text: Text, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Text:
        def get(value: Any, name: Any, is_attribute: bool) -> Any:
            return self.getattr(value, name) if is_attribute else self.getitem(value, name)

        if isinstance(text, Safe):
            raise SecurityError("format of markup is not supported")
        return brace(text, args, kwargs, get)

    def is_safe_callable(self, obj: Any) -> bool:
        return isinstance(obj, Method | Macro | Loop | Joiner) or id(obj) in self._functions

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        current().step(1 + len(args) + len(kwargs))
        if isinstance(__obj, runtime.Undefined):
            return __obj()  # raises
        if not callable(__obj):
            raise TypeError(f"{type(__obj).__name__!r} object is not callable")
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"{__obj!r} is not safely callable")
        return __context.call(__obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        current().step()
        return _BINARY[operator](left, right)

    def join_values(self, *values: Any) -> Text:
        """`a ~ b ~ c`."""
        return concat([output(value) for value in values])

    def cut(self, obj: Any, start: Any, stop: Any, step: Any) -> Any:
        """`obj[start:stop:step]`."""
        current().step()
        key = slice(start, stop, step)
        if isinstance(obj, str):
            return tracked(obj)[key]
        if isinstance(obj, List):
            return List(list.__getitem__(obj, key))
        if isinstance(obj, Tuple):
            return Tuple(tuple.__getitem__(obj, key))
        return obj[key]

    def make_list(self, *items: Any) -> List:
        """`[a, b, c]`."""
        return List(items)

    def make_tuple(self, *items: Any) -> Tuple:
        """`(a, b, c)`."""
        return Tuple(items)

    def tick(self) -> None:
        """Charges a step for an operation that Python code does itself."""
        current().step()


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return add(left, right)
    for kind in (List, Tuple):
        if isinstance(left, kind) and isinstance(right, kind):
            return joined(left, right)
    return _bounded(operator.add(plain(left), plain(right)))


def _multiply(left: Any, right: Any) -> Any:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(sequence, str | List | Tuple):
            if not isinstance(sequence, str):
                return multiplied(sequence, int(count))
            result = repeat(sequence, int(count))
            return Safe(result, result.mask) if isinstance(sequence, Safe) else result
    return _bounded(operator.mul(left, right))


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_INT_BITS:
        raise _number_too_large()
    return _bounded(operator.pow(left, right))


def _modulo(left: Any, right: Any) -> Any:
    return modulo(left, right) if isinstance(left, str) else operator.mod(left, right)


def _subtract(left: Any, right: Any) -> Any:
    if isinstance(left, Keys | Values | Items):
        raise SecurityError("views of a dict cannot be subtracted")
    return _bounded(operator.sub(left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise _number_too_large()
    return value


def _number_too_large() -> OverBudget:
    return OverBudget(f"the template computes a number of more than {MAX_INT_BITS} bits")


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": _add,
    "-": _subtract,
    "*": _multiply,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": _power,
    "%": _modulo,
}

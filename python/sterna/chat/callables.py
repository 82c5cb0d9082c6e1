"""The filters, tests and functions that a chat template can call; nothing in them reaches the host."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import chain
from typing import Any

from jinja2 import tests
from jinja2.exceptions import FilterArgumentError
from jinja2.exceptions import TemplateError as JinjaTemplateError
from jinja2.utils import Cycler, Joiner

from sterna.chat.budget import MAX_RANGE, OverBudget, current
from sterna.chat.filters import FILTERS
from sterna.chat.formatting import output
from sterna.chat.sandbox import Namespace
from sterna.chat.text import TRUSTED, Text, origin, plain, trusted, untrusted
from sterna.chat.values import Dict, Method, Tuple, make_dict

__all__ = ["FILTERS", "FUNCTIONS", "TESTS", "strftime_now"]

_MAX_MESSAGE_CHARS = 4096
_MAX_DATE_FORMAT_CHARS = 256


def _in(value: Any, sequence: Any) -> bool:
    return value in sequence


_COMPARISONS = {
    "==": operator.eq,
    "eq": operator.eq,
    "equalto": operator.eq,
    "!=": operator.ne,
    "ne": operator.ne,
    ">": operator.gt,
    "gt": operator.gt,
    "greaterthan": operator.gt,
    ">=": operator.ge,
    "ge": operator.ge,
    "<": operator.lt,
    "lt": operator.lt,
    "lessthan": operator.lt,
    "<=": operator.le,
    "le": operator.le,
    "in": _in,
}


def _counted(test: Callable[..., bool]) -> Callable[..., bool]:
    def counted(*args: Any) -> bool:
        current().step()
        return test(*args)

    return counted


TESTS: dict[str, Callable[..., Any]] = {
    "boolean": tests.test_boolean,
    "callable": callable,
    "defined": tests.test_defined,
    "divisibleby": tests.test_divisibleby,
    "escaped": tests.test_escaped,
    "even": tests.test_even,
    "false": tests.test_false,
    "filter": tests.test_filter,
    "float": tests.test_float,
    "integer": tests.test_integer,
    "iterable": tests.test_iterable,
    "mapping": tests.test_mapping,
    "none": tests.test_none,
    "number": tests.test_number,
    "odd": tests.test_odd,
    "sameas": tests.test_sameas,
    "sequence": tests.test_sequence,
    "string": tests.test_string,
    "test": tests.test_test,
    "true": tests.test_true,
    "undefined": tests.test_undefined,
    "lower": lambda value: output(value).islower(),
    "upper": lambda value: output(value).isupper(),
    **{name: _counted(test) for name, test in _COMPARISONS.items()},
}


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise OverBudget(
            f"Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."  # jinja2's words
        )
    return numbers


def _dict(*args: Any, **kwargs: Any) -> Dict:
    if len(args) > 1:
        raise TypeError(f"dict expected at most 1 argument, got {len(args)}")
    pairs = (args[0].items() if isinstance(args[0], Mapping) else args[0]) if args else ()
    return make_dict(chain(pairs, kwargs.items()))


def _cycler(*items: Any) -> Cycler:
    return Cycler(*Tuple(items))


def _joiner(sep: str = ", ") -> Joiner:
    return Joiner(sep)


def _raise_exception(message: Any) -> None:
    raise JinjaTemplateError(str.__str__(output(message))[:_MAX_MESSAGE_CHARS])


def strftime_now(now: datetime | None) -> Method:
    """The function of that name; shows `now`, or the time of the call if it is None."""

    def show(format: str) -> Text:
        if len(format) > _MAX_DATE_FORMAT_CHARS:
            raise FilterArgumentError(f"a date format has at most {_MAX_DATE_FORMAT_CHARS} characters")
        value = (now or datetime.now()).strftime(plain(format))
        # The date is the engine's; what stands around it is the format's.
        return trusted(value) if origin(format) == TRUSTED * len(format) else untrusted(value)

    return Method("", "strftime_now", show)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cycler": _cycler,
    "dict": _dict,
    "joiner": _joiner,
    "namespace": Namespace,
    "raise_exception": _raise_exception,
    "range": _range,
}
"""What every rendering has; `strftime_now` is added to each with its own clock."""

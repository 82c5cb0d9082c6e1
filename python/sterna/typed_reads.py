"""Typed, range-checked reads of named values: what the metadata of model files and JSON files have in common."""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from typing import Any, NoReturn

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """A value for messages, shortened."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class TypedReads(ABC):
    """Reads by name. A value of the wrong type or range, or a missing one that has no default, is told to `fail`."""

    smallest = 0.0  # a number is above this
    largest = math.inf  # and at most this

    @abstractmethod
    def value(self, name: str) -> Any:
        """The value as it stands; None where there is none."""

    @abstractmethod
    def fail(self, name: str, problem: str) -> NoReturn:
        """Raises ModelFormatError about a key."""

    def value_or(self, name: str, default: Any) -> Any:
        """The value or the default; a default of None says that there must be a value."""
        value = self.value(name)
        if value is None:
            if default is None:
                self.fail(name, "is missing")
            return default
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within [low, high]."""
        value = self.value_or(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"is {shown(value)}, expected an integer from {low} to {high}")
        return value

    def number(
        self, name: str, default: float | None = None, *, high: float | None = None, zero: bool = False
    ) -> float:
        """A finite number above 0 and at most `high`; with `zero` also 0."""
        value = self.value_or(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"is {shown(value)}, expected a number")
        high = self.largest if high is None else high
        if not (self.smallest < value <= high and value < math.inf) and not (zero and value == 0):
            limit = f" up to {high}" if high < self.largest else ""
            lowest = "from 0" if zero else "above 0"
            self.fail(name, f"is {shown(value)}, expected a finite number {lowest}{limit}")
        return float(value)

    def number_or_zero(self, name: str) -> float:
        """The same where 0, as a missing value, says that there is no such thing."""
        value = self.value(name)
        return 0.0 if value is None or (value == 0 and not isinstance(value, bool)) else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value_or(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"is {shown(value)}, expected true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.value_or(name, default)
        if not isinstance(value, str):
            self.fail(name, f"is {shown(value)}, expected a string")
        return value

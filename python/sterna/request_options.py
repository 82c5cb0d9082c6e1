"""What a request may say beside its sampling: how it stands to others, and what happens at its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from sterna.errors import ArgumentError, QueueFullError
from sterna.generation import Request
from sterna.sampling import OPTION_NAMES, SamplingOptions

if TYPE_CHECKING:
    import numpy.typing as npt

Priority = Literal["interactive", "background"]
ContextOverflow = Literal["stop", "shift"]
PRIORITIES = ("interactive", "background")
CONTEXT_OVERFLOWS = ("stop", "shift")
_MAX_DRAFT = 1 << 16


class RequestOptions(SamplingOptions, total=False):
    """Keyword arguments of a request: the fields of `Sampling`, and those of `Terms`."""

    priority: Priority | None
    timeout: float | None
    context_overflow: ContextOverflow | None
    draft_tokens: int | None
    lora: str | tuple[str, float] | None
    embeddings: npt.ArrayLike | None


@dataclass(frozen=True)
class Terms:
    """How a request stands to others, and what happens at its limits; None is the default given here.

    priority: "interactive"; one in the "background" gets what these leave.
    timeout: none; seconds after which the request ends with DeadlineError.
    context_overflow: "stop" ends the text when the context is full; "shift" forgets the middle of it, computes the rest
        again, and goes on.
    draft_tokens: as many as pay; tokens guessed ahead, which changes the speed and never the text. 0 is off.
    lora: none; the name of an adapter of `load(lora=...)`, or (name, scale).
    embeddings: none; float32 [n, hidden_size], input rows in front of the prompt's tokens (a soft prompt): they stand
        for rows of the embedding table.
    """

    priority: str | None = None
    timeout: float | None = None
    context_overflow: str | None = None
    draft_tokens: int | None = None
    lora: str | tuple[str, float] | None = None
    embeddings: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        _one_of("priority", self.priority, PRIORITIES)
        _one_of("context_overflow", self.context_overflow, CONTEXT_OVERFLOWS)
        if self.timeout is not None:
            number = isinstance(self.timeout, int | float) and not isinstance(self.timeout, bool)
            if not number or math.isnan(self.timeout) or self.timeout <= 0:
                raise ArgumentError(f"timeout is {self.timeout!r:.60}, must be a number of seconds above 0")
        if self.draft_tokens is not None and (
            type(self.draft_tokens) is not int or not 0 <= self.draft_tokens <= _MAX_DRAFT
        ):
            raise ArgumentError(f"draft_tokens is {self.draft_tokens!r:.60}, must be from 0 to {_MAX_DRAFT}")

    def engine_arguments(self) -> dict[str, Any]:
        return {
            "background": self.priority == "background",
            "timeout": self.timeout,
            "shift_context": self.context_overflow == "shift",
            "draft_tokens": self.draft_tokens,
        }


_TERMS = frozenset(field.name for field in fields(Terms))
REQUEST_OPTION_NAMES = OPTION_NAMES | _TERMS


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], Terms]:
    """The fields of `Sampling` among the options, and the terms. ArgumentError."""
    sampling = {name: value for name, value in options.items() if name not in _TERMS}
    return sampling, Terms(**{name: value for name, value in options.items() if name in _TERMS})


def submitted(submissions: Iterable[Callable[[], Request]]) -> list[Request]:
    """The requests of a list, which may be longer than the queue: when that is full, the list's first are waited for.

    QueueFullError when it is full of others' requests. An error cancels those that were submitted.
    """
    requests: list[Request] = []
    ended = 0
    try:
        for submit in submissions:
            while True:
                try:
                    requests.append(submit())
                    break
                except QueueFullError:
                    if ended == len(requests):
                        raise
                    requests[ended].wait()
                    ended += 1
    except BaseException:
        for request in requests:
            request.handle.cancel()
        raise
    return requests


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ArgumentError(f"{name} is {value!r:.60}, must be one of {', '.join(known)}")

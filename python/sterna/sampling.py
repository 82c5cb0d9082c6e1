"""`Sampling`: how tokens are chosen. Where the caller does not say, the file does, and after it sterna's defaults."""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from sterna.errors import ArgumentError

if TYPE_CHECKING:
    from sterna._core import SamplingParams

# What llama.cpp and the programs built on it do, so that the same file answers alike.
DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.0,
    "penalty_window": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Our names by those of GGUF's general.sampling.* keys.
FILE_KEYS: Mapping[str, str] = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "penalty_last_n": "penalty_window",
}
_INTEGERS = ("top_k", "penalty_window", "seed")
_MAX_STOPS = 1024


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `None` means the file's `general.sampling.*` value, or else the default given here.

    temperature: 0.8; 0 takes the most likely token (greedy), larger is more varied.
    top_k: 40; chooses among so many tokens; 0 is off.
    top_p: 0.95; chooses among the most likely tokens that together have this probability; 1 is off.
    min_p: 0.05; leaves out tokens less likely than this share of the most likely one; 0 is off.
    repetition_penalty: 1 (off); divides the logits of tokens that occurred among the last `penalty_window` ones
        (64; -1: all).
    presence_penalty, frequency_penalty: 0; subtracted once per generated token, and once per occurrence.
    seed: random, and reported in the result. The same seed gives the same tokens on any machine.
    stop: a text that ends the generation and is left out of it, a token id, or several of either. The model's own end
        tokens stop it as well, unless `ignore_eos`.
    logit_bias: added to the logits of tokens, by id; -inf bans one.
    logprobs: 0 reports the log-probability of each token, n also those of the n most likely ones. True is 0.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    penalty_window: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | int | Sequence[str | int] | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | bool | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name in (*DEFAULTS, "seed"):
            value = getattr(self, name)
            if value is None:
                continue
            # numpy's numbers are among these; bool is an int by accident.
            kind = numbers.Integral if name in _INTEGERS else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind):
                expected = "an integer" if name in _INTEGERS else "a number"
                raise ArgumentError(f"{name} is {value!r:.60}, must be {expected}")
            if not math.isfinite(value):
                raise ArgumentError(f"{name} is {value!r}, must be finite")
        if self.seed is not None and not -1 <= self.seed < 1 << 64:
            raise ArgumentError(f"seed is {self.seed}, must be from 0 to 2**64 - 1")
        if self.logprobs is not None and (not isinstance(self.logprobs, int) or self.logprobs < 0):
            raise ArgumentError(f"logprobs is {self.logprobs!r:.60}, must be a number of tokens, 0 or more")

    def updated(self, options: Mapping[str, Any]) -> Sampling:
        """This one with some fields replaced; None leaves a field as it is."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, **given) if given else self

    @property
    def stops(self) -> tuple[list[str], list[int]]:
        """Stop texts and stop tokens. ArgumentError."""
        if self.stop is None:
            return [], []
        stops = [self.stop] if isinstance(self.stop, str | int) else list(self.stop)
        if len(stops) > _MAX_STOPS:
            raise ArgumentError(f"stop: {len(stops)} entries, at most {_MAX_STOPS} are allowed")
        texts = [stop for stop in stops if isinstance(stop, str)]
        ids = [stop for stop in stops if isinstance(stop, int) and not isinstance(stop, bool)]
        if len(texts) + len(ids) != len(stops) or "" in texts:
            wrong = next(s for s in stops if not isinstance(s, str | int) or isinstance(s, bool) or s == "")
            raise ArgumentError(f"stop: {wrong!r:.60} is neither a text nor a token id")
        for text in texts:
            if not text.isascii():
                encodable(text, "stop")
        return texts, ids

    @property
    def top_logprobs(self) -> int | None:
        """What the engine calls it: None for no log-probabilities, 0 for those of the chosen tokens, n for more."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return 0 if self.logprobs is True else int(self.logprobs)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, as keyword arguments."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    penalty_window: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | int | Sequence[str | int] | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | bool | None
    ignore_eos: bool


OPTION_NAMES = frozenset(field.name for field in fields(Sampling))


def encodable(text: str, place: str) -> None:
    """ArgumentError for a text with half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{place}: character {error.start} is half of a surrogate pair") from None


def file_defaults(get: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file's general.sampling.* keys under our names; those that are no numbers are ignored."""
    found = {}
    for key, name in FILE_KEYS.items():
        value = get.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = int(value) if name in _INTEGERS else float(value)
    return found


def new_seed() -> int:
    """A seed for a request that names none; short enough to be typed again."""
    return secrets.randbits(32)


def engine_params(sampling: Sampling, defaults: Mapping[str, Any], banned: Sequence[int], seed: int) -> SamplingParams:
    """Every field decided: the request's, else that of `defaults`, else sterna's. `banned` tokens are never chosen."""
    from sterna._core import SamplingParams

    values = {**DEFAULTS, **defaults}
    values |= {name: getattr(sampling, name) for name in DEFAULTS if getattr(sampling, name) is not None}
    bias = dict.fromkeys(banned, -math.inf) | _bias(sampling.logit_bias)
    return SamplingParams(**values, logit_bias=bias, seed=seed)


def _bias(given: Mapping[int, float] | None) -> dict[int, float]:
    """`logit_bias` with integer keys; JSON has only text ones."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"logit_bias is {type(given).__name__}, must be a dict from token ids to numbers")
    try:
        return {int(token): float(value) for token, value in given.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"logit_bias: {error}") from None

"""Keyword arguments as people write them: aliases are accepted, and a misspelt name gets a did-you-mean."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar

if TYPE_CHECKING:
    import numpy.typing as npt

_P = ParamSpec("_P")
_R = TypeVar("_R")

LOAD_ALIASES: Mapping[str, str] = {
    "n_ctx": "context",
    "num_ctx": "context",
    "ctx_size": "context",
    "context_length": "context",
    "context_size": "context",
    "max_model_len": "context",
    "n_gpu_layers": "gpu_layers",
    "n_threads": "threads",
    "num_threads": "threads",
    "n_seq_max": "max_sequences",
    "max_num_seqs": "max_sequences",
    "n_parallel": "max_sequences",
    "cache_type": "kv_dtype",
    "kv_type": "kv_dtype",
    "kv_cache_dtype": "kv_dtype",
    "draft_model": "draft",
}
GENERATE_ALIASES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "penalty_repeat": "repetition_penalty",
    "present_penalty": "presence_penalty",
    "freq_penalty": "frequency_penalty",
    "repeat_last_n": "penalty_window",
    "penalty_last_n": "penalty_window",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "random_seed": "seed",
    "chat_template_kwargs": "template_kwargs",
    "sampling_params": "sampling",
}


def is_array(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """Whether `value` is a numpy array, found out without importing numpy: who has one has done so."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def keyword_arguments(
    aliases: Mapping[str, str] | None = None, options: Collection[str] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Checks the keywords of each call of the decorated function and translates `aliases`.

    The function's own keyword-only parameters are allowed, and `options` if it takes `**options`. TypeError names what
    was probably meant.
    """
    aliases = aliases or {}

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        code = function.__code__
        named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        known = (set(named) | set(options)) - {"self"}
        usable = {alias: name for alias, name in aliases.items() if name in known}

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if kwargs.keys() <= known:
                return function(*args, **kwargs)
            return function(*args, **translate(function.__name__, kwargs, known, usable))

        return checked

    return decorate


def translate(
    function: str, given: Mapping[str, Any], known: Collection[str], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """`given` with every alias under its own name. TypeError for an unknown name, or for one given twice."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        name = key if key in known else aliases.get(key)
        if name is None:
            raise TypeError(f"{function}() has no argument {key!r}{did_you_mean(key, known, aliases)}")
        if name in result or (name != key and name in given):
            raise TypeError(f"{function}() got {name!r} twice, once as {key!r}")
        result[name] = value
    return result


def did_you_mean(word: str, known: Collection[str], aliases: Mapping[str, str] | None = None) -> str:
    """`; did you mean 'x'?` for the closest known word, or nothing."""
    import difflib

    aliases = aliases or {}
    close = difflib.get_close_matches(word, [*known, *aliases], n=1, cutoff=0.6)
    return f"; did you mean {aliases.get(close[0], close[0])!r}?" if close else ""

"""Chat templates: renders the conversation of a request with the jinja2 template of a model file.

The configuration is that of Hugging Face transformers, so that a file's template gives the text it was written to give.
The template is a stranger's program and the messages are a stranger's text: see `budget.py` and `sandbox.py` for what
bounds the first, `text.py` for why the second never becomes a control token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sterna.chat.budget import (
    MAX_COMPILE_SECONDS,
    MAX_OUTPUT_BYTES,
    MAX_SOURCE_CHARS,
    Budget,
    OverBudget,
    check_length,
    spend,
)
from sterna.chat.messages import Forms, Reader
from sterna.chat.source import FoundTemplate, find_template
from sterna.chat.text import concat, spans, trusted
from sterna.errors import ArgumentError, TemplateError

if TYPE_CHECKING:
    import jinja2

T = TypeVar("T")

_CODE_NAME = "<chat template>"
_ENGINE_NAMES = frozenset(
    (
        *("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "loop", "self", "super", "caller"),
        *("varargs", "kwargs", "cycler", "dict", "joiner", "namespace", "raise_exception", "range", "strftime_now"),
    )
)


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation. `spans` are its parts in order: (text, whether the template wrote it)."""

    text: str
    spans: list[tuple[str, bool]] = field(repr=False)

    @property
    def opens_reasoning(self) -> bool:
        """Whether the text ends with a `<think>` that the template wrote: the model's answer begins inside it."""
        for text, is_trusted in reversed(self.spans):
            stripped = text.rstrip()
            if stripped:
                return is_trusted and stripped.endswith("<think>")
        return False


class ChatTemplate:
    """A template, compiled when it is first used. May be shared by threads.

    `bos_token`, `eos_token` and `special_tokens` (other names that the template may use, such as `pad_token`) are texts
    of the model's own control tokens. `template_source` says where the template came from: "file", "argument" or
    "default (ChatML)". Raises `TemplateError` if `source` is too long.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "chat template",
        special_tokens: Mapping[str, str] | None = None,
        template_source: str = "argument",
    ) -> None:
        if not isinstance(source, str):
            raise TemplateError(f"{name}: expected text, not {type(source).__name__}")
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"{name}: {len(source)} characters, more than {MAX_SOURCE_CHARS}")
        self.source = source
        self.name = name
        self.template_source = template_source
        self._tokens = {**(special_tokens or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._lock = threading.Lock()
        self._compiled: jinja2.Template | None = None
        self._forms: Forms | None = None

    def render(
        self,
        /,
        messages: object,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **template_kwargs: Any,
    ) -> Rendered:
        """The text of a conversation, with the origin of every part.

        `messages` is a str (one user message) or a list of OpenAI messages or `Message`s. The arguments of tool calls
        may be dicts or JSON text; the template gets a dict unless it can only print text. `now` is what `strftime_now`
        shows. `template_kwargs` add names for the template. Raises `ArgumentError` for what is wrong with the request,
        naming its place, and `TemplateError` for what the template raises, cannot do, or needs too much of.
        """
        for key in template_kwargs:
            if key in _ENGINE_NAMES or key in self._tokens or key.startswith("_"):
                raise ArgumentError(f"template argument {key!r}: the name is the engine's own")
        return self._guarded(
            lambda: self._render(
                self._learn_forms(), Budget(), messages, tools, add_generation_prompt, now, template_kwargs
            )
        )

    def check(self) -> None:
        """Compiles the template and renders a probe, so that a broken one is found before a request needs it."""
        self._guarded(self._learn_forms)

    def _render(
        self,
        forms: Forms,
        budget: Budget,
        messages: object,
        tools: object = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Rendered:
        from sterna.chat.callables import strftime_now

        template = self._template()
        with spend(budget):
            reader = Reader(forms)
            values: dict[str, Any] = {"documents": None}
            values |= {key: reader.value(value, key) for key, value in (template_kwargs or {}).items()}
            values |= {key: trusted(text) for key, text in self._tokens.items()}
            values["messages"] = reader.messages(messages)
            values["tools"] = reader.tools(tools)
            values["add_generation_prompt"] = bool(add_generation_prompt)
            values["strftime_now"] = strftime_now(now)
            text = concat(_bounded(template.root_render_func(template.new_context(values))))
            if len(text) * 4 > MAX_OUTPUT_BYTES and not text.isascii():
                check_length(len(text.encode()))
            return Rendered(str.__str__(text), spans(text))

    def _template(self, budget: Budget | None = None) -> jinja2.Template:
        with self._lock:
            if self._compiled is None:
                from sterna.chat.callables import FILTERS, FUNCTIONS, TESTS
                from sterna.chat.sandbox import ChatEnvironment

                environment = ChatEnvironment(FILTERS, TESTS, FUNCTIONS)
                with spend(budget or Budget(MAX_COMPILE_SECONDS)):
                    code = environment.compile(self.source, filename=_CODE_NAME)
                self._compiled = environment.template_class.from_code(environment, code, environment.globals)
            return self._compiled

    def _learn_forms(self) -> Forms:
        """Compiles, and renders probes on one account, to find out how the template wants its values."""
        if self._forms is None:
            import sterna.chat.callables  # noqa: F401 (takes a while the first time, which is not the template's)

            compiling = Budget(MAX_COMPILE_SECONDS)
            self._template(compiling)
            budget = compiling.following()

            def shows(forms: Forms, content: object) -> bool:
                """Whether the template prints a content as text, and not as a Python list."""
                rendered = self._attempt(forms, budget, [{"role": "user", "content": content}])
                return rendered is not None and _PROBE in rendered.text and "'type': 'text'" not in rendered.text

            self._forms = Forms(
                string_content=shows(Forms(), _PROBE) or not shows(Forms(string_content=False), _PROBE),
                content_parts=shows(Forms(content_parts=True), [{"type": "text", "text": _PROBE}]),
                json_arguments=self._wants_json(budget),
            )
        return self._forms

    def _wants_json(self, budget: Budget) -> bool:
        """Whether the template fails on tool calls with a dict of arguments, but not on those with JSON text."""
        call = {"id": "call00000", "type": "function", "function": {"name": _PROBE, "arguments": {"x": 1}}}
        for content in ("", None):
            messages = [
                {"role": "user", "content": _PROBE},
                {"role": "assistant", "content": content, "tool_calls": [call]},
            ]
            if self._attempt(Forms(), budget, messages) is None:
                return self._attempt(Forms(json_arguments=True), budget, messages) is not None
        return False

    def _attempt(self, forms: Forms, budget: Budget, messages: object) -> Rendered | None:
        """What a probe renders to; None if the template raises, which it may do for good reasons."""
        try:
            return self._render(forms, budget, messages)
        except (OverBudget, MemoryError):
            raise
        except Exception:
            return None

    def _guarded(self, work: Callable[[], T]) -> T:
        """Runs `work`; whatever a template can make happen becomes `TemplateError` with the line."""
        try:
            return work()
        except (ArgumentError, TemplateError):
            raise
        except Exception as error:
            explanation = self._explain(error)
        # Raised out here, so that the error does not keep the frames of the rendering alive.
        raise TemplateError(explanation)

    def _explain(self, error: Exception) -> str:
        import jinja2

        line = self._line(error.__traceback__)
        if isinstance(error, RecursionError):
            message = "nested, or calling itself, too deeply"
        elif isinstance(error, MemoryError):
            message = "out of memory"
        elif isinstance(error, jinja2.TemplateError):
            message = error.message or type(error).__name__
            line = getattr(error, "lineno", line)
        else:
            message = str(error) or type(error).__name__
        return f"{self.name}, line {line}: {message}" if line else f"{self.name}: {message}"

    def _line(self, trace: TracebackType | None) -> int | None:
        """The line of the template where an error came from."""
        line = None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == _CODE_NAME and self._compiled is not None:
                line = self._compiled.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


_PROBE = "a55b0d1e4c"


def _bounded(pieces: Iterable[str]) -> list[str]:
    length = 0
    result = []
    for piece in pieces:
        length += len(piece)
        check_length(length)
        result.append(piece)
    return result


def choose_template(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a model file (`find_template`), ready to be used; None if there is none."""
    found = find_template(metadata)
    return None if found is None else make_template(found)


def make_template(found: FoundTemplate) -> ChatTemplate:
    """What `find_template` found, ready to be used."""
    more = {name: text for name, text in found.tokens.items() if name not in ("bos_token", "eos_token")}
    return ChatTemplate(
        found.text,
        bos_token=found.tokens["bos_token"],
        eos_token=found.tokens["eos_token"],
        special_tokens=more,
        template_source=found.source,
    )

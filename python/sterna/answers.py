"""Answers of a chat: a request's text told apart into reasoning, content and tool calls as it is generated."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sterna.chat import Message, OutputSplitter
from sterna.generation import Request
from sterna.results import ChatEvent, Completion

if TYPE_CHECKING:
    from sterna._core import Event

# Told how an answer ended: the message, or None where an error came before the end.
OnEnd = Callable[[Message | None], None]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as tokens, and what they mean for the answer: begun reasoning, calls of tools."""

    tokens: list[int]
    opens_reasoning: bool
    tools: bool


class Answer:
    """One answer as far as its request's events have been fed to it. `on_end` is called once."""

    def __init__(self, request: Request, prompt: ChatPrompt, on_end: OnEnd | None = None) -> None:
        self.request = request
        self.finished = False
        self._splitter = OutputSplitter(reasoning_open=prompt.opens_reasoning, tools=prompt.tools)
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._on_end = on_end

    def feed(self, event: Event) -> list[ChatEvent]:
        """What the event brings; the request's last one brings the calls of tools and the end."""
        pieces = list(self._splitter.feed(event.text))
        if event.finish_reason is not None:
            pieces += self._splitter.finish()
        events = []
        for piece in pieces:
            (self._content if piece.kind == "content" else self._reasoning).append(piece.text)
            events.append(ChatEvent(piece.kind, piece.text))
        if event.finish_reason is not None:
            events += [ChatEvent("tool_call", tool_call=call) for call in self._splitter.tool_calls]
            message = self.message
            events.append(ChatEvent("end", message=message))
            self.end(message)
        return events

    @property
    def message(self) -> Message:
        """What has arrived so far."""
        completion = self.request.completion()
        calls = self._splitter.tool_calls
        reason = "tool_calls" if calls and completion.finish_reason == "stop" else completion.finish_reason
        return Message(
            content="".join(self._content),
            reasoning="".join(self._reasoning) or None,
            tool_calls=list(calls),
            finish_reason=reason,
            usage=completion.usage,
        )

    @property
    def awaited(self) -> bool:
        """Whether somebody is still to be told of the end."""
        return self._on_end is not None

    def end(self, message: Message | None) -> None:
        """Tells who wants to know that nothing more comes; None where an error came instead."""
        self.finished = True
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(message)


class ChatStream(Iterator[ChatEvent]):
    """The events of one answer; the last one is of kind "end" and has the message.

    Leaving the loop and letting go of the stream cancels the answer, as do `close()` and the end of a `with` block.
    `message` is what has arrived so far, and after the end the whole answer.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._request = answer.request
        # No generator: it would refer to this object, which then outlived the loop that was left.
        self._ready: deque[ChatEvent] = deque()

    def __next__(self) -> ChatEvent:
        while not self._ready:
            if self._answer.finished:
                raise StopIteration
            self._advance()
        return self._ready.popleft()

    @property
    def message(self) -> Message:
        return self._answer.message

    @property
    def completion(self) -> Completion:
        """The request behind the answer: raw text, tokens, timings, seed."""
        return self._request.completion()

    def close(self) -> None:
        """Cancels what is left; text that had arrived and was not read yet still counts."""
        if self._answer.finished:
            return
        try:
            self._request.cancel()
            self._answer.end(self.message)
        except BaseException:
            self._answer.end(None)
            raise

    def wait(self) -> Message:
        """The whole answer."""
        for _ in self:
            pass
        return self.message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The loop was left before its end. An error that this brings could reach nobody.
        if self._answer.awaited:
            with contextlib.suppress(Exception):
                self.close()

    def _advance(self) -> None:
        try:
            event = self._request.next()
        except KeyboardInterrupt:
            self.close()
            raise
        except BaseException:
            self._answer.end(None)
            raise
        if event is None:
            self._answer.finished = True
            return
        self._ready += self._answer.feed(event)

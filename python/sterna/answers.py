"""Answers of a chat: a request's text told apart into reasoning, content and tool calls as it is generated."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from sterna.chat import Message, OutputSplitter
from sterna.generation import Request
from sterna.results import ChatEvent, Completion

# Told how an answer ended: the message, or None where an error came before the end.
OnEnd = Callable[[Message | None], None]


class ChatStream(Iterator[ChatEvent]):
    """The events of one answer; the last one is of kind "end" and has the message.

    Leaving the loop and letting go of the stream cancels the answer, as do `close()` and the end of a `with` block.
    `message` is what has arrived so far, and after the end the whole answer.
    """

    def __init__(self, request: Request, *, reasoning_open: bool, tools: bool, on_end: OnEnd | None = None) -> None:
        self._request = request
        self._splitter = OutputSplitter(reasoning_open=reasoning_open, tools=tools)
        # No generator: it would refer to this object, which then outlived the loop that was left.
        self._ready: deque[ChatEvent] = deque()
        self._finished = False
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._on_end = on_end

    def __next__(self) -> ChatEvent:
        while not self._ready:
            if self._finished:
                raise StopIteration
            self._advance()
        return self._ready.popleft()

    @property
    def message(self) -> Message:
        completion = self._request.completion()
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
    def completion(self) -> Completion:
        """The request behind the answer: raw text, tokens, timings, seed."""
        return self._request.completion()

    def close(self) -> None:
        """Cancels what is left; text that had arrived and was not read yet still counts."""
        if self._finished:
            return
        try:
            self._request.cancel()
            self._end(self.message)
        except BaseException:
            self._end(None)
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
        if getattr(self, "_on_end", None) is not None:
            with contextlib.suppress(Exception):
                self.close()

    def _advance(self) -> None:
        try:
            event = self._request.next()
        except KeyboardInterrupt:
            self.close()
            raise
        except BaseException:
            self._end(None)
            raise
        if event is None:
            self._finished = True
            return
        pieces = list(self._splitter.feed(event.text))
        if event.finish_reason is not None:
            pieces += self._splitter.finish()
        for piece in pieces:
            (self._content if piece.kind == "content" else self._reasoning).append(piece.text)
            self._ready.append(ChatEvent(piece.kind, piece.text))
        if event.finish_reason is not None:
            self._ready += [ChatEvent("tool_call", tool_call=call) for call in self._splitter.tool_calls]
            message = self.message
            self._ready.append(ChatEvent("end", message=message))
            self._end(message)

    def _end(self, message: Message | None) -> None:
        self._finished = True
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(message)

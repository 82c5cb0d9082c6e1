"""Requests under way: waiting for events, gathering them into results, cancelling what nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sterna.results import Completion, TextPiece, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from sterna._core import Event, RequestHandle


class Request:
    """One request under way. Its events are taken by one thread at a time; anyone may cancel it."""

    def __init__(
        self,
        handle: RequestHandle,
        *,
        prompt: list[int],
        rows: int = 0,
        seed: int,
        logprobs: bool,
        on_end: Callable[[list[int]], None] | None = None,
    ) -> None:
        """`rows` that are no tokens stand before the prompt.

        `on_end` is told all tokens, the prompt's and the text's, when the final event was taken.
        """
        self.handle = handle
        self._prompt = prompt
        self._num_prompt = rows + len(prompt)
        self._on_end = on_end
        self._seed = seed
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self._stopped_by: int | str | None = None
        self.finish_reason: str | None = None

    def next(self) -> Event | None:
        """The next event, waited for; None after the final one. Raises the request's error; Ctrl-C interrupts it."""
        if self.finish_reason is not None:
            return None
        event = self.handle.next()
        if event is not None:
            self.take(event)
        return event

    def wait(self) -> Completion:
        """Takes all events that are left."""
        if self.finish_reason is None:
            for event in self.handle.events():
                self.take(event)
        return self.completion()

    def cancel(self) -> None:
        """Ends the request within one step, and waits until it has ended."""
        if self.finish_reason is None:
            self.handle.cancel()
            self.wait()

    @property
    def wants_logprobs(self) -> bool:
        return self._logprobs is not None

    def completion(self) -> Completion:
        """What has arrived so far."""
        t = self.handle.timings
        timings = Timings(
            t.queue_seconds,
            t.prefill_seconds,
            t.decode_seconds,
            t.prompt_tokens or self._num_prompt,
            t.cached_tokens,
            t.generated_tokens,
            t.draft_tokens,
            t.accepted_tokens,
        )
        return Completion(
            text="".join(self._texts),
            tokens=list(self._tokens),
            finish_reason=self.finish_reason or "cancelled",
            usage=Usage(self._num_prompt, len(self._tokens), t.cached_tokens),
            timings=timings,
            seed=self._seed,
            logprobs=None if self._logprobs is None else list(self._logprobs),
            stopped_by=self._stopped_by,
        )

    def take(self, event: Event) -> None:
        """Adds an event to what has arrived."""
        self._texts.append(event.text)
        if event.token is not None:
            self._tokens.append(event.token)
            if self._logprobs is not None:
                self._logprobs.append(logprob_of(event))
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            self._stopped_by = event.stop
            if self._on_end is not None:
                self._on_end([*self._prompt, *self._tokens])


def logprob_of(event: Event) -> TokenLogprob:
    """The log-probabilities of a token event of a request that asked for them."""
    assert event.token is not None
    assert event.logprob is not None
    return TokenLogprob(event.token, event.logprob, tuple(event.top_logprobs))


def wait_all(requests: Sequence[Request]) -> list[Completion]:
    """The results of requests that run together; when one fails or Ctrl-C comes, all are cancelled."""
    try:
        return [request.wait() for request in requests]
    except BaseException:
        for request in requests:
            request.handle.cancel()
        raise


class TextPieces:
    """Makes the pieces of a text of a request's events."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def feed(self, event: Event) -> list[TextPiece]:
        """The piece that is complete with this event, if any: a token that completes no character waits for one."""
        if event.token is not None:
            self._tokens.append(event.token)
            if self.request.wants_logprobs:
                self._logprobs.append(logprob_of(event))
        if not event.text and event.finish_reason is None:
            return []
        piece = TextPiece(event.text, tuple(self._tokens), tuple(self._logprobs), event.finish_reason)
        self._tokens.clear()
        self._logprobs.clear()
        return [piece]


class TextStream(Iterator[TextPiece]):
    """The text of one request as it is generated.

    Leaving the loop and letting go of the stream cancels the request, as do `close()` and the end of a `with` block.
    `completion` is what has arrived so far, and after the end the whole result.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._pieces = TextPieces(request)

    def __next__(self) -> TextPiece:
        while (event := self._next_event()) is not None:
            for piece in self._pieces.feed(event):
                return piece
        raise StopIteration

    def _next_event(self) -> Event | None:
        try:
            return self._request.next()
        except KeyboardInterrupt:
            self._request.cancel()
            raise

    @property
    def completion(self) -> Completion:
        return self._request.completion()

    def close(self) -> None:
        """Cancels what is left."""
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Requests under way on event loops: the core wakes a loop through a descriptor, and no thread stands in between."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from sterna.answers import Answer
from sterna.errors import QueueFullError, SternaError
from sterna.generation import Request, TextPieces
from sterna.results import ChatEvent, Completion, TextPiece

if TYPE_CHECKING:
    from sterna._core import Event
    from sterna.chat import Message

_T = TypeVar("_T")


class Bridge:
    """Wakes the requests of one event loop. It lives as long as the loop; the loop's end cancels what still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from sterna._core import Notifier

        # The loop owns this object, not the other way round.
        self._loop = weakref.ref(loop)
        self._process = os.getpid()
        self._notifier = Notifier()
        self._numbers = itertools.count()
        self._requests: weakref.WeakValueDictionary[int, AsyncRequest] = weakref.WeakValueDictionary()
        # The loop keeps the context of this call: not the one of whoever happens to ask first.
        contextvars.Context().run(loop.add_reader, self._notifier.fileno(), _Reader(self))

    def add(self, request: AsyncRequest, *, only_end: bool) -> None:
        number = next(self._numbers)
        self._requests[number] = request
        request.request.handle.notify(self._notifier, number, only_end)

    def future(self) -> asyncio.Future[None]:
        """To be waited for on the loop that runs now, which must be this one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop():
            raise SternaError("a request is awaited on the event loop that it was begun on, not on another one")
        return loop.create_future()

    def deliver(self) -> None:
        for number in self._notifier.take():
            request = self._requests.get(number)
            if request is not None:
                request.wake()

    def close(self) -> None:
        """The loop is gone: ends what nobody can wait for any more, and lets go of the descriptors."""
        # A forked child has copies of the loop and the requests, which are none of its business.
        if os.getpid() == self._process:
            for request in list(self._requests.values()):
                request.cancel()
        del self._notifier


class _Reader:
    """What a loop calls when the descriptor is readable. Only the loop has it, so it goes when the loop is closed."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self) -> None:
        self._bridge.deliver()

    def __del__(self) -> None:
        self._bridge.close()


# Each loop is looked up by its own thread alone.
_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bridge] = weakref.WeakKeyDictionary()


def _bridge() -> Bridge:
    loop = asyncio.get_running_loop()
    bridge = _bridges.get(loop)
    if bridge is None:
        bridge = _bridges[loop] = Bridge(loop)
    return bridge


class AsyncRequest:
    """A request whose events are awaited, on the loop that made this object. Letting go of it cancels the request.

    With `only_end` the loop is woken once, at the end, and not for every token.
    """

    def __init__(self, request: Request, *, only_end: bool = False) -> None:
        self.request = request
        self._events: deque[Event] = deque()
        self._failed = False
        self._waiting: list[asyncio.Future[None]] = []
        self._bridge = _bridge()
        self._bridge.add(self, only_end=only_end)

    async def next(self) -> Event | None:
        """The next event; None after the final one. Raises the request's error; being cancelled cancels the request."""
        while not self._events:
            if self._failed or self.request.finish_reason is not None:
                return None
            self._events.extend(self._ready())
            if not self._events:
                await self._news()
        event = self._events.popleft()
        self.request.take(event)
        return event

    async def wait(self) -> Completion:
        """Takes all events that are left."""
        while await self.next() is not None:
            pass
        return self.request.completion()

    def cancel(self) -> None:
        """Ends the request within one step; the final event tells when it has ended."""
        # The error of a forked child, whose copy of the request is none of its business.
        with contextlib.suppress(SternaError):
            self.request.handle.cancel()

    def wake(self) -> None:
        """There is something to take."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _ready(self) -> list[Event]:
        try:
            return self.request.handle.ready()
        except BaseException:
            self._failed = True
            raise

    async def _news(self) -> None:
        future = self._bridge.future()
        self._waiting.append(future)
        try:
            await future
        except BaseException:
            self.cancel()
            raise


async def submitted(submissions: Iterable[Callable[[], Request]]) -> list[AsyncRequest]:
    """As `request_options.submitted`: a list may be longer than the queue."""
    requests: list[AsyncRequest] = []
    ended = 0
    try:
        for submit in submissions:
            while True:
                try:
                    requests.append(AsyncRequest(submit(), only_end=True))
                    break
                except QueueFullError:
                    if ended == len(requests):
                        raise
                    await requests[ended].wait()
                    ended += 1
    except BaseException:
        for request in requests:
            request.cancel()
        raise
    return requests


async def wait_all(requests: Sequence[AsyncRequest]) -> list[Completion]:
    """The results of requests that run together; when one fails or the task is cancelled, all are cancelled."""
    try:
        return [await request.wait() for request in requests]
    except BaseException:
        for request in requests:
            request.cancel()
        raise


class _Parts(Protocol[_T]):
    """What makes the parts of a stream of a request's events."""

    request: Request

    def feed(self, event: Event) -> list[_T]: ...


_P = TypeVar("_P", bound=_Parts[Any])


class _AsyncStream(AsyncIterator[_T], Generic[_T, _P]):
    """A request that begins with the first iteration, and what it brings.

    No generator: leaving the loop would end one only when the event loop comes round to it.
    """

    def __init__(self, begin: Callable[[], Awaitable[_P]], *, only_end: bool = False) -> None:
        self._begin: Callable[[], Awaitable[_P]] | None = begin
        self._beginning = asyncio.Lock()
        self._only_end = only_end
        self._parts: _P | None = None
        self._request: AsyncRequest | None = None
        self._ready: deque[_T] = deque()
        self._finished = False

    async def __anext__(self) -> _T:
        while not self._ready:
            if self._finished:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self._begun().__await__()
        return self

    async def aclose(self) -> None:
        """Cancels what is left, and waits until it has ended."""
        self._begin = None
        self._ready.clear()
        if self._finished:
            return
        self._finished = True
        if self._request is None:
            return
        try:
            self._request.cancel()
            await self._request.wait()
        except BaseException as error:
            self._ended(error)
            raise
        self._ended(None)

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def completion(self) -> Completion:
        """The request behind: raw text, tokens, timings, seed; what has arrived so far. SternaError before it began."""
        return self._made().request.completion()

    def _made(self) -> _P:
        if self._parts is None:
            raise SternaError("the stream has not begun: await it, or iterate over it")
        return self._parts

    async def _begun(self) -> AsyncRequest | None:
        """The request, made now if nobody has asked for it yet; None when the stream was closed before."""
        if self._request is None:
            async with self._beginning:
                if self._request is None and self._begin is not None:
                    try:
                        parts = await self._begin()
                        if self._begin is not None:  # not closed meanwhile
                            self._request = AsyncRequest(parts.request, only_end=self._only_end)
                            self._parts = parts
                    except BaseException:
                        self._finished = True
                        raise
                    finally:
                        self._begin = None
        return self._request

    async def _advance(self) -> None:
        try:
            request = await self._begun()
            event = None if request is None else await request.next()
        except BaseException as error:
            self._finished = True
            self._ended(error)
            raise
        if event is None:
            self._finished = True
        else:
            self._ready += self._made().feed(event)

    def _ended(self, error: BaseException | None) -> None:
        """Called at an end that no event told."""


class AsyncTextStream(_AsyncStream[TextPiece, TextPieces]):
    """The text of one request as it is generated, for `async for`.

    The request begins with the first iteration, `await stream` or `async with stream`, and raises its errors there.
    Leaving the loop and letting go of the stream cancels the request, as do `aclose()`, the end of an `async with`
    block and the cancellation of a task that waits for a piece.
    """


class AsyncChatStream(_AsyncStream[ChatEvent, Answer]):
    """The events of one answer, for `async for`; the last one is of kind "end" and has the message.

    The request begins with the first iteration, `await stream` or `async with stream`, and raises its errors there.
    Leaving the loop and letting go of the stream cancels the answer, as do `aclose()`, the end of an `async with` block
    and the cancellation of a task that waits for an event.
    """

    @property
    def message(self) -> Message:
        """What has arrived so far, and after the end the whole answer. SternaError before it began."""
        return self._made().message

    async def wait(self) -> Message:
        """The whole answer."""
        async for _ in self:
            pass
        return self.message

    def abandon(self) -> None:
        """Cancels what is left, and does not wait until it has ended."""
        self._begin = None
        self._finished = True
        if self._request is not None:
            self._request.cancel()
        self._ended(None)

    def _ended(self, error: BaseException | None) -> None:
        if self._parts is not None:
            left = error is None or isinstance(error, asyncio.CancelledError | GeneratorExit)
            self._parts.end(self._parts.message if left else None)

    def __del__(self) -> None:
        # The loop was left before its end. An error that this brings could reach nobody.
        if self._parts is not None and self._parts.awaited:
            with contextlib.suppress(Exception):
                self.abandon()

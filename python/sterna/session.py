"""`Session`: a conversation whose earlier turns stay in the KV cache, and that can be forked, saved and read back."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

from sterna.answers import ChatStream
from sterna.arguments import GENERATE_ALIASES, keyword_arguments
from sterna.chat import Message
from sterna.chat.messages import Forms, Reader
from sterna.errors import ArgumentError, ContextOverflowError, SternaError, TemplateError
from sterna.request_options import REQUEST_OPTION_NAMES, RequestOptions
from sterna.sampling import Sampling
from sterna.session_file import SessionHeader, open_session, write_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import Engine
    from sterna.aio import AsyncChatStream
    from sterna.answers import Answer, ChatPrompt
    from sterna.llm import LLM, Tools

# Pages of the KV cache that are copied at once.
_PART_PAGES = 8

_generate_arguments = keyword_arguments(GENERATE_ALIASES, REQUEST_OPTION_NAMES)


class Session:
    """A conversation with one model, made by `LLM.session`. One thread at a time may use it.

    A turn that fails or is interrupted leaves the conversation as it was; a streamed answer that is left early stays in
    it as far as it came. A new message ends an answer that is still being streamed.
    """

    def __init__(self, llm: LLM, system: str | None = None, *, messages: Sequence[Mapping[str, Any]] = ()) -> None:
        if system is not None and not isinstance(system, str):
            raise ArgumentError(f"system is {type(system).__name__}, must be a str")
        first = [] if system is None else [{"role": "system", "content": system}]
        self._llm = llm
        self._messages: list[dict[str, Any]] = [*first, *_checked(messages)]
        self._turn = threading.Lock()
        self._streaming: weakref.ref[ChatStream] | weakref.ref[AsyncChatStream] | None = None
        self._awaited = False

    @property
    def messages(self) -> list[dict[str, Any]]:
        """A copy of the turns so far."""
        return copy.deepcopy(self._messages)

    @overload
    def send(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Message: ...
    @overload
    def send(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatStream: ...
    @_generate_arguments
    def send(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Message | ChatStream:
        """The answer to a str, a message, or several (tool results); with `stream` as events like those of `LLM.chat`.

        ContextOverflowError when the conversation has become too long; TemplateError, ArgumentError.
        """
        new = _turn(message)
        with self._turn:
            self._begin_turn()
            prompt = self._llm._chat_prompt([*self._messages, *new], tools, template_kwargs)
            answer = ChatStream(self._answer(prompt, new, stream, max_tokens, sampling, options))
            if stream:
                self._streaming = weakref.ref(answer)
                return answer
            return answer.wait()

    def stream(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatStream:
        """`send(..., stream=True)`."""
        return self.send(
            message,
            stream=True,
            tools=tools,
            max_tokens=max_tokens,
            sampling=sampling,
            template_kwargs=template_kwargs,
            **options,
        )

    @overload
    def asend(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Coroutine[Any, Any, Message]: ...
    @overload
    def asend(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncChatStream: ...
    @_generate_arguments
    def asend(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Coroutine[Any, Any, Message] | AsyncChatStream:
        """`send` for event loops: to be awaited, or with `stream` for `async for`, as `LLM.achat`.

        SternaError while another answer of the session is awaited: a turn builds on the one before it. An answer with
        `stream` that is cancelled stays in the conversation as far as it came; one without leaves it as it was.
        """
        from sterna.aio import AsyncChatStream
        from sterna.async_methods import in_thread_if, long_chat

        async def begin() -> Answer:
            new = _turn(message)
            messages = [*self._messages, *new]
            prompt = await in_thread_if(
                long_chat(self._llm, messages, tools), lambda: self._llm._chat_prompt(messages, tools, template_kwargs)
            )
            return self._answer(prompt, new, stream, max_tokens, sampling, options)

        async def begin_alone() -> Answer:
            with self._alone():
                self._streaming = reference
                return await begin()

        async def whole() -> Message:
            with self._alone():
                return await AsyncChatStream(begin, only_end=True).wait()

        if not stream:
            return whole()
        answer = AsyncChatStream(begin_alone)
        reference = weakref.ref(answer)  # not the answer itself, which would then outlive the loop that was left
        return answer

    def fork(self) -> Session:
        """A second conversation with the same turns so far; what both have in common is computed and held once."""
        with self._turn:
            self._begin_turn()
            return Session(self._llm, messages=self._messages)

    def save(self, path: str | Path) -> None:
        """Writes the turns, and what the KV cache has of them, so that it need not be computed again. FileError."""
        info, engine = self._llm.info, self._llm.engine
        with self._turn:
            self._begin_turn()
            messages = list(self._messages)
        tokens: list[int] = []
        # Without a template, or with one that wants another turn: the turns alone.
        with contextlib.suppress(TemplateError, ContextOverflowError):
            tokens = self._llm._chat_prompt(messages, None, {}, add_generation_prompt=False).tokens if messages else []
        count = engine.cached_pages(tokens) if tokens else 0
        while True:
            header = SessionHeader(
                info.name, info.fingerprint, messages, tokens, engine.kv_layout, engine.page_bytes, count
            )
            try:
                return write_session(path, header, _exported(engine, tokens, count))
            except ArgumentError:
                # Others may have needed the room of some pages meanwhile.
                left = engine.cached_pages(tokens) if tokens else 0
                if left >= count:
                    raise
                count = left

    @classmethod
    def load(cls, llm: LLM, path: str | Path) -> Session:
        """A conversation that was saved. FileError; ArgumentError for a file that is none, or of another model.

        Turns that the file has no KV of, or of another `kv_dtype`, are computed when the next message is sent.
        """
        engine = llm.engine
        with open_session(path, model_name=llm.info.name, fingerprint=llm.info.fingerprint) as saved:
            try:
                session = cls(llm, messages=saved.header.messages)
            except ArgumentError as error:
                raise ArgumentError(f"{path}: {error}") from None
            tokens = saved.header.tokens
            if any(token >= llm.info.vocab_size for token in tokens):
                raise ArgumentError(f"{path}: tokens that are not in the vocabulary of {llm.info.vocab_size}")
            pages = saved.pages(engine.kv_layout, engine.page_bytes)
            first = 0
            while part := list(itertools.islice(pages, _PART_PAGES)):
                reached = engine.import_pages(list(tokens), first, part)
                if reached < first + len(part):
                    break  # no room for more
                first = reached
        return session

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: use fork(), or save() and Session.load()")

    def _answer(
        self,
        prompt: ChatPrompt,
        new: list[dict[str, Any]],
        stream: bool,
        max_tokens: int | None,
        sampling: Sampling | None,
        options: Mapping[str, Any],
    ) -> Answer:
        kept = len(self._messages)

        def end(answer: Message | None) -> None:
            if answer is None or (answer.finish_reason == "cancelled" and not (stream and str(answer))):
                return
            self._messages[kept:] = [*new, answer.to_dict()]

        return self._llm._answer(prompt, max_tokens=max_tokens, sampling=sampling, options=options, on_end=end)

    def _begin_turn(self) -> None:
        """Ends an answer that is still being streamed. SternaError while one is awaited as a whole."""
        if self._awaited:
            raise SternaError("another answer of this session is awaited: one turn follows the other")
        answer = self._streaming() if self._streaming is not None else None
        self._streaming = None
        if isinstance(answer, ChatStream):
            answer.close()
        elif answer is not None:
            answer.abandon()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """For what is awaited. Holds no lock meanwhile: a `send` on the same event loop would wait for it for ever."""
        if not self._turn.acquire(blocking=False):
            raise SternaError("another thread is using this session: one turn follows the other")
        try:
            self._begin_turn()
            self._awaited = True
        finally:
            self._turn.release()
        try:
            yield
        finally:
            self._awaited = False


def _exported(engine: Engine, tokens: list[int], count: int) -> Iterator[npt.NDArray[np.uint8]]:
    for first in range(0, count, _PART_PAGES):
        yield from engine.export_pages(tokens, first, min(_PART_PAGES, count - first))


def _turn(message: object) -> list[dict[str, Any]]:
    """What somebody sends, as messages. ArgumentError."""
    if isinstance(message, str):
        return _checked([{"role": "user", "content": message}])
    return _checked(list(message) if isinstance(message, Sequence) and not isinstance(message, bytes) else [message])


def _checked(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Copies of messages that a template can be given. ArgumentError names the place of what is wrong."""
    plain = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    Reader(Forms()).messages(plain)
    return [copy.deepcopy(dict(message)) for message in plain]

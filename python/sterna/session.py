"""`Session`: a conversation whose earlier turns stay in the KV cache, and that can be forked, saved and read back."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

from sterna.answers import ChatStream
from sterna.arguments import GENERATE_ALIASES, keyword_arguments
from sterna.chat import Message
from sterna.chat.messages import Forms, Reader
from sterna.errors import ArgumentError, FileError, SternaError
from sterna.sampling import OPTION_NAMES, Sampling, SamplingOptions

if TYPE_CHECKING:
    from sterna.aio import AsyncChatStream
    from sterna.answers import Answer, ChatPrompt
    from sterna.llm import LLM, Tools

_FORMAT, _VERSION = "sterna-session", 1
_MAX_FILE_BYTES = 64 << 20

_generate_arguments = keyword_arguments(GENERATE_ALIASES, OPTION_NAMES)


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
        **options: Unpack[SamplingOptions],
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
        **options: Unpack[SamplingOptions],
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
        **options: Unpack[SamplingOptions],
    ) -> Message | ChatStream:
        """The answer to a str, a message, or several (tool results); with `stream` as events like those of `LLM.chat`.

        ContextOverflowError when the conversation has become too long; TemplateError, ArgumentError.
        """
        new = _turn(message)
        with self._turn:
            self._begin_turn()
            prompt = self._llm._chat_prompt([*self._messages, *new], tools, template_kwargs)
            merged = self._llm._merged(sampling, options)
            answer = ChatStream(self._answer(prompt, new, stream, max_tokens, merged))
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
        **options: Unpack[SamplingOptions],
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
        **options: Unpack[SamplingOptions],
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
        **options: Unpack[SamplingOptions],
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
        **options: Unpack[SamplingOptions],
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
                long_chat(messages, tools), lambda: self._llm._chat_prompt(messages, tools, template_kwargs)
            )
            return self._answer(prompt, new, stream, max_tokens, self._llm._merged(sampling, options))

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
        """Writes the turns as JSON, with the model's fingerprint. FileError."""
        model = {"name": self._llm.info.name, "fingerprint": self._llm.info.fingerprint}
        data = {"format": _FORMAT, "version": _VERSION, "model": model, "messages": self._messages}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        target = Path(path)
        try:
            # Whoever reads the file meanwhile sees the old one or the new one.
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, target)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None

    @classmethod
    def load(cls, llm: LLM, path: str | Path) -> Session:
        """A conversation that was saved. FileError; ArgumentError for a file that is none, or of another model.

        Its turns are computed again when the next message is sent.
        """
        data = _read(Path(path))
        if data.get("format") != _FORMAT:
            raise ArgumentError(f"{path}: not a saved session")
        if data.get("version") != _VERSION:
            raise ArgumentError(f"{path}: format version {data.get('version')!r:.20} is not {_VERSION}")
        model = data.get("model")
        if not isinstance(model, dict) or model.get("fingerprint") != llm.info.fingerprint:
            name = model.get("name") if isinstance(model, dict) else None
            raise ArgumentError(f"{path}: a conversation with another model ({name!r:.80}), not {llm.info.name!r}")
        messages = data.get("messages")
        if not isinstance(messages, list):
            raise ArgumentError(f"{path}: messages is no list")
        try:
            return cls(llm, messages=messages)
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {error}") from None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: use fork(), or save() and Session.load()")

    def _answer(
        self, prompt: ChatPrompt, new: list[dict[str, Any]], stream: bool, max_tokens: int | None, sampling: Sampling
    ) -> Answer:
        kept = len(self._messages)

        def end(answer: Message | None) -> None:
            if answer is None or (answer.finish_reason == "cancelled" and not (stream and str(answer))):
                return
            self._messages[kept:] = [*new, answer.to_dict()]

        return self._llm._answer(prompt, max_tokens=max_tokens, sampling=sampling, on_end=end)

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


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", str(path), error.errno or 0) from None
    if len(text) > _MAX_FILE_BYTES:
        raise ArgumentError(f"{path}: longer than {_MAX_FILE_BYTES >> 20} MiB")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ArgumentError(f"{path}: not a saved session")
    return data

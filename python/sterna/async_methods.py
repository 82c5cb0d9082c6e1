"""The methods of `LLM` for event loops: agenerate, astream and achat, the counterparts of generate, stream and chat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from sterna.arguments import GENERATE_ALIASES, is_array, keyword_arguments
from sterna.request_options import REQUEST_OPTION_NAMES, RequestOptions
from sterna.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna.aio import AsyncChatStream, AsyncTextStream
    from sterna.answers import Answer
    from sterna.chat import Message
    from sterna.generation import TextPieces
    from sterna.llm import LLM, Messages, Tokens, Tools
    from sterna.results import Completion

_T = TypeVar("_T")

# Characters or tokens. More than this takes milliseconds to prepare, in which the loop should do something else.
_LONG = 16 << 10
_generate_arguments = keyword_arguments(GENERATE_ALIASES, REQUEST_OPTION_NAMES)


class AsyncMethods:
    """What an `LLM` does for a caller on an event loop. Any number of loops, in as many threads, may use one model.

    Cancelling a task that waits here cancels its request at once. Works on event loops that have `add_reader`.
    """

    @overload
    async def agenerate(
        self,
        prompt: str | list[int] | npt.NDArray[np.integer[Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...
    @overload
    async def agenerate(
        self,
        prompt: list[str] | list[list[int]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Completion]: ...
    @_generate_arguments
    async def agenerate(
        self,
        prompt: Any,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion | list[Completion]:
        """`generate`, to be awaited; errors are raised at the await."""
        from sterna.aio import submitted, wait_all

        llm = cast("LLM", self)
        prompts = llm._batch_of(prompt)
        tokens = await _tokens(llm, [prompt] if prompts is None else prompts)
        results = await wait_all(
            await submitted(partial(llm._submit, ids, max_tokens, sampling, options) for ids in tokens)
        )
        return results[0] if prompts is None else results

    @_generate_arguments
    def astream(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncTextStream:
        """`stream`, for `async for`. The request begins, and errors are raised, with the first iteration.

        To be sure that it ends with the loop that reads it: `async with llm.astream(...) as stream`.
        """
        from sterna.aio import AsyncTextStream
        from sterna.generation import TextPieces

        llm = cast("LLM", self)

        async def begin() -> TextPieces:
            tokens = await _tokens(llm, [prompt])
            return TextPieces(llm._submit(tokens[0], max_tokens, sampling, options))

        return AsyncTextStream(begin)

    @overload
    def achat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Coroutine[Any, Any, Message]: ...
    @overload
    def achat(
        self,
        messages: Messages,
        *,
        stream: Literal[True],
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncChatStream: ...
    @_generate_arguments
    def achat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Coroutine[Any, Any, Message] | AsyncChatStream:
        """`chat`, to be awaited; errors are raised at the await.

        With `stream` the result is for `async for` and `async with`, and has `aclose()`. It may be awaited first, which
        begins the request and raises its errors; otherwise the first iteration does.
        """
        from sterna.aio import AsyncChatStream

        llm = cast("LLM", self)

        async def begin() -> Answer:
            prompt = await in_thread_if(
                long_chat(llm, messages, tools), lambda: llm._chat_prompt(messages, tools, template_kwargs)
            )
            return llm._answer(prompt, max_tokens=max_tokens, sampling=sampling, options=options)

        return AsyncChatStream(begin) if stream else AsyncChatStream(begin, only_end=True).wait()


async def in_thread_if(long: bool, work: Callable[[], _T]) -> _T:
    """What `work` gives; in another thread where it would hold up the loop."""
    if not long:
        return work()
    import asyncio  # only where there is a loop: it takes long to import

    return await asyncio.to_thread(work)


def _tokens(llm: LLM, prompts: Sequence[Any]) -> Awaitable[list[list[int]]]:
    """The tokens of each prompt. All are checked before the first one is computed."""
    size = sum(len(prompt) for prompt in prompts if isinstance(prompt, Sequence) or is_array(prompt))
    long = size > _LONG or llm._prefix_cache is not None
    return in_thread_if(long, lambda: [llm._begun(prompt) for prompt in prompts])


def long_chat(llm: LLM, messages: Messages, tools: Tools | None) -> bool:
    """Whether a conversation takes long to render, to tokenise, or to be found in a folder; or could."""
    if llm._prefix_cache is not None:
        return True
    if isinstance(messages, str):
        return len(messages) > _LONG
    if tools or not isinstance(messages, Sequence):
        return True
    size = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else getattr(message, "content", None)
        if not isinstance(content, str):
            return True
        size += len(content)
    return size > _LONG

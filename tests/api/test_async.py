"""agenerate, astream and achat: the results and errors of their counterparts, many at a time, on many loops."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sterna
from async_runs import ENDLESS, GREEDY, idle, run
from sterna import ArgumentError, ContextOverflowError, SternaError

# The same results.


@pytest.mark.parametrize("options", [GREEDY, {"seed": 5, "temperature": 1.3, "logprobs": 2}])
def test_results_are_those_of_generate(llm: sterna.LLM, prompt: list[int], options: dict[str, Any]) -> None:
    expected = llm.generate(prompt, max_tokens=30, **options)
    found = run(llm.agenerate(prompt, max_tokens=30, **options))
    assert (found.text, found.tokens, found.logprobs) == (expected.text, expected.tokens, expected.logprobs)
    assert (found.finish_reason, found.usage, found.seed) == (expected.finish_reason, expected.usage, found.seed)
    assert found.timings.generated_tokens == len(found.tokens)


def test_a_list_gives_a_list(llm: sterna.LLM, prompt: list[int]) -> None:
    prompts = [prompt[:5], prompt, "ba da", np.array(prompt)]
    expected = [llm.generate(item, max_tokens=12, **GREEDY).tokens for item in prompts]
    found = run(llm.agenerate(prompts, max_tokens=12, **GREEDY))  # type: ignore[arg-type]
    assert [out.tokens for out in found] == expected
    assert run(llm.agenerate([])) == []


def test_the_stream_is_that_of_stream(llm: sterna.LLM, prompt: list[int]) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 11}

    async def main() -> None:
        stream = llm.astream(prompt, logprobs=2, **options)
        pieces = [piece async for piece in stream]
        assert stream.completion.tokens == expected.completion.tokens
        assert [p async for p in stream] == []
        for name in ("tokens", "logprobs", "finish_reason"):
            assert [getattr(p, name) for p in pieces] == [getattr(p, name) for p in expected_pieces]
        assert pieces == expected_pieces

    expected = llm.stream(prompt, logprobs=2, **options)
    expected_pieces = list(expected)
    assert len(expected_pieces) > 1
    run(main())


def test_chat_gives_message_and_events(llm: sterna.LLM) -> None:
    async def main() -> None:
        assert await llm.achat("ha", max_tokens=30, **GREEDY) == message
        stream = llm.achat("ha", stream=True, max_tokens=30, **GREEDY)
        assert [event async for event in stream] == events
        assert stream.message == message
        assert len(stream.completion.tokens) == 30
        awaited = await llm.achat([{"role": "user", "content": "ha"}], stream=True, max_tokens=30, **GREEDY)
        assert [event async for event in awaited] == events
        async with llm.achat("ha", stream=True, max_tokens=30, **GREEDY) as entered:
            assert await entered.wait() == message

    message = llm.chat("ha", max_tokens=30, **GREEDY)
    events = list(llm.chat("ha", stream=True, max_tokens=30, **GREEDY))
    run(main())


def test_long_texts_are_prepared_in_another_thread(long_llm: sterna.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[bool] = []
    encode = long_llm.tokenizer.encode_spans

    def watched(*args: Any, **kwargs: Any) -> list[int]:
        here.append(threading.current_thread() is threading.main_thread())
        return encode(*args, **kwargs)[:5]

    monkeypatch.setattr(long_llm.tokenizer, "encode_spans", watched)
    for text in ("ba", "ba " * 6000):
        here.clear()
        out = run(long_llm.agenerate([text, text], max_tokens=0))
        assert [one.usage.prompt_tokens for one in out] == [len(watched([(text, False)], add_special=True))] * 2
        run(long_llm.achat(text, max_tokens=0))
        run(long_llm.achat([{"role": "user", "content": text}], max_tokens=0))
        assert here == ([True] * 5 if text == "ba" else [False, False, True, False, False])


def test_many_at_a_time_on_one_loop(llm: sterna.LLM) -> None:
    prompts = [[5 + i, 7, 5 + i] for i in range(50)]

    async def main() -> None:
        before = len(os.listdir("/proc/self/task"))
        waiting = [asyncio.ensure_future(llm.agenerate(item, max_tokens=15, **GREEDY)) for item in prompts * 6]
        streams = [asyncio.ensure_future(collect(item)) for item in prompts]
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/task")) == before  # no thread for a request, nor for all of them
        assert [out.tokens for out in await asyncio.gather(*waiting)] == expected * 6
        assert await asyncio.gather(*streams) == expected

    async def collect(item: list[int]) -> list[int]:
        return [token async for piece in llm.astream(item, max_tokens=15, **GREEDY) for token in piece.tokens]

    expected = [out.tokens for out in llm.generate(prompts, max_tokens=15, **GREEDY)]
    run(main())


def test_loops_in_several_threads_meet_in_one_engine(llm: sterna.LLM) -> None:
    prompts = [[5 + i, 7] for i in range(20)]
    expected = [out.tokens for out in llm.generate(prompts, max_tokens=15, **GREEDY)]
    found: list[Any] = []
    start = threading.Barrier(4)

    async def main() -> list[list[int]]:
        start.wait(20)
        outs = await asyncio.gather(*(llm.agenerate(item, max_tokens=15, **GREEDY) for item in prompts))
        return [out.tokens for out in outs]

    threads = [threading.Thread(target=lambda: found.append(run(main()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 4


def test_a_request_stays_on_its_loop(llm: sterna.LLM) -> None:
    stream = llm.astream([5], **ENDLESS)

    async def one() -> Any:
        return await anext(stream)

    async def rest() -> int:
        return len([piece async for piece in stream])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(one())
    with pytest.raises(SternaError, match="event loop"):
        run(rest())
    loop.close()


# Errors.


def test_errors_are_raised_where_one_waits(llm: sterna.LLM) -> None:
    too_long = [5] * (llm.info.context + 1)
    bad: list[tuple[type[Exception], Any, dict[str, Any]]] = [
        (ContextOverflowError, too_long, {}),
        (ContextOverflowError, "ba " * 20_000, {}),
        (ArgumentError, [], {"max_tokens": 1}),
        (ArgumentError, 5, {}),
        (ArgumentError, [10**6], {}),
        (ArgumentError, [5], {"temperature": -1}),
        (ArgumentError, [5], {"max_tokens": -1}),
    ]

    async def main() -> None:
        for kind, prompt, options in bad:
            if prompt:
                waiting = llm.agenerate(prompt, **options)
                with pytest.raises(kind):
                    await waiting
            stream = llm.astream(prompt, **options)
            with pytest.raises(kind):
                await anext(stream)
            assert [piece async for piece in stream] == []
        waiting = llm.agenerate([[5], too_long], max_tokens=1)
        with pytest.raises(ContextOverflowError):
            await waiting
        for messages in (5, [5], [{"role": "user"}, {"content": object()}], "ba" * 10_000):
            with pytest.raises(SternaError):
                await llm.achat(messages)  # type: ignore[call-overload]
            with pytest.raises(SternaError):
                await llm.achat(messages, stream=True)  # type: ignore[call-overload]
        with pytest.raises(SternaError, match="not begun"):
            _ = llm.astream([5]).completion
        assert await idle(llm)

    run(main())
    # Names of arguments are checked by the call itself.
    for method in (llm.agenerate, llm.astream, llm.achat):
        with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
            method("x", max_token=3)  # type: ignore[operator]


def test_aliases_are_understood(llm: sterna.LLM) -> None:
    assert len(run(llm.agenerate([5], max_new_tokens=4, temp=0, ignore_eos=True)).tokens) == 4  # type: ignore[call-overload]


def test_closing_the_model_ends_what_is_awaited(tiny_path: Path) -> None:
    llm = sterna.load(tiny_path, context=100_000, chat_template="{{ messages[0].content }}")

    async def main() -> None:
        stream = llm.astream([5], **ENDLESS)
        await anext(stream)
        waiting = [asyncio.ensure_future(llm.agenerate([5], **ENDLESS)) for _ in range(3)]
        chat = asyncio.ensure_future(llm.achat("x", **ENDLESS))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(llm.close)
        for end in await asyncio.gather(*waiting, chat, return_exceptions=True):
            assert isinstance(end, SternaError) and "closed" in str(end)
        with pytest.raises(SternaError, match="closed"):
            async for _ in stream:
                pass
        assert [piece async for piece in stream] == []
        with pytest.raises(SternaError, match="closed"):
            await llm.agenerate([5])

    run(main())

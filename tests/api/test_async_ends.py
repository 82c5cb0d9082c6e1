"""How asynchronous requests end before their time: cancelled, left, with their loop, with Python; and what is left then."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import sterna
from async_runs import ENDLESS, GREEDY, idle, run
from sterna import ArgumentError, ContextOverflowError, SternaError


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_cancelling_a_task_cancels_its_request(long_llm: sterna.LLM) -> None:
    llm = long_llm

    async def main() -> None:
        works: list[Coroutine[Any, Any, Any]] = [
            llm.agenerate([5], **ENDLESS),
            llm.agenerate([[5], [6]], **ENDLESS),
            llm.agenerate([5] * 90_000, max_tokens=1),
            llm.achat("x", **ENDLESS),
            llm.achat("x", stream=True, **ENDLESS).wait(),
            all_of(llm.astream([5], **ENDLESS)),
        ]
        for work in works:
            task = asyncio.ensure_future(work)
            while not llm.engine.stats().running:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await idle(llm)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await llm.agenerate([5], **ENDLESS)
        assert await idle(llm)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_of(llm.astream([5], **ENDLESS)), 0.05)
        assert await idle(llm)

    async def all_of(stream: Any) -> list[Any]:
        return [part async for part in stream]

    run(main())
    assert len(llm.generate([5], max_tokens=3, **GREEDY).tokens) == 3


def test_an_error_in_a_task_group_cancels_the_others(long_llm: sterna.LLM) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(long_llm.agenerate([6], **ENDLESS))
            group.create_task(long_llm.agenerate([10**6]))

    with pytest.raises(ExceptionGroup) as found:
        run(main())
    assert found.group_contains(ArgumentError)
    assert run(idle(long_llm))


def test_leaving_a_stream_cancels_it(long_llm: sterna.LLM) -> None:
    llm = long_llm

    async def main() -> None:
        async for piece in llm.astream([5], **ENDLESS):
            if piece:
                break
        assert await idle(llm)
        async for event in llm.achat("x", stream=True, **ENDLESS):
            if str(event):
                break
        assert await idle(llm)

        async with llm.astream([5], **ENDLESS) as stream:
            await anext(stream)
        # The end has been waited for.
        assert llm.engine.stats().running == 0
        assert stream.completion.finish_reason == "cancelled"
        assert [piece async for piece in stream] == []

        chat = llm.achat("x", stream=True, **ENDLESS)
        await anext(chat)
        await chat.aclose()
        await chat.aclose()
        assert llm.engine.stats().running == 0
        assert chat.message.finish_reason == "cancelled"

        never = llm.astream([5], **ENDLESS)
        await never.aclose()
        assert [piece async for piece in never] == []
        assert llm.engine.stats().running == 0

    run(main())


def test_a_stream_may_be_closed_while_a_task_waits_for_it(long_llm: sterna.LLM) -> None:
    async def main() -> None:
        # A prompt long enough that no piece comes before the close.
        stream = await long_llm.astream([5] * 90_000, **ENDLESS)
        task = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0.02)
        await stream.aclose()
        assert await asyncio.wait_for(task, 5) in (None, "")
        assert long_llm.engine.stats().running == 0

    run(main())


def test_two_tasks_may_share_a_stream(llm: sterna.LLM) -> None:
    async def main() -> None:
        stream = llm.astream([5, 6], max_tokens=40, **GREEDY)

        async def some() -> list[int]:
            return [token async for piece in stream for token in piece.tokens]

        first, second = await asyncio.gather(some(), some())
        assert len(first) + len(second) == 40
        assert sorted(first + second) == sorted(stream.completion.tokens)

    run(main())


# Sessions.


def test_a_session_is_the_same_awaited(llm: sterna.LLM) -> None:
    async def main() -> None:
        chat = llm.session(system="da")
        assert await chat.asend("ha", max_tokens=12, **GREEDY) == first
        events = [event async for event in chat.asend("ba", stream=True, max_tokens=12, **GREEDY)]
        assert events[-1].message == second
        assert second.usage.cached_tokens > 0
        assert chat.messages == same.messages
        branch = chat.fork()
        await branch.asend("da", max_tokens=3)
        assert len(chat.messages) == len(branch.messages) - 2 == 5

    same = llm.session(system="da")
    first = same.send("ha", max_tokens=12, **GREEDY)
    second = same.send("ba", max_tokens=12, **GREEDY)
    run(main())


def test_turns_of_a_session_follow_one_another(long_llm: sterna.LLM) -> None:
    llm = long_llm

    async def main() -> None:
        chat = llm.session()
        waiting = asyncio.ensure_future(chat.asend("x", **ENDLESS))
        await asyncio.sleep(0.05)
        # None of these may wait: on this thread that would be for ever.
        with pytest.raises(SternaError, match="follows the other"):
            await chat.asend("x")
        with pytest.raises(SternaError, match="follows the other"):
            await chat.asend("x", stream=True)
        with pytest.raises(SternaError, match="follows the other"):
            chat.send("x")
        with pytest.raises(SternaError, match="follows the other"):
            chat.fork()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert chat.messages == []

        # An answer that was left early stays as far as it came, whoever ended it.
        for leave in ("drop", "close", "cancel", "next"):
            chat = llm.session()
            stream = chat.asend("x", stream=True, **ENDLESS)
            while not str(await anext(stream)):
                pass
            if leave == "drop":
                del stream
            elif leave == "close":
                await stream.aclose()
            elif leave == "cancel":
                task = asyncio.ensure_future(stream.wait())
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            if leave != "next":
                assert await idle(llm)
                assert [message["role"] for message in chat.messages] == ["user", "assistant"]
                assert chat.messages[1]["content"]
            await chat.asend("y", max_tokens=1, ignore_eos=True)
            assert len(chat.messages) == 4
            assert await idle(llm)

        chat = llm.session()
        with pytest.raises(ContextOverflowError):
            await chat.asend("ba " * 600_000)
        assert chat.messages == []

    run(main())


# What is left afterwards.


def test_nothing_is_left_when_a_loop_ends(llm: sterna.LLM) -> None:
    async def main() -> None:
        outs = await asyncio.gather(*(llm.agenerate([5 + i], max_tokens=3) for i in range(20)))
        assert len(outs) == 20
        stream = llm.astream([5], **ENDLESS)
        await anext(stream)
        kept.append(stream)  # outlives its loop

    kept: list[Any] = []
    run(main())
    kept.clear()
    gc.collect()
    before = descriptors(), tasks(), threading.active_count()
    for _ in range(5):
        run(main())
    assert run(idle(llm))
    kept.clear()
    gc.collect()
    assert (descriptors(), tasks(), threading.active_count()) == before


def test_closing_a_loop_cancels_what_it_ran(long_llm: sterna.LLM) -> None:
    async def begin() -> Any:
        return await long_llm.astream([5], **ENDLESS)

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin())
    before = descriptors()
    assert long_llm.engine.stats().running + long_llm.engine.stats().waiting == 1
    loop.close()
    assert run(idle(long_llm))
    assert descriptors() < before
    assert stream.completion.finish_reason == "cancelled"


SCRIPT = """
import asyncio, gc, logging, sys, threading, time
import sterna

logging.getLogger("sterna").setLevel(logging.ERROR)  # it warns of the long context
llm = sterna.load({path!r}, context=100_000, threads=2, chat_template="{{{{ messages[0].content }}}}")

async def read(stream, ready):
    async for piece in stream:
        ready.set()

def streams():
    return llm.astream([5], ignore_eos=True), llm.achat("ba", stream=True, ignore_eos=True)

{body}
print("end", flush=True)
"""
BODIES = {
    "closed": """
        loop = asyncio.new_event_loop()
        async def some():
            ready = asyncio.Event()
            tasks = [loop.create_task(read(stream, ready)) for stream in streams()]
            await ready.wait()
            return tasks
        tasks = loop.run_until_complete(some())
        loop.close()
        deadline = time.monotonic() + 20
        while llm.engine.stats().running and time.monotonic() < deadline:
            time.sleep(0.001)
        assert llm.engine.stats().running == 0
        loop.call_exception_handler = lambda context: None  # of tasks that never end
        del tasks
        gc.collect()
    """,
    "main thread": """
        async def some():
            one, two = streams()
            await anext(one)
            await anext(two)
            return one, two
        loop = asyncio.new_event_loop()
        kept = loop.run_until_complete(some())
    """,
    "daemon thread": """
        async def some():
            ready = started
            await asyncio.gather(*(read(stream, ready) for stream in streams()))
        started = threading.Event()
        def work():
            try:
                asyncio.run(some())
            except sterna.SternaError:
                pass  # the engine is closed when Python ends
        threading.Thread(target=work, daemon=True).start()
        started.wait(20)
    """,
}


@pytest.mark.parametrize(("name", "rounds"), [("closed", 1), ("main thread", 3), ("daemon thread", 20)])
def test_live_streams_do_not_hold_up_the_end_of_python(tiny_path: Path, name: str, rounds: int) -> None:
    script = SCRIPT.format(path=str(tiny_path), body=textwrap.dedent(BODIES[name]))
    command = [sys.executable, "-W", "ignore", "-c", script]
    for begin in range(0, rounds, 4):
        children = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(min(4, rounds - begin))
        ]
        for child in children:
            out, error = child.communicate(timeout=60)
            assert (child.returncode, out, error) == (0, "end\n", "")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_an_error(long_llm: sterna.LLM) -> None:
    async def main() -> None:
        stream = await long_llm.astream([5], **ENDLESS)
        await anext(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)
                try:
                    asyncio.run(long_llm.agenerate([5]))
                except SternaError as error:
                    code = 0 if "fork" in str(error) else 2
                del stream  # neither the parent's request nor its loop may notice
                gc.collect()
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for _ in range(5):
            await anext(stream)
        assert long_llm.engine.stats().running == 1
        await stream.aclose()

    run(main())

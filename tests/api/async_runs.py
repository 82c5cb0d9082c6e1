"""What the tests of the asynchronous methods share: running them, and waiting until an engine has nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import sterna

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
# Runs until it is cancelled, but for a full context.
ENDLESS: dict[str, Any] = {"ignore_eos": True, "seed": 1}


def run(work: Coroutine[Any, Any, Any], seconds: float = 60) -> Any:
    return asyncio.run(asyncio.wait_for(work, seconds))


async def idle(llm: sterna.LLM, seconds: float = 5) -> bool:
    """Whether nothing runs any more, within the time."""
    try:
        async with asyncio.timeout(seconds):
            while (stats := llm.engine.stats()).running + stats.waiting:
                await asyncio.sleep(0.005)
    except TimeoutError:
        return False
    return True

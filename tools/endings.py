"""Processes that end in the middle of things: rounds of fork, interpreter exit and close while texts are generated.

    python tools/endings.py MODEL [--rounds 100] [--timeout 20]

Each round is a process of its own that loads MODEL (a tiny one will do), starts streams on threads and on an event
loop, and then forks, ends without closing anything, or closes. A round fails when the process hangs, dies of a signal,
writes to stderr, or ends with another exit code than it should.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
import time

import sterna

KINDS = ("fork", "exit", "exit in async", "close", "close from a thread")
OPTIONS = {"max_tokens": 100_000, "temperature": 1.0, "ignore_eos": True}


def read(llm: sterna.LLM, prompt: list[int]) -> None:
    try:
        for _ in llm.stream(prompt, **OPTIONS):
            pass
    except sterna.SternaError:
        pass


def start_threads(llm: sterna.LLM, count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=read, args=(llm, [5 + i, 6, 7]), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads


def forked_child_is_told(llm: sterna.LLM) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            llm.generate([5], max_tokens=1)
        except sterna.SternaError:
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


async def leave_tasks_behind(llm: sterna.LLM) -> None:
    async def consume(token: int) -> None:
        async for _ in llm.astream([token, 6, 7], **OPTIONS):
            pass

    tasks = [asyncio.create_task(consume(5 + i)) for i in range(3)]
    await asyncio.sleep(0.05)
    tasks[0].cancel()


def one_round(model: str, kind: str, seed: int) -> int:
    pick = random.Random(seed)
    logging.getLogger("sterna").setLevel(logging.ERROR)  # a tiny model is asked for more than it was trained for
    llm = sterna.load(model, context=200_000, kv_tokens=200_000, threads=2)
    threads = start_threads(llm, pick.randint(1, 4))
    stream = llm.stream([9, 9], **OPTIONS)
    next(stream)
    time.sleep(pick.random() * 0.05)
    if kind == "fork":
        told = all(forked_child_is_told(llm) for _ in range(3))
        next(stream)
        return 0 if told else 1
    if kind == "exit in async":
        asyncio.run(leave_tasks_behind(llm))
    elif kind == "close":
        llm.close()
        for thread in threads:
            thread.join()
    elif kind == "close from a thread":
        closer = threading.Thread(target=llm.close)
        closer.start()
        llm.close()
        closer.join()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=100, help="of each kind")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds after which a process counts as hanging")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one_round(args.model, args.one[0], int(args.one[1]))
    failures = 0
    for kind in KINDS:
        failed = 0
        for seed in range(args.rounds):
            command = [sys.executable, __file__, args.model, "--one", kind, str(seed)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
                problem = f"exit code {done.returncode}, {done.stderr!r:.500}" if done.returncode or done.stderr else ""
            except subprocess.TimeoutExpired:
                problem = "hangs"
            if problem:
                failed += 1
                print(f"{kind}, seed {seed}: {problem}")
        print(f"{kind}: {failed} of {args.rounds} failed", flush=True)
        failures += failed
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What one compilation or rendering of a chat template may use: steps, depth, time, memory and output.

A template comes with a model file, so it is a program by a stranger. Every operation whose cost depends on the template
or on the request reports here first; a limit that is passed raises `OverBudget`, which `ChatTemplate` turns into
`TemplateError`.
"""

from __future__ import annotations

import threading
import time

MAX_STEPS = 2_000_000
MAX_CALL_DEPTH = 64
MAX_PARSE_DEPTH = 256
MAX_BLOCK_DEPTH = 64
MAX_LOOP_DEPTH = 20
"""Tags within tags, and loops within loops. Python refuses code that is indented 100 deep and more than 20 loops, but
only after jinja2 has spent a time on it that grows faster than the depth."""
MAX_RANGE = 100_000
MAX_OUTPUT_BYTES = 8 << 20
MAX_SOURCE_CHARS = 1 << 18
MAX_TOKENS = 8_000
"""Tokens of a template's source: four times as many as in the largest template seen in the wild."""
MAX_SECONDS = 0.2
"""Of a rendering. The rest of the promised 250 ms is for the operation under way when the clock runs out."""
MAX_COMPILE_SECONDS = 1.0
"""The limits of a source's size and depth end a compilation sooner; large templates in the wild take 50 ms of a fast
core, and several times that of a small one."""
MAX_LIVE_BYTES = 40 << 20
"""Strings and containers alive at one time; an operation may need its operands and its result beside each other."""
MAX_WEIGHT = 1 << 19
"""Elements of one container, nested ones included, plus a thirty-second of the characters of its strings."""
MAX_NESTING = 128
"""Depth of containers in containers; a walk over one in C must not exhaust the machine stack."""
MAX_INT_BITS = 1024


class OverBudget(Exception):  # noqa: N818 (never seen outside this package)
    """A limit of this file was passed; the message says which."""


class Budget:
    """The account of one compilation or rendering; used by one thread."""

    __slots__ = ("_cpu_start", "_deadline", "_seconds", "call_depth", "live_bytes", "steps")

    def __init__(self, seconds: float | None = None) -> None:
        self.steps = 0
        self.call_depth = 0
        self.live_bytes = 0
        self._seconds = MAX_SECONDS if seconds is None else seconds
        self._deadline = time.perf_counter() + self._seconds
        self._cpu_start = time.thread_time()

    def step(self, count: int = 1) -> None:
        """Charges `count` steps and looks at the clock."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise OverBudget(f"the template took more than {MAX_STEPS} steps")
        if time.perf_counter() > self._deadline:
            self._out_of_time()

    def _out_of_time(self) -> None:
        # The wall clock also counts what other threads of the host do. Only the thread's own time is the template's
        # fault.
        used = self.seconds_used()
        if used > self._seconds:
            raise OverBudget(f"the template took longer than {self._seconds * 1000:.0f} ms")
        self._deadline = time.perf_counter() + (self._seconds - used)

    def seconds_used(self) -> float:
        """Of this thread, since the account was opened."""
        return time.thread_time() - self._cpu_start

    def following(self) -> Budget:
        """The account of the first rendering after a compilation: both together end in time, but a slow compilation
        leaves half of it."""
        return Budget(max(MAX_SECONDS - self.seconds_used(), MAX_SECONDS / 2))

    def allocate(self, size: int) -> None:
        """Charges `size` bytes that are about to be created."""
        self.live_bytes += size
        if self.live_bytes > MAX_LIVE_BYTES:
            raise OverBudget(f"the template needs more than {MAX_LIVE_BYTES >> 20} MiB of memory")

    def enter(self) -> None:
        """One more macro or recursive loop is running."""
        self.call_depth += 1
        if self.call_depth > MAX_CALL_DEPTH:
            raise OverBudget(f"macros or loops call each other more than {MAX_CALL_DEPTH} deep")

    def leave(self) -> None:
        self.call_depth -= 1


class _Current(threading.local):
    budget: Budget | None = None


_current = _Current()


def current() -> Budget:
    """The account of the calling thread; a fresh one, charged for one operation only, outside `spend`."""
    return _current.budget or Budget()


class spend:  # noqa: N801 (reads like a verb where it is used)
    """`with spend(budget):` makes it the account of this thread; nests (a log handler may render while we do)."""

    __slots__ = ("_budget", "_outer")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> Budget:
        self._outer = _current.budget
        _current.budget = self._budget
        return self._budget

    def __exit__(self, *exception: object) -> None:
        _current.budget = self._outer


def check_length(length: int) -> None:
    """Refuses to create a string of `length` characters when nothing that long could be output."""
    if length > MAX_OUTPUT_BYTES:
        raise OverBudget(f"the template makes a text of more than {MAX_OUTPUT_BYTES >> 20} MiB")

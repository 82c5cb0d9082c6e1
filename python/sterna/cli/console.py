"""What the commands say to a person: everything but a model's text goes to stderr, plain where no terminal listens."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# C0 but tab and newline, DEL, C1: a model's text or a file's name must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees `stream` as it is written."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def use_color(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and NO_COLOR does not forbid them."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` without control characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def say(text: str = "") -> None:
    """One line for the person."""
    _write(text)


def error(text: str) -> None:
    """The one line that says what failed."""
    label = "\x1b[31merror:\x1b[0m" if use_color(sys.stderr) else "error:"
    _write(f"{label} {printable(text)}")


def _write(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # nobody listens, and there is nobody to tell


def write_text(text: str) -> None:
    """A piece of the model's text to stdout, at once; on a terminal without control characters."""
    sys.stdout.write(printable(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Aligned columns on stdout; the columns in `right` hold numbers."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [list(headers), *cells]:
        shown = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(shown).rstrip())


def print_fields(fields: Iterable[tuple[str, object]], indent: str = "") -> None:
    """`name  value` lines on stdout, aligned; values of None are left out."""
    shown = [(name, str(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{indent}{name.ljust(width)}  {printable(value)}")


def size(count: float) -> str:
    """A number of bytes for people: `98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class FetchProgress:
    """Progress of a download: a bar on a terminal, one line elsewhere, nothing at all where nothing is fetched."""

    def __init__(self, name: str) -> None:
        self._name = printable(name)
        self._bar: Bar | None = None
        self._task: Any = None
        self._stage = ""
        self._started = time.monotonic()

    def __enter__(self) -> FetchProgress:
        return self

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if not self._stage:
            of = f" ({size(total)})" if total else ""
            say(f"Fetching {self._name}{of}.")
        if is_terminal(sys.stderr):
            bar = self._bar or self._open()
            if stage != self._stage:
                verb = {"download": "fetching", "verify": "checking"}.get(stage, stage)
                bar.reset(self._task, description=verb, total=total)
            bar.update(self._task, completed=done, total=total)
        self._stage = stage

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._stage and kind is None:
            say(f"Fetched and checked in {time.monotonic() - self._started:.0f} s.")

    def _open(self) -> Bar:
        self._bar, self._task = _open_bar("fetching")
        return self._bar


class WriteProgress:
    """Progress of a file that is being written: a bar on a terminal, nothing elsewhere."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._bar: Bar | None = None
        self._task: Any = None

    def __enter__(self) -> WriteProgress:
        return self

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if not is_terminal(sys.stderr):
            return
        if self._bar is None:
            self._bar, self._task = _open_bar(self._verb)
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _open_bar(description: str) -> tuple[Bar, Any]:
    """A bar that counts bytes, on stderr, and its task."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=None)
    bar.start()
    return bar, task

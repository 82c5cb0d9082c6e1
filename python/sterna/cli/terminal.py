"""Where the turns of a chat come from: a line editor on a terminal, plain lines from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.cli import console
from sterna.errors import ArgumentError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_MAX_LINE_BYTES = 64 << 20


def piped_lines() -> Iterator[str]:
    """The lines of stdin. ArgumentError for one that is not UTF-8, or longer than 64 MiB."""
    while data := sys.stdin.buffer.readline(_MAX_LINE_BYTES + 1):
        if len(data) > _MAX_LINE_BYTES:
            raise ArgumentError(f"a line is longer than {_MAX_LINE_BYTES >> 20} MiB")
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError:
            raise ArgumentError("a line is not UTF-8 text") from None


def typed_lines() -> Iterator[str]:
    """What a person types, until Ctrl-D; Ctrl-C empties the line."""
    session = None if os.environ.get("TERM") == "dumb" else _editor()
    while True:
        try:
            if session is not None:
                yield session.prompt("> ", prompt_continuation="  ")
                continue
            sys.stderr.write("> ")
            sys.stderr.flush()
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            console.say("(Ctrl-D leaves)")
            continue
        except EOFError:
            return
        if not line:
            return
        yield line


def history_file() -> Path:
    """Where the lines of earlier chats are kept, for the arrow keys."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return base / "sterna" / "history"


def _editor() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What one types is nobody else's business.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        history = FileHistory(str(path))
    except OSError as error:
        console.say(f"No history is kept: {error}")
    # stdout is for the model's text, even where it is not the terminal.
    return PromptSession(history=history, key_bindings=keys, output=create_output(stdout=sys.stderr))

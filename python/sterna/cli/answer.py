"""Shows an answer while it is made: content to stdout, reasoning dimmed to the person, and the figures afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sterna.cli import console


@dataclass
class Shown:
    """What has been shown of one answer; `interrupted` when Ctrl-C stopped it."""

    text: str = ""
    interrupted: bool = False


def show(pieces: Iterable[Any], shown: Shown | None = None) -> Shown:
    """Writes the pieces of a stream as they come. On a terminal the answer ends with a newline.

    Pieces are str, or have `kind` ("content" or "reasoning") and `text`. KeyboardInterrupt leaves `shown` filled.
    """
    shown = shown if shown is not None else Shown()
    dim = console.use_color(sys.stderr)
    thinking = False
    try:
        for piece in pieces:
            text = piece if isinstance(piece, str) else piece.text
            if getattr(piece, "kind", "content") == "reasoning":
                thinking = _think(text, thinking, dim)
                continue
            if thinking:
                thinking = _end_thought(dim)
            shown.text += text
            console.write_text(text)
    except KeyboardInterrupt:
        shown.interrupted = True
        raise
    finally:
        if thinking:
            _end_thought(dim)
        if console.is_terminal(sys.stdout) and not shown.text.endswith("\n"):
            console.write_text("\n")
    return shown


def _think(text: str, started: bool, dim: bool) -> bool:
    # Reasoning is no part of the answer: a person may watch it, a pipe gets none of it.
    if console.is_terminal(sys.stderr):
        sys.stderr.write(("\x1b[2m" if dim and not started else "") + console.printable(text))
        sys.stderr.flush()
    return True


def _end_thought(dim: bool) -> bool:
    if console.is_terminal(sys.stderr):
        sys.stderr.write("\x1b[0m\n" if dim else "\n")
        sys.stderr.flush()
    return False


def speed(timings: Any) -> str:
    """One line of figures: tokens and tokens per second of prompt and answer."""
    prompt = timings.prompt_tokens - timings.cached_tokens
    parts = [f"prompt {timings.prompt_tokens} tokens"]
    if timings.cached_tokens:
        parts[0] += f" ({timings.cached_tokens} from the cache)"
    if timings.prefill_seconds > 0 and prompt:
        parts[0] += f" at {prompt / timings.prefill_seconds:.1f}/s"
    parts.append(f"answer {timings.generated_tokens} tokens")
    # The first token comes out of the prompt's last step.
    if timings.decode_seconds > 0 and timings.generated_tokens > 1:
        parts[1] += f" at {(timings.generated_tokens - 1) / timings.decode_seconds:.1f}/s"
    return ", ".join(parts) + "."

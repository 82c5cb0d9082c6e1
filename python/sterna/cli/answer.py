"""Shows an answer while it is made: content to stdout, reasoning to the person, figures and warnings afterwards."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sterna.cli import console

if TYPE_CHECKING:
    from sterna import LLM, ChatStream, Completion, TextStream


def show(stream: ChatStream | TextStream) -> str:
    """Writes a stream as it comes, and gives its text; on a terminal it ends with a newline.

    Ctrl-C and an output that is gone cancel the rest, and are raised.
    """
    thought = _Thought()
    parts: list[str] = []
    with stream:
        try:
            for piece in stream:
                kind, text = ("content", piece) if isinstance(piece, str) else (piece.kind, piece.text)
                if kind == "reasoning":
                    thought.add(text)
                elif kind == "content":
                    thought.end()
                    parts.append(text)
                    console.write_text(text)
        finally:
            thought.end()
            if console.is_terminal(sys.stdout) and not (parts and parts[-1].endswith("\n")):
                console.write_text("\n")
    return "".join(parts)


def report(llm: LLM, completion: Completion, *, limited: bool, stats: bool) -> None:
    """Says what a person should know about an answer: that the context ended it, and the figures if they are wanted."""
    if completion.finish_reason == "length" and not limited:
        console.say(f"The answer ends here because the context of {llm.info.context} tokens is full.")
    if not stats:
        return
    timings = completion.timings
    cached = f" ({timings.cached_tokens} from the cache)" if timings.cached_tokens else ""
    drafts = f" ({timings.accepted_tokens} of {timings.draft_tokens} guesses right)" if timings.draft_tokens else ""
    console.say(
        f"prompt: {timings.prompt_tokens} tokens{cached}, {timings.prefill_tokens_per_second:.1f}/s; "
        f"answer: {timings.generated_tokens} tokens{drafts}, {timings.decode_tokens_per_second:.1f}/s; "
        f"seed {completion.seed}"
    )


class _Thought:
    """Reasoning is no part of the answer: a person may watch it, a pipe gets none of it."""

    def __init__(self) -> None:
        self._visible = console.is_terminal(sys.stderr)
        self._dim = console.use_color(sys.stderr)
        self._open = False

    def add(self, text: str) -> None:
        if self._visible:
            start = "\x1b[2m" if self._dim and not self._open else ""
            sys.stderr.write(start + console.printable(text))
            sys.stderr.flush()
            self._open = True

    def end(self) -> None:
        if self._open:
            sys.stderr.write("\x1b[0m\n" if self._dim else "\n")
            sys.stderr.flush()
            self._open = False

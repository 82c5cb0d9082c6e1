"""`sterna chat`: a conversation over several turns, on a terminal or through a pipe."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sterna.cli import console
from sterna.cli.answer import report, show
from sterna.cli.options import load_model, loading_options, sampling_arguments, sampling_options
from sterna.cli.terminal import piped_lines, typed_lines
from sterna.errors import SternaError

if TYPE_CHECKING:
    from sterna import LLM

HELP = """\
/help            this list
/clear           forget the conversation
/system TEXT     set the system message, and forget the conversation
/stats           show figures after each answer, or stop showing them
/save FILE       write the conversation as JSON messages
/exit            leave, as Ctrl-D does
Alt-Enter starts a new line. Ctrl-C stops an answer. //text sends a text that begins with /."""
_COMMANDS = ("/help", "/clear", "/system", "/stats", "/save", "/exit")


@click.command()
@click.argument("model", required=False)
@click.option("-s", "--system", help="System message.")
@sampling_options
@loading_options
@click.option("--stats", is_flag=True, help="Tokens and speed after each answer, on stderr.")
def command(
    model: str | None,
    system: str | None,
    threads: int | None,
    context: int | None,
    device: str,
    gpu_layers: int | None,
    kv_dtype: str,
    draft: str | None,
    i2s_order: str,
    stats: bool,
    **sampling: Any,
) -> None:
    """Talk with MODEL over several turns. Each line that is piped in is one turn."""
    loading = {
        "threads": threads,
        "context": context,
        "device": device,
        "gpu_layers": gpu_layers,
        "kv_dtype": kv_dtype,
        "draft": draft,
        "i2s_order": i2s_order,
    }
    converse(model, loading, system, sampling_arguments(sampling), stats=stats)


def converse(
    model: str | None, loading: dict[str, Any], system: str | None, sampling: dict[str, Any], *, stats: bool = False
) -> None:
    """Loads a model and talks with it until Ctrl-D, the end of what is piped in, or /exit."""
    interactive = console.is_terminal(sys.stdin)
    with load_model(model, **loading) as llm:
        if interactive:
            console.say("/help lists the commands, Ctrl-D leaves.")
        conversation = Conversation(llm, system, sampling, stats)
        for line in typed_lines() if interactive else piped_lines():
            if conversation.take(line):
                break


class Conversation:
    """The turns so far, and what a line that is typed does to them."""

    def __init__(self, llm: LLM, system: str | None, sampling: dict[str, Any], stats: bool) -> None:
        self._llm = llm
        self._sampling = sampling
        self._stats = stats
        self._begin(system)

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._session = self._llm.session(system=system)
        self._messages = [{"role": "system", "content": system}] if system else []

    def take(self, line: str) -> bool:
        """Answers a line, or obeys it where it is a command; whether it was the last one."""
        text = line.strip()
        if not text:
            return False
        if text.startswith("/") and not text.startswith("//"):
            return self._obey(text)
        try:
            self._say(text.removeprefix("/") if text.startswith("//") else text)
        except SternaError as error:
            # A turn that fails (a context that is full) does not end the conversation.
            if not console.is_terminal(sys.stdin):
                raise
            console.error(str(error))
        return False

    def _say(self, text: str) -> None:
        stream = self._session.send(text, stream=True, **self._sampling)
        try:
            show(stream)
        except KeyboardInterrupt:
            if not console.is_terminal(sys.stdin):
                raise
            console.say("(stopped)")
        answer = {"role": "assistant", "content": stream.message.content}
        self._messages += [{"role": "user", "content": text}, answer]
        report(self._llm, stream.completion, limited="max_tokens" in self._sampling, stats=self._stats)

    def _obey(self, text: str) -> bool:
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return True
        if name == "/help":
            console.say(HELP)
        elif name == "/clear":
            self._begin(self._system)
            console.say("The conversation is forgotten.")
        elif name == "/system":
            self._begin(argument or None)
            console.say("The system message is set." if argument else "There is no system message now.")
        elif name == "/stats":
            self._stats = not self._stats
            console.say("Figures follow each answer." if self._stats else "No more figures.")
        elif name == "/save" and argument:
            self._save(argument)
        elif name == "/save":
            console.say("/save needs the name of a file.")
        else:
            close = difflib.get_close_matches(name, _COMMANDS, n=1)
            console.say(
                f"There is no {name}." + (f" Did you mean {close[0]}?" if close else " /help lists the commands.")
            )
        return False

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._messages, file, indent=2, ensure_ascii=False)
        except FileExistsError:
            console.say(f"{path} exists already.")
        except OSError as error:
            console.say(f"{path}: {error.strerror}")
        else:
            console.say(f"{len(self._messages)} messages are in {path}.")

"""Entry point of the command line: finds the command, and turns every failure into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

from sterna.cli import console
from sterna.errors import SternaError

# Shown by --help without importing any of them; the module sterna.cli.<name> holds the click command `command`.
COMMANDS = {
    "run": "Answer one prompt, or start a chat.",
    "chat": "Talk with a model over several turns.",
    "embed": "Make vectors of texts.",
    "pull": "Fetch a model to this machine.",
    "list": "List the models on this machine.",
    "show": "Show where a model comes from and where it lies.",
    "rm": "Remove a fetched model.",
    "inspect": "Show what is in a model file.",
    "plan": "Show how much memory a model needs, before loading it.",
    "bench": "Measure prefill and decode.",
    "convert": "Make a GGUF file of a BitNet repository.",
    "quantize": "Write a model in other formats.",
    "perplexity": "Measure how well a model predicts a text.",
    "trace": "Print a model's program.",
    "diff": "Compare the compiled plan with the reference, value by value.",
    "doctor": "Check this machine and this installation.",
}
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"sterna.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"sterna {version('sterna')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
def cli() -> None:
    """Run quantised language models from GGUF files on this machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code: 0, 1 (failed), 2 (usage) or 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a '?' instead of ending the answer.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        # Not cli.main(): click would answer a closed pipe and Ctrl-C by itself.
        with cli.make_context("sterna", list(sys.argv[1:] if arguments is None else arguments)) as ctx:
            cli.invoke(ctx)
        return _flushed(0)
    except click.exceptions.Exit as exit_:
        return _flushed(exit_.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_stdout()
        return 0
    except click.UsageError as error:
        console.error(error.format_message())
        if error.ctx is not None:
            console.say(f"See '{error.ctx.command_path} --help'.")
        return USAGE
    except (click.ClickException, SternaError, OSError, MemoryError) as error:
        _show_traceback()
        console.error(error.format_message() if isinstance(error, click.ClickException) else _line(error))
        return FAILED
    except Exception as error:
        if not _show_traceback():
            console.say("An internal error: STERNA_DEBUG=1 shows where.")
        console.error(f"{type(error).__name__}: {_line(error)}")
        return FAILED


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        console.error(_line(error))
        return FAILED
    return code


def _drop_stdout() -> None:
    # Python would complain once more when it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _show_traceback() -> bool:
    if os.environ.get("STERNA_DEBUG", "0") in ("", "0"):
        return False
    import traceback

    traceback.print_exc()
    return True

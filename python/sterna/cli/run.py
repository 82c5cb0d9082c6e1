"""`sterna run`: one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sterna.cli import console
from sterna.cli.answer import report, show
from sterna.cli.options import json_option, load_model, loading_options, sampling_arguments, sampling_options
from sterna.errors import ArgumentError
from sterna.hub import is_model_name

if TYPE_CHECKING:
    from sterna import LLM, ChatStream, TextStream

_MAX_PROMPT_BYTES = 64 << 20


@click.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("-s", "--system", help="System message.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@sampling_options
@loading_options
@click.option("--stats", is_flag=True, help="Tokens and speed on stderr.")
@json_option
def command(
    arguments: tuple[str, ...],
    system: str | None,
    raw: bool,
    threads: int | None,
    context: int | None,
    device: str,
    gpu_layers: int | None,
    kv_dtype: str,
    draft: str | None,
    i2s_order: str,
    stats: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPT, or what is piped in. Without a prompt, on a terminal: a chat.

    A single argument is MODEL if it exists as a path, ends in .gguf, is a catalogue name or looks like org/repo;
    else it is PROMPT. Without MODEL the default model answers.
    """
    if raw and system is not None:
        raise click.UsageError("--raw has no messages: --system cannot go with it")
    model, prompt = split_arguments(arguments)
    if prompt is None and not console.is_terminal(sys.stdin):
        prompt = read_prompt()
    loading: dict[str, Any] = {
        "threads": threads,
        "context": context,
        "device": device,
        "gpu_layers": gpu_layers,
        "kv_dtype": kv_dtype,
        "draft": draft,
        "i2s_order": i2s_order,
    }
    if prompt is None:
        if raw or as_json:
            raise click.UsageError("no prompt")
        from sterna.cli.chat import converse

        converse(model, loading, system, sampling_arguments(sampling), stats=stats)
        return
    check_prompt(prompt)
    with load_model(model, **loading) as llm:
        _answer(llm, prompt, system, raw, sampling_arguments(sampling), stats, as_json)


def split_arguments(arguments: tuple[str, ...]) -> tuple[str | None, str | None]:
    """(model, prompt) of the positional arguments; None for what was not given."""
    if len(arguments) > 2:
        raise click.UsageError(f"{len(arguments)} arguments instead of MODEL and PROMPT: put the prompt into quotes")
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    if not arguments:
        return None, None
    return (arguments[0], None) if is_model_name(arguments[0]) else (None, arguments[0])


def read_prompt() -> str:
    """The prompt that is piped in, without its last newline."""
    data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise ArgumentError(f"what is piped in is longer than {_MAX_PROMPT_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"what is piped in is not UTF-8 text: byte {error.start} is wrong") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise click.UsageError("no prompt: nothing was piped in")
    return text


def check_prompt(prompt: str) -> None:
    """Refuses a prompt that is empty, or that the shell passed in another encoding than UTF-8."""
    if not prompt:
        raise click.UsageError("the prompt is empty")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"the prompt is not UTF-8 text: character {error.start} is wrong") from None


def _answer(
    llm: LLM, prompt: str, system: str | None, raw: bool, sampling: dict[str, Any], stats: bool, as_json: bool
) -> None:
    if not raw and llm.info.template_source is None:
        if system is not None:
            raise ArgumentError("the model has no chat template, so there is no place for a system message")
        console.say("The model has no chat template: it continues the text.")
        raw = True
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    stream = llm.stream(prompt, **sampling) if raw else llm.chat(messages, stream=True, **sampling)
    if as_json:
        for _ in stream:
            pass
        console.print_json(_as_dict(llm, stream))
    else:
        show(stream)
    report(llm, stream.completion, limited="max_tokens" in sampling, stats=stats)


def _as_dict(llm: LLM, stream: ChatStream | TextStream) -> dict[str, Any]:
    completion = stream.completion
    message = getattr(stream, "message", None)
    return {
        "model": llm.info.name,
        "text": completion.text if message is None else message.content,
        "reasoning": None if message is None else message.reasoning,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": {**asdict(completion.usage), "total_tokens": completion.usage.total_tokens},
        "timings": asdict(completion.timings),
    }

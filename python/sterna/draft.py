"""A draft model: a small one with the same vocabulary that guesses what a large one will say (`load(draft=...)`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.device import compile_for
from sterna.errors import ArgumentError
from sterna.memory import ModelPart, PlanSettings

if TYPE_CHECKING:
    from sterna._core import Gguf, Program, ProgramPlan
    from sterna.hub import Progress

_MODEL, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class PreparedDraft:
    """A draft model that has been read and traced, and not yet loaded."""

    file: Gguf
    part: ModelPart


def prepare_draft(
    model: str | Path,
    target: Gguf,
    settings: PlanSettings,
    *,
    vocab_size: int,
    program: Program,
    i2s_order: str,
    progress: Progress | None,
) -> PreparedDraft:
    """Finds and reads the file; ArgumentError when its tokens are not the target's, whose settings it runs with.

    `program` is the target's; neither of the two may have recurrent layers.
    """
    from sterna._core import Gguf
    from sterna.hub import resolve
    from sterna.trace import trace

    file = Gguf(resolve(model, progress=progress).path, i2s_order=i2s_order)
    _check_same_tokens(target, file)
    traced = trace(file)
    for path, each in ((target.path, program), (file.path, traced.program)):
        if each.state_slots:
            raise ArgumentError(f"draft: {path} has recurrent layers: no wrong guess can be taken out of their states")
    if traced.config.vocab_size != vocab_size:
        raise ArgumentError(
            f"draft: {file.path} has a vocabulary of {traced.config.vocab_size}, "
            f"the model {target.path} one of {vocab_size}"
        )
    # Every running sequence has one guess in the making.
    settings = replace(settings, max_outputs=settings.max_sequences)
    fused = traced.program.fuse()
    return PreparedDraft(file, ModelPart(fused, settings, fused.num_layers))


def compile_draft(prepared: PreparedDraft, target: ProgramPlan, device: str) -> ProgramPlan:
    """Packs its weights, for the target's device. The two plans take turns on the same threads."""
    settings = replace(prepared.part.settings, device=device)
    return compile_for(replace(prepared.part, settings=settings), prepared.file, share_threads=target)


def _check_same_tokens(target: Gguf, draft: Gguf) -> None:
    """A guess is a number: it must mean the same text to both."""
    kinds = target.get_string(_MODEL), draft.get_string(_MODEL)
    if kinds[0] != kinds[1]:
        raise ArgumentError(
            f"draft: {draft.path} has a tokenizer of kind {kinds[1]!r:.60}, the model {target.path} of {kinds[0]!r:.60}"
        )
    own, other = target.get_bytes_list(_TOKENS), draft.get_bytes_list(_TOKENS)
    if own == other:
        return
    if len(own) != len(other):
        raise ArgumentError(f"draft: {draft.path} has {len(other)} tokens, the model {target.path} {len(own)}")
    at = next(i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b)
    texts = [text.decode("utf-8", "replace") for text in (other[at], own[at])]
    raise ArgumentError(
        f"draft: token {at} of {draft.path} is {texts[0]!r:.60}, of the model {target.path} {texts[1]!r:.60}"
    )

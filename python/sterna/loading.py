"""From a model's name to a running engine: everything is checked and planned before anything is allocated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sterna.adapters import Adapter, open_adapters
from sterna.arguments import LOAD_ALIASES, keyword_arguments
from sterna.device import (
    Placement,
    choose_devices,
    chosen_device,
    compile_placed,
    cuda_problem,
    place,
    place_parts,
    split_program,
    threads_of,
)
from sterna.errors import ArgumentError, FileError
from sterna.fingerprint import fingerprint
from sterna.info import ModelInfo
from sterna.memory import KV_DTYPES, CacheSize, MemoryPlan, PlanSettings
from sterna.memory_budget import parse_budget, parse_bytes
from sterna.sampling import file_defaults

if TYPE_CHECKING:
    from sterna._core import Gguf, Program
    from sterna.draft import PreparedDraft
    from sterna.hub import Progress, ResolvedModel
    from sterna.llm import LLM
    from sterna.metadata import Metadata

_log = logging.getLogger(__name__)

MAX_CONTEXT = (1 << 31) - 1  # positions are 32-bit
MAX_SEQUENCES = 1024
MAX_WAITING = 1 << 20
MAX_THREADS = 1024
I2S_ORDERS = ("x86", "arm")


@keyword_arguments(LOAD_ALIASES)
def load(
    model: str | Path,
    *,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    threads: int | None = None,
    memory_budget: int | str | None = None,
    kv_dtype: str = "f16",
    max_sequences: int = 16,
    kv_tokens: int | None = None,
    draft: str | Path | None = None,
    seed: int | None = None,
    lora: Mapping[str, str | Path] | None = None,
    max_waiting: int = 1024,
    prefix_cache: str | Path | None = None,
    prefix_cache_bytes: int | str = "4GiB",
    chat_template: str | Path | None = None,
    i2s_order: str = "x86",
    progress: Progress | None = None,
) -> LLM:
    """Loads a model: a path, a name of the catalogue, `org/repo`, `org/repo:Q4_K_M` or `org/repo/file.gguf`.

    context: tokens of one sequence; None is what the model was trained for, or as much of it as the memory budget
        allows (`llm.info` says).
    device: "cpu", "cuda" (the first GPU) or "cuda:N"; "auto" is a GPU where there is one that the model fits on, with
        its `context`, or 4,096 tokens where that is None, and else the CPU. `llm.info` says which, and why no GPU.
        $STERNA_DEVICE stands for "auto" where it is set.
    threads: that compute; None is one per CPU that this process may use. The results do not depend on it. For a GPU
        they pack weights.
    gpu_layers: for a model that does not fit on a GPU: so many of its layers, the last ones, and what makes logits are
        on the GPU, the others and the embeddings on the CPU. The GPU is that of `device`, the first one for "auto"; 0
        is the CPU alone, and as many as there are, or more, the GPU alone. None divides nothing. A draft model then is
        on the CPU. UnsupportedModelError for encoders, and where one part would need keys of the other.
    memory_budget: bytes, or a text such as "4GiB"; None is 80 % of the memory that is available, limits of control
        groups included, or 90 % of what a GPU has free. MemoryBudgetError when the model does not fit, before anything
        is allocated. With `gpu_layers` it is that of each of the two.
    kv_dtype: "f16", "f32" or "q8_0", of the KV cache: q8_0 takes about half the memory of f16.
    max_sequences: how many run at the same time; more wait.
    kv_tokens: what the KV cache holds, of all sequences together; None is one full context. Allocated as they grow.
    draft: a smaller model with the same tokens that guesses ahead, as `model`: it makes texts come faster where it is
        mostly right, and changes none. ArgumentError when its tokens are others.
    seed: of requests that name none; None is a random one for each.
    lora: adapters in GGUF files by the names under which requests ask for them.
    max_waiting: requests that may wait; one more raises QueueFullError.
    prefix_cache: a folder in which the KV of prompts and texts is kept for later requests that begin alike, in this
        process or another one, at most `prefix_cache_bytes` (the least recently used goes first). What it holds can be
        read back into text by whoever may read the folder.
    chat_template: jinja2 text to use instead of the file's, or a Path to it.
    i2s_order: how the codes of I2_S tensors are arranged, which their files do not say: "x86" (groups of 128; most
        files), or "arm" (groups of 64). `sterna inspect` shows what speaks for which.
    progress: called with (stage, bytes done, bytes in all or None) while a model is fetched.

    Names of other libraries (`n_ctx`, `n_threads`, ...) are accepted. Raises SternaError: FileError, DownloadError,
    ModelFormatError, UnsupportedModelError, DeviceError, MemoryBudgetError, ArgumentError.
    """
    template_text = _template_text(chat_template)
    prepared = prepare(
        model,
        context=context,
        device=device,
        gpu_layers=gpu_layers,
        threads=threads,
        memory_budget=memory_budget,
        kv_dtype=kv_dtype,
        max_sequences=max_sequences,
        kv_tokens=kv_tokens,
        draft=draft,
        i2s_order=i2s_order,
        progress=progress,
        lora=lora,
        to_load=True,
    )
    if not isinstance(max_waiting, int) or not 1 <= max_waiting <= MAX_WAITING:
        raise ArgumentError(f"max_waiting is {max_waiting!r:.60}, must be from 1 to {MAX_WAITING}")
    quota = parse_bytes(prefix_cache_bytes, "prefix_cache_bytes")
    prepared.memory.check()
    return _start(prepared, template_text, max_waiting, seed, prefix_cache, quota)


@keyword_arguments(LOAD_ALIASES)
def plan(
    model: str | Path,
    *,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    threads: int | None = None,
    memory_budget: int | str | None = None,
    kv_dtype: str = "f16",
    max_sequences: int = 16,
    kv_tokens: int | None = None,
    draft: str | Path | None = None,
    i2s_order: str = "x86",
    progress: Progress | None = None,
    lora: Mapping[str, str | Path] | None = None,
) -> MemoryPlan:
    """The memory that `load` with the same arguments would take; reads metadata and tensor table, allocates nothing.

    Q1_0 and Q2_0 tensors are read as well, up to the first sign that they have more than one scale.

    `fits` says whether it is within the budget. Where `context` is None, it is the one that `load` would choose. Where
    there is no GPU, one may be planned for all the same: its budget is unknown unless given.
    """
    return prepare(
        model,
        context=context,
        device=device,
        gpu_layers=gpu_layers,
        threads=threads,
        memory_budget=memory_budget,
        kv_dtype=kv_dtype,
        max_sequences=max_sequences,
        kv_tokens=kv_tokens,
        draft=draft,
        i2s_order=i2s_order,
        progress=progress,
        lora=lora,
        to_load=False,
    ).memory


@dataclass(frozen=True)
class Prepared:
    """A model that has been read and planned, and not yet loaded."""

    resolved: ResolvedModel
    file: Gguf
    architecture: str
    trained_context: int
    program: Program
    adapters: Sequence[Adapter]
    placed: Placement
    context_capped: bool
    draft: PreparedDraft | None
    no_gpu: str | None  # why the CPU, where any device would have done

    @property
    def memory(self) -> MemoryPlan:
        return self.placed.memory


def prepare(
    model: str | Path,
    *,
    context: int | None,
    device: str,
    gpu_layers: int | None,
    threads: int | None,
    memory_budget: int | str | None,
    kv_dtype: str,
    max_sequences: int,
    kv_tokens: int | None,
    draft: str | Path | None,
    i2s_order: str,
    progress: Progress | None,
    lora: Mapping[str, str | Path] | None,
    to_load: bool,
) -> Prepared:
    """Checks the arguments, finds and reads the file, traces and fuses its program, and plans its memory.

    Unless it is to be loaded, where there is no GPU one may be planned for all the same.
    """
    devices = choose_devices(device, gpu_layers, to_load=to_load)
    device = chosen_device(device)
    if context is not None and (not isinstance(context, int) or not 2 <= context <= MAX_CONTEXT):
        raise ArgumentError(f"context is {context!r:.60}, must be from 2 to {MAX_CONTEXT}")
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
        raise ArgumentError(f"threads is {threads!r:.60}, must be from 1 to {MAX_THREADS}")
    if kv_tokens is not None and (not isinstance(kv_tokens, int) or not 2 <= kv_tokens <= MAX_CONTEXT):
        raise ArgumentError(f"kv_tokens is {kv_tokens!r:.60}, must be from 2 to {MAX_CONTEXT}")
    if kv_dtype not in KV_DTYPES:
        raise ArgumentError(f"kv_dtype is {kv_dtype!r:.60}, must be one of {', '.join(KV_DTYPES)}")
    if not isinstance(max_sequences, int) or not 1 <= max_sequences <= MAX_SEQUENCES:
        raise ArgumentError(f"max_sequences is {max_sequences!r:.60}, must be from 1 to {MAX_SEQUENCES}")
    if i2s_order not in I2S_ORDERS:
        raise ArgumentError(f"i2s_order is {i2s_order!r:.60}, must be one of {', '.join(I2S_ORDERS)}")
    if memory_budget is not None:
        parse_budget(memory_budget)

    from sterna._core import Gguf
    from sterna.hub import resolve
    from sterna.trace import trace

    resolved = resolve(model, progress=progress)
    file = Gguf(resolved.path, i2s_order=i2s_order)
    adapters = open_adapters(lora, str(file.get("general.architecture")))
    traced = trace(file, adapters, embed=True)
    program = traced.program.fuse()
    divided = split_program(traced.program, gpu_layers)
    settings = PlanSettings.choose(
        vocab_size=traced.config.vocab_size, threads=threads or 0, kv_dtype=kv_dtype, max_sequences=max_sequences
    )
    drafts = None
    if draft is not None:
        from sterna.draft import prepare_draft

        drafts = prepare_draft(
            draft,
            file,
            settings,
            vocab_size=traced.config.vocab_size,
            program=program,
            i2s_order=i2s_order,
            progress=progress,
        )
    if "logits" not in program.functions and drafts is not None:
        raise ArgumentError("the model is an encoder: there is nothing for a draft model to guess")
    trained = min(traced.config.max_position_embeddings, MAX_CONTEXT)
    draft_part = None if drafts is None else drafts.part
    size = CacheSize(context, kv_tokens, trained)
    if divided is None:
        placed = place(program, devices, memory_budget, settings, draft_part, size)
    else:
        placed = place_parts(divided, devices[0], memory_budget, settings, draft_part, size)
    memory = placed.memory
    learned = _learned_positions(program)
    if memory.context > learned:
        raise ArgumentError(f"context is {memory.context}, the model has learned {learned} positions")
    capped = context is None and kv_tokens is None and memory.context < trained
    return Prepared(
        resolved=resolved,
        file=file,
        architecture=traced.architecture,
        trained_context=trained,
        program=program,
        adapters=adapters,
        placed=placed,
        context_capped=capped,
        draft=drafts,
        no_gpu=placed.no_gpu or (cuda_problem() or None if device == "auto" and gpu_layers is None else None),
    )


def _learned_positions(program: Program) -> int:
    """Positions that every table of learned ones has a row for; MAX_CONTEXT where there is none."""
    rows = [MAX_CONTEXT]
    for node in (node for function in program.functions for node in program.nodes(function)):
        operands = dict(node.inputs)
        if node.op == "embed" and program.values[operands["tokens"]].name == "positions":
            extent = program.values[operands["w"]].shape[0]
            rows.append(int(extent))
    return min(rows)


def _start(
    prepared: Prepared,
    template_text: str | None,
    max_waiting: int,
    seed: int | None,
    prefix_cache: str | Path | None,
    prefix_cache_bytes: int,
) -> LLM:
    """Allocates: packs the weights and starts the engine."""
    from sterna._core import Engine, Pieces
    from sterna.chat.source import find_template
    from sterna.llm import LLM
    from sterna.metadata import Metadata
    from sterna.tokenizer import Tokenizer

    file, memory, placed = prepared.file, prepared.memory, prepared.placed
    settings = placed.settings
    if prepared.context_capped:
        _log.warning(
            "context capped to %d tokens by the memory budget; the model was trained on %d",
            memory.context,
            prepared.trained_context,
        )
    elif memory.context > prepared.trained_context:
        _log.warning(
            "context %d is longer than the %d tokens that the model was trained on",
            memory.context,
            prepared.trained_context,
        )
    tokenizer = Tokenizer.from_gguf(file)
    template = find_template(FileMetadata(file, tokens=_TokenTexts(file, tokenizer.control_ids.get)), template_text)
    adapters = [adapter.file for adapter in prepared.adapters]
    compiled = compile_placed(placed, prepared.program, file, adapters)
    draft = None
    if prepared.draft is not None:
        from sterna.draft import compile_draft

        draft = compile_draft(prepared.draft, compiled, placed.devices[0].id)
    engine = Engine(
        compiled,
        Pieces.from_gguf(file),
        context=memory.context,
        max_sequences=settings.max_sequences,
        kv_tokens=memory.kv_tokens,
        max_waiting=max_waiting,
        draft=draft,
    )
    info = ModelInfo(
        name=str(file.get("general.name", prepared.resolved.name)),
        path=file.path,
        architecture=prepared.architecture,
        parameters=sum(_product(tensor.shape) for tensor in file.tensors),
        file_bytes=file.file_bytes,
        formats=_count_formats(file),
        layouts=compiled.layouts,
        context=memory.context,
        trained_context=prepared.trained_context,
        context_capped=prepared.context_capped,
        max_sequences=settings.max_sequences,
        vocab_size=compiled.vocab_size,
        embedding_size=engine.encoding_size,
        max_embedded=engine.max_encoded if engine.encoding_size else 0,
        tokenizer=f"{tokenizer.kind} ({tokenizer.pre})" if tokenizer.kind == "bpe" else tokenizer.kind,
        template_source=None if template is None else template.source,
        device=placed.title,
        isa=placed.isa,
        threads=threads_of(compiled),
        no_gpu=prepared.no_gpu,
        kv_dtype=settings.kv_dtype,
        memory=memory,
        fingerprint=fingerprint(file, prepared.program),
        draft=None if prepared.draft is None else prepared.draft.file.path,
        gpu_layers=placed.gpu_layers,
    )
    start = decoder_start(Metadata(file, prepared.architecture)) if engine.needs_encoder_tokens else None
    cache = None
    if prefix_cache is not None:
        from sterna.prefix_cache import PrefixCache

        cache = PrefixCache(engine, prefix_cache, fingerprint=info.fingerprint, quota=prefix_cache_bytes)
    defaults = file_defaults(FileMetadata(file))
    return LLM(
        engine,
        tokenizer,
        template,
        info,
        defaults=defaults,
        seed=seed,
        prefix_cache=cache,
        adapters={adapter.name: adapter.index for adapter in prepared.adapters},
        program=prepared.program,
        decoder_start=start,
    )


def decoder_start(metadata: Metadata) -> int:
    """The token that begins what a decoder writes beside an encoder; padding in T5. ModelFormatError."""
    last = metadata.file.array_length("tokenizer.ggml.tokens") - 1
    return metadata.integer("decoder_start_token_id", 0, last, 0)


def _product(shape: Sequence[int]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def _count_formats(file: Gguf) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in file.tensors:
        counts[tensor.format] = counts.get(tensor.format, 0) + 1
    return counts


def _template_text(chat_template: str | Path | None) -> str | None:
    if not isinstance(chat_template, Path):
        return chat_template
    try:
        return chat_template.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{chat_template}: {error.strerror or error}", str(chat_template), error.errno or 0) from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{chat_template} is not UTF-8 text: byte {error.start} is wrong") from None


class FileMetadata(Mapping[str, Any]):
    """The metadata of a file as a mapping; `tokens` stands in for the list of all tokens, which is costly to make."""

    def __init__(self, file: Gguf, tokens: Sequence[str] | None = None) -> None:
        self._file = file
        self._instead: dict[str, Any] = {} if tokens is None else {"tokenizer.ggml.tokens": tokens}

    def __getitem__(self, key: str) -> Any:
        if key in self._instead:
            return self._instead[key]
        if key not in self._file:
            raise KeyError(key)
        return self._file.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


class _TokenTexts(Sequence[str]):
    """The texts of a file's tokens, read one at a time; `in` looks among the control tokens."""

    def __init__(self, file: Gguf, control_id: Callable[[str], int | None]) -> None:
        self._file = file
        self._control_id = control_id

    def __len__(self) -> int:
        return self._file.array_length("tokenizer.ggml.tokens")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._file.string_array_at("tokenizer.ggml.tokens", index).decode("utf-8", "replace")

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._control_id(text) is not None

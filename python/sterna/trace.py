"""Tracing: a model file, run once over the Config and the tensor table of a GGUF file, gives a Program."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sterna import ops
from sterna._core import Program
from sterna.arch import (
    Architecture,
    Batch,
    DecoderConfig,
    ModelFunction,
    TensorTable,
    Weights,
    architectures,
)
from sterna.encoder import pooling_of
from sterna.errors import ArgumentError, ModelFormatError, UnsupportedModelError
from sterna.metadata import Metadata, ModelFile

if TYPE_CHECKING:
    from sterna.adapters import Adapter


@dataclass(frozen=True)
class TracedModel:
    """What a model file made of a GGUF file."""

    architecture: str
    config: DecoderConfig
    program: Program


def trace(file: ModelFile, adapters: Sequence[Adapter] = (), *, embed: bool = False) -> TracedModel:
    """The unfused Program of a model file, with a function "logits", of an encoder "encode".

    `adapters` stand beside its linear layers. With `embed` a decoder gets "encode" as well: its last hidden state,
    pooled as the file says, otherwise its last row; but none where the file's pooling gives no vector.

    Raises UnsupportedModelError for an architecture that no model file knows, ModelFormatError (naming key or tensor)
    for metadata or tensors that contradict each other.
    """
    name = file.get("general.architecture")
    if not isinstance(name, str):
        problem = "is missing: this is no model" if name is None else "is not a string"
        raise ModelFormatError(f"{file.path}: general.architecture: {problem}", file.path, "general.architecture")
    metadata = Metadata(file, name)
    architecture = _choose(metadata)
    config = architecture.config.from_metadata(metadata)
    table = TensorTable(file, config)
    tracer = ops.Tracer("int8_per_token" if table.all_ternary else "auto", adapters)
    try:
        with ops.tracing(tracer):
            batch = Batch(tracer.input("tokens"), tracer.input("positions"))
            functions = _functions(architecture, pooling_of(metadata, "last") if embed else None)
            for function, build in functions.items():
                tracer.builder.begin_function(function)
                tracer.adapters = adapters if function == "logits" else ()
                with ops.scope(function) if build.__module__ == __name__ else contextlib.nullcontext():
                    tracer.builder.set_outputs([build(config, Weights(table), batch).id])
        program = tracer.builder.finish()
    except ArgumentError as error:
        raise ModelFormatError(f"{file.path}: {error}", file.path) from error
    for adapter in adapters:
        adapter.check_used()
    return TracedModel(name, config, program)


def _functions(architecture: Architecture, pooling: ops.Pooling | None) -> dict[str, ModelFunction]:
    """The functions of a program by name; `pooling` is that of a decoder's vectors, None where it makes none."""
    functions: dict[str, ModelFunction] = {}
    logits = architecture.logits
    if architecture.encode is not None:  # first, as the decoder reads what it keeps
        functions["encode"] = architecture.encode
    if logits is not None:
        functions["logits"] = logits
    if architecture.encode is None and logits is not None and pooling is not None:

        def encode(config: DecoderConfig, weights: Weights, batch: Batch) -> ops.Value:
            return ops.pool(ops.hidden_state(lambda: logits(config, weights, batch)), pooling)

        functions["encode"] = encode
    return functions


def _choose(metadata: Metadata) -> Architecture:
    name = metadata.architecture
    _import_models(naming=name)
    found = [entry for entry in architectures if entry.name == name and (entry.when is None or entry.when(metadata))]
    if len(found) == 1:
        return found[0]
    if found:
        files = ", ".join(sorted(entry.module for entry in found))
        raise UnsupportedModelError(f"{metadata.file.path}: several model files claim architecture {name!r}: {files}")
    _import_models()
    if any(entry.name == name for entry in architectures):
        raise UnsupportedModelError(f"{metadata.file.path}: no model file takes this variant of {name!r}")
    known = sorted({entry.name for entry in architectures})
    close = ", ".join(difflib.get_close_matches(name[:40], known))
    hint = f"closest: {close}" if close else f"docs/models.md lists the {len(known)} that are"
    shown = name if len(name) <= 40 and name.isprintable() else f"{name[:40]!r}..."
    raise UnsupportedModelError(f"{metadata.file.path}: architecture {shown!r} is not known ({hint})")


def _import_models(naming: str | None = None) -> None:
    """Imports all model files, or those whose text has an architecture in quotes, as its registration must."""
    folder = importlib.import_module("sterna.models").__path__
    for info in pkgutil.iter_modules(folder):
        if naming is not None:
            files = [Path(path) / f"{info.name}.py" for path in folder]
            text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
            if f'"{naming}"' not in text:
                continue
        importlib.import_module(f"sterna.models.{info.name}")

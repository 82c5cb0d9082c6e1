"""`convert`: a BitNet repository of Hugging Face, config and safetensors, becomes one ternary GGUF file.

A module per idea: `repository` and `safetensors` read, `families`, `hyperparameters`, `scheme` and `vocabulary` say
what it means, `ternary` holds the weights, `encoding` and `writing` make the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sterna.conversion.encoding import HEAD_TYPES, TERNARY_TYPES, Rounding
from sterna.conversion.families import find_family
from sterna.conversion.hyperparameters import Entry, read_hyper_parameters
from sterna.conversion.repository import Repository
from sterna.conversion.scheme import read_scheme
from sterna.conversion.vocabulary import vocabulary_entries
from sterna.conversion.writing import Losses, plan_outputs
from sterna.errors import ArgumentError
from sterna.gguf_output import GgufOutput
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS

__all__ = ["HEAD_TYPES", "TERNARY_TYPES", "Conversion", "convert"]

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote. `losses` has a line for each thing that the chosen types do not hold exactly."""

    path: str
    architecture: str
    type: str
    head: str
    tensors: int
    bytes: int
    losses: tuple[str, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    type: str = "TQ2_0",
    head: str = "F16",
    masters: bool = False,
    pre: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Conversion:
    """Writes the BitNet repository in the folder `source` (config.json, safetensors, tokenizer) as a GGUF file.

    type: "TQ1_0", "TQ2_0" or "I2_S" (x86 order), of the ternary matrices. I2_S keeps the scale of a matrix as float32;
        the others round it to float16, and `losses` of the result says by how much.
    head: "F16", "BF16", "F32" or "Q8_0", of the embedding and the output head. Norms and biases are F32.
    masters: floating-point weights without a quantization_config are what BitNet training leaves, to be quantised by
        their mean magnitude. Without it they must be ternary as they stand, but in BitNet's own architectures.
    pre: tokenizer.ggml.pre, for a byte-level tokenizer that is not recognised by its patterns.
    overwrite: an existing file may be replaced.
    progress: called with ("convert", bytes written, bytes in all).

    The file appears under its name when it is complete. Memory is a few chunks of a tensor, never a whole one. Raises
    FileError, ModelFormatError, UnsupportedModelError (with file, key and value), ArgumentError.
    """
    ternary_type, head_type = TERNARY_TYPES.get(str(type).upper()), str(head).upper()
    if ternary_type is None:
        raise ArgumentError(f"type is {type!r:.60}, must be one of {', '.join(TERNARY_TYPES)}")
    if head_type not in HEAD_TYPES:
        raise ArgumentError(f"head is {head!r:.60}, must be one of {', '.join(HEAD_TYPES)}")
    if pre is not None and pre not in PRE_TOKENIZERS:
        raise ArgumentError(f"pre is {pre!r:.60}, which is no known pre-tokenizer")
    target = Path(destination)
    with Repository(Path(source)) as repository:
        family, architecture = find_family(repository.config)
        sizes = read_hyper_parameters(repository.config, family, architecture)
        scheme = read_scheme(repository.config, family, masters=masters)
        outputs = plan_outputs(repository, family, sizes, scheme, ternary_type, head_type)
        entries: list[Entry] = [
            ("general.type", "model", "string"),
            # Of a folder whose name is no UTF-8, what of it is.
            ("general.name", os.fsencode(os.path.basename(os.path.abspath(source))).decode(errors="replace"), "string"),
            ("general.file_type", ternary_type.file_type, "uint32"),
            ("general.quantization_version", _QUANTIZATION_VERSION, "uint32"),
            *sizes.entries,
            *vocabulary_entries(repository, sizes.vocab_size, pre),
        ]
        if scheme.norm_eps is not None:
            entries.append((f"{architecture}.input_norm_rms_epsilon", scheme.norm_eps, "float32"))
        _check_not_a_source(repository, target)
        losses, done, total = Losses(), 0, sum(output.n_bytes for output in outputs)
        with GgufOutput(target, architecture, overwrite=overwrite) as file:
            for entry in entries:
                file.metadata(*entry)
            for output in outputs:
                file.declare(output.name, output.shape, output.format, output.n_bytes)
            file.begin()
            for output in outputs:
                for piece in output.pieces(losses):
                    file.write(output.name, piece)
                    done += piece.nbytes
                    if progress is not None:
                        progress("convert", done, total)
        return Conversion(
            str(target),
            architecture,
            ternary_type.name,
            head_type,
            len(outputs),
            target.stat().st_size,
            tuple(_described(losses, ternary_type.name, head_type)),
        )


def _check_not_a_source(repository: Repository, target: Path) -> None:
    # Of both, links are followed; one that leads nowhere is no file.
    inside = (path for path in repository.folder.iterdir() if path.exists())
    if target.exists() and any(target.samefile(path) for path in inside):
        raise ArgumentError(f"{target} is a file of the repository itself")


def _described(losses: Losses, type_: str, head: str) -> list[str]:
    lines = []
    if losses.scales:
        name, change = max(losses.scales.items(), key=lambda item: item[1])
        lines.append(
            f"the scales of {len(losses.scales)} matrices were rounded to the float16 of {type_}, by at most "
            f"{change:.2g} of their value ({name}); I2_S keeps them"
        )
    for name, rounding in losses.floats.items():
        lines.append(_described_floats(name, rounding, head))
    return lines


def _described_floats(name: str, rounding: Rounding, head: str) -> str:
    return f"{name}: {rounding.changed} values were rounded to {head}, by at most {rounding.largest:.2g}"

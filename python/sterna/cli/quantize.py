"""`sterna quantize`: writes a model in other formats."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sterna.cli import console
from sterna.cli.options import find_model, i2s_order_option, json_option


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.argument("type_", metavar="TYPE")
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE", help="Importance, from llama-imatrix.")
@click.option("--head", metavar="TYPE", help="Format of embedding and output (default: what TYPE says).")
@click.option("--overwrite", is_flag=True, help="Replace DST where it exists.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads that compute (default: one per core).")
@i2s_order_option
@json_option
def command(
    src: str,
    dst: Path,
    type_: str,
    imatrix: Path | None,
    head: str | None,
    overwrite: bool,
    threads: int | None,
    i2s_order: str,
    as_json: bool,
) -> None:
    """Write the model SRC to the GGUF file DST in the formats of TYPE.

    TYPE is F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q6_K, IQ4_NL, IQ4_XS, MXFP4, MXFP4_MOE, TQ1_0, TQ2_0, or a
    mix: Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M; these give matrices that matter most more
    bits, as llama.cpp's types of the same names do. DST appears when it is complete. Start from F32, F16 or BF16: a
    source that is quantised already has lost what no format brings back.
    """
    source = find_model(src).path
    from sterna.quantization import quantize

    with console.WriteProgress("quantising") as progress:
        done = quantize(
            source,
            dst,
            type_,
            imatrix=imatrix,
            head=head,
            overwrite=overwrite,
            threads=threads,
            i2s_order=i2s_order,
            progress=progress,
        )
    if as_json:
        console.print_json({**asdict(done), "path": str(done.path), "bits_per_weight": done.bits_per_weight})
        return
    for (wanted, given), names in _by_formats(done.fallbacks).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.say(f"{names[0]}{more}: rows are no whole blocks of {wanted}, they became {given}.")
    console.say(
        f"{done.path}: {console.size(done.source_bytes)} of tensors became {console.size(done.bytes)}, "
        f"{done.bits_per_weight:.2f} bits per weight."
    )


def _by_formats(fallbacks: list[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for name, wanted, given in fallbacks:
        groups.setdefault((wanted, given), []).append(name)
    return groups

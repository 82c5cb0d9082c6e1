"""The real vocabularies of the reference material, each loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from reference import reference_dir
from sterna import _core
from sterna.tokenizer import Tokenizer


def vocabularies() -> list[Path]:
    return sorted(reference_dir("vocab").glob("ggml-vocab-*.gguf"))


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(_core.Gguf(path))


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """Texts with their token ids."""
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) <= len(lines) <= len(texts) + 1
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]

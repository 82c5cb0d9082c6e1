"""The real vocabularies of the reference material, each loaded once."""

from __future__ import annotations

import lzma
import tempfile
from functools import cache
from pathlib import Path

from reference import reference_dir
from sterna import _core
from sterna.tokenizer import Tokenizer


def vocabularies() -> list[Path]:
    """Their files, of which the subset has only `.xz`."""
    files = reference_dir("vocab").glob("ggml-vocab-*.gguf*")
    return sorted({Path(str(file).removesuffix(".xz")) for file in files if file.suffix in (".gguf", ".xz")})


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    if path.exists():
        return Tokenizer.from_gguf(_core.Gguf(path))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_bytes(lzma.decompress(Path(f"{path}.xz").read_bytes()))
        return Tokenizer.from_gguf(_core.Gguf(file))


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """Texts with their token ids."""
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) <= len(lines) <= len(texts) + 1
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]

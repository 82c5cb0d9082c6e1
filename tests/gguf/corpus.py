"""The malformed corpus (classes H, K, T, A, S): one table for the Python tests and the sanitized C++ program.

`python tests/gguf/corpus.py FOLDER` writes the files and `manifest.txt` (a line each: accept or reject, and the path).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


@dataclass(frozen=True)
class Accept:
    """The container is fine; `check` looks at the opened file, and raises where a getter must refuse a value."""

    check: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Reject:
    """ModelFormatError: the field (all of it), its byte offset (None: any within the file), a part of the message."""

    field: str
    at: int | None
    message: str


@dataclass(frozen=True)
class RejectFile:
    """FileError with a part of its message."""

    message: str


@dataclass(frozen=True)
class Refuse:
    """The container is fine, but the getter named `getter` raises ModelFormatError about `key` at `at`."""

    getter: str
    key: str
    at: int
    message: str
    arguments: tuple[Any, ...] = ()


Expectation = Accept | Reject | RejectFile | Refuse


@dataclass(frozen=True)
class Case:
    """`build` writes the file or files into an empty folder and gives the path to open."""

    id: str
    build: Callable[[Path], Path]
    expect: Expectation
    large: bool = False  # too large for the tests that run every case many times


def case(id: str, content: bytes | Callable[[], bytes], expect: Expectation, large: bool = False) -> Case:
    """A case of one file."""

    def build(folder: Path) -> Path:
        path = folder / f"{id}.gguf"
        path.write_bytes(content() if callable(content) else content)
        return path

    return Case(id, build, expect, large)


def all_cases() -> list[Case]:
    import corpus_files
    import corpus_metadata
    import corpus_tensors

    cases = [*corpus_files.cases(), *corpus_metadata.cases(), *corpus_tensors.cases()]
    ids = [c.id for c in cases]
    assert len(ids) == len(set(ids)), "two cases share an id"
    return cases


def write(folder: Path, cases: list[Case]) -> Iterator[tuple[str, Path]]:
    """Writes each case into a folder of its own; gives what is expected ("accept" or "reject") and the path to open."""
    for c in cases:
        home = folder / c.id
        home.mkdir(parents=True)
        yield ("reject" if isinstance(c.expect, Reject | RejectFile) else "accept"), c.build(home)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: corpus.py FOLDER (a new one)")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    lines = [f"{verdict} {path.relative_to(folder)}\n" for verdict, path in write(folder, all_cases())]
    (folder / "manifest.txt").write_text("".join(lines))
    print(f"{len(lines)} cases in {folder}")


if __name__ == "__main__":
    sys.modules["corpus"] = sys.modules["__main__"]  # the tables import it by this name
    main()

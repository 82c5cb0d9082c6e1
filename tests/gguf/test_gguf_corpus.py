"""Every case of the malformed corpus: the error names field and byte offset, comes quickly, and costs no memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import Accept, Case, Refuse, Reject, RejectFile, all_cases
from sterna._core import Gguf
from sterna.errors import FileError, ModelFormatError

CASES = all_cases()
SMALL = [case for case in CASES if not case.large]
LARGE = [case for case in CASES if case.large]

# Opens the paths on stdin, one a line, where no more than 64 MiB can be allocated beyond what is there at the start.
STARVED = """
import json, resource, sys
from sterna._core import Gguf
from sterna.errors import SternaError
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (64 << 20), resource.RLIM_INFINITY))
found = []
for line in sys.stdin:
    try:
        Gguf(line.rstrip("\\n"))
        found.append("opened")
    except SternaError as error:
        found.append(type(error).__name__)
print(json.dumps(found))
"""

# Opens one file and says by how much that raised the peak of resident memory, in bytes.
MEASURED = """
import sys
from sterna._core import Gguf
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before = peak()
model = Gguf(sys.argv[1])
print(peak() - before)
"""


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CASES) >= 150
    rejected = [case for case in CASES if not isinstance(case.expect, Accept)]
    assert len(rejected) >= 110
    for letter, least in (("H", 26), ("K", 40), ("T", 41), ("A", 10), ("S", 10)):
        numbers = {case.id[1:3] for case in CASES if case.id.startswith(letter)}
        # K and T are numbered through; 00 is for good files.
        missing = {f"{n:02}" for n in range(1, least + 1)} - numbers
        assert not missing, f"no case {letter}{sorted(missing)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, tmp_path: Path) -> None:
    home = tmp_path / case.id
    home.mkdir()
    path = case.build(home)
    start = time.thread_time()
    try:
        check(case, path)
    finally:
        shutil.rmtree(home)
    assert time.thread_time() - start < (3.0 if case.large else 0.1), "too slow"


def check(case: Case, path: Path) -> None:
    expect = case.expect
    if isinstance(expect, Reject):
        with pytest.raises(ModelFormatError) as caught:
            Gguf(path)
        error = caught.value
        assert error.field == expect.field, error
        assert error.byte_offset is not None
        if expect.at is None:
            assert 0 <= error.byte_offset <= Path(error.file).stat().st_size
        else:
            assert error.byte_offset == expect.at, error
        assert expect.message in str(error)
        assert str(error).isprintable()
        assert error.file in str(error)
        assert error.field in str(error)
    elif isinstance(expect, RejectFile):
        with pytest.raises(FileError, match=expect.message):
            Gguf(path)
    elif isinstance(expect, Refuse):
        model = Gguf(path)
        with pytest.raises(ModelFormatError) as caught:
            getattr(model, expect.getter)(expect.key, *expect.arguments)
        assert caught.value.byte_offset == expect.at, caught.value
        assert f'"{expect.key}"' in caught.value.field
        assert expect.message in str(caught.value)
    else:
        model = Gguf(path)
        if expect.check is not None:
            expect.check(model)


def test_rejection_needs_no_memory(tmp_path: Path) -> None:
    paths = []
    expected = []
    for case in SMALL:
        home = tmp_path / case.id
        home.mkdir()
        paths.append(str(case.build(home)))
        expected.append({Reject: "ModelFormatError", RejectFile: "FileError"}.get(type(case.expect), "opened"))
    result = subprocess.run(
        [sys.executable, "-c", STARVED], input="\n".join(paths), capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(result.stdout)
    wrong = [(c.id, f, e) for c, f, e in zip(SMALL, found, expected, strict=True) if f != e]
    assert not wrong


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)
def test_memory_is_bounded_by_the_metadata(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    command = [sys.executable, "-c", MEASURED, str(path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    tensors = Gguf(path).tensors
    metadata_bytes = tensors[0].offset if tensors else path.stat().st_size
    path.unlink()
    assert grown <= (16 << 20) + 4 * metadata_bytes

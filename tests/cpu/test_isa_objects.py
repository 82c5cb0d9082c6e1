"""Objects of an instruction set share no code with the rest: the linker may keep any one copy of an inline function for the
whole program, and one compiled with AVX-512 would end a process on a CPU without it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cpu/isa").glob("*.cpp"))
LEVELS = dict(re.findall(r"sterna_add_isa\((\w+) FLAGS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text()))
COMPILER = os.environ.get("CXX") or shutil.which("g++")
# What a compiler may call for itself.
BUILTINS = {"memcpy", "memmove", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}

needs_compiler = pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None or platform.machine() not in ("x86_64", "AMD64"),
    reason="needs g++ and nm, and an x86-64 machine",
)


def test_levels_are_found() -> None:
    assert {"avx2", "avx512"} <= set(LEVELS)
    assert len(SOURCES) >= 4


@needs_compiler
@pytest.mark.parametrize("level", LEVELS)
def test_only_local_symbols(level: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    # With little inlining: what stays a function here may stay one in any build.
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
    flags += ["-fno-trapping-math", f"-I{ROOT / 'csrc'}", f"-DSTERNA_LEVEL={level}", *LEVELS[level].split()]
    for source in SOURCES:
        target = tmp_path / f"{source.stem}.o"
        subprocess.run([COMPILER, *flags, "-c", str(source), "-o", str(target)], check=True, timeout=120)
        listing = subprocess.run(["nm", "--demangle", str(target)], check=True, capture_output=True, text=True).stdout
        symbols = [re.match(r"[0-9a-f ]{16} (\S) (.*)", line) for line in listing.splitlines()]
        kinds = [(match[1], match[2]) for match in symbols if match]
        assert kinds
        shared = [name for kind, name in kinds if kind in "wWvVuC"]
        assert not shared, f"{source.name}: {shared} may be taken for the whole program"
        foreign = [name for kind, name in kinds if kind == "U" and name not in BUILTINS]
        assert not foreign, f"{source.name} calls {foreign}"
        prefix = f"sterna::cpu::{level}::"
        exported = [name for kind, name in kinds if kind.isupper() and kind != "U" and not name.startswith(prefix)]
        assert not exported, f"{source.name} defines {exported}"

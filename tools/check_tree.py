"""Checks of the tree that no linter does: the length of source files, and that each opens by saying what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# "About 500": a file that needs more holds more than one concept. Types of the whole core stand in one stub.
MAX_LINES = 550
MAX_BYTES = 3_000_000
SOURCES = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}
EXEMPT = {"python/sterna/_core.pyi"}


def problems(root: Path, files: list[str]) -> list[str]:
    """One line per fault among `files`, which are paths below `root`."""
    found = []
    for name in files:
        path = root / name
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_BYTES:
            found.append(f"{name}: {path.stat().st_size} bytes, at most {MAX_BYTES} belong into the repository")
        if path.suffix not in SOURCES or name.startswith("tests/data/"):
            continue
        lines = path.read_text("utf-8").splitlines()
        if len(lines) > MAX_LINES and name not in EXEMPT:
            found.append(f"{name}: {len(lines)} lines, at most {MAX_LINES}: split it by concept")
        if path.suffix in {".h", ".cpp"} and any("gil_scoped_release" in line for line in lines):
            found.append(f"{name}: gil_scoped_release aborts daemon threads at exit; bindings.h has GilRelease")
        first = next((line for line in lines if line.strip() and not line.startswith("#!")), '"""')
        # A .cpp that begins with its own header is opened by that.
        of_header = path.suffix == ".cpp" and first.startswith("#include") and f'/{path.stem}.h"' in first
        if not of_header and not first.startswith(('"""', 'r"""', "//", "/*")):
            found.append(f"{name}: does not open with a sentence on what it is")
    return found


def main() -> int:
    """Checks what git tracks; 1 where something is wrong."""
    root = Path(__file__).parent.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    found = problems(root, [name for name in listed.decode().split("\0") if name])
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

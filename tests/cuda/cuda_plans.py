"""Model files compiled for a GPU, or for the CPU that stands in for one ($STERNA_CUDA_LIBRARY), which is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracle
import pytest
from sterna import _core
from sterna._core import Gguf
from sterna.trace import trace

PROBLEM = _core.cuda_problem()
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(PROBLEM != "", reason=PROBLEM or "there is a device")]
EMULATED = any(device["name"] == "emulated" for device in _core.cuda_devices())
# Positions of each sequence: all of them, or just more than the sliding windows of the oracles.
MOST = 18 if EMULATED else 512


def in_process(code: str, **environment: str) -> dict[str, Any]:
    """What `code` puts into `found`, in a process with these environment variables."""
    code = f"import json, sterna\nfrom sterna import _core\nfound = {{}}\n{code}\nprint(json.dumps(found))"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def path_of(name: str) -> Path:
    """The file of an oracle; skips where only a subset is here."""
    path = oracle.model_path(name)
    if not path.exists():
        pytest.skip(f"{name} is not in the subset of the oracles")
    return path


def compiled(path: Path, *, fused: bool = True, **options: object) -> _core.CudaPlan:
    file = Gguf(path)
    program = trace(file).program
    rows = min(MOST * 3, 512)
    options = {"threads": 1, "max_tokens": rows, "max_outputs": rows, **options}
    plan = _core.compile_cuda(program.fuse() if fused else program, file, **options)
    plan.reserve_pages(5)
    return plan


def cases(name: str, kind: str = "logits") -> list[oracle.Case]:
    """The sequences of an oracle, as much of each as is computed: what follows changes nothing before it."""
    return [oracle.Case(case.tokens[:MOST], case.logits[:MOST]) for case in oracle.cases(name, kind)]

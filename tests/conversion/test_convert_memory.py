"""A conversion holds a few chunks of a tensor, never a whole one; its progress counts every byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import sterna
from bitnet_repositories import maker, repository

# The peak of this process alone: that of getrusage begins with the one of the process that forked it.
_PROGRAM = """
import sys
import gguf.quants, sterna, sterna.conversion, sterna.gguf_output, sterna._core
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
before = status("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")
sterna.convert(sys.argv[1], sys.argv[2], head="F16")
print(status("VmHWM:") - before)
"""


def test_memory_is_below_the_largest_tensor(tmp_path: Path) -> None:
    """80 MB of embedding: by far the largest, as in the published models."""
    rows = 160_000
    path = tmp_path / "large"
    shutil.copytree(repository("bitnet-2b4t"), path)
    tensors, _ = maker.weights_of("bitnet-2b4t")
    values = np.resize(tensors["model.embed_tokens.weight"][1], (rows, 256))
    maker.write_safetensors(path / "model.safetensors", tensors | {"model.embed_tokens.weight": ("BF16", values)})
    config = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": rows}), encoding="utf-8")
    command = [sys.executable, "-c", _PROGRAM, str(path), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{int(done.stdout) / values.nbytes:.2f} of the largest tensor")
    # About half of it, of which most is the vocabulary of 160,000 tokens.
    assert int(done.stdout) < 0.9 * values.nbytes


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    done = sterna.convert(
        repository("llama3-1.58"), tmp_path / "a.gguf", progress=lambda stage, at, total: calls.append((stage, at, total))
    )
    assert [at for _, at, _ in calls] == sorted(at for _, at, _ in calls)
    stage, at, total = calls[-1]
    assert (stage, at) == ("convert", total)
    assert {total for _, _, total in calls} == {at}
    assert at < done.bytes == os.path.getsize(done.path)

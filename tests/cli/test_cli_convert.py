"""`sterna convert` on the command line: a file that runs, what is said about it, and one line for each failure."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from sterna.cli.main import main

sys.path.append(str(Path(__file__).parents[1] / "conversion"))
from bitnet_repositories import repository


def test_a_repository_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.gguf"
    assert main(["convert", str(repository("llama3-1.58")), str(output), "--type", "tq1_0", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["type"], found["head"], found["architecture"]) == ("TQ1_0", "F16", "llama")
    assert found["bytes"] == output.stat().st_size
    assert "were rounded to the float16 of TQ1_0" in err
    assert main(["convert", str(repository("llama3-1.58")), str(output)]) == 1
    assert capsys.readouterr().err == f"error: {output} exists already\n"
    assert main(["convert", str(repository("llama3-1.58")), str(output), "--overwrite", "--type", "I2_S", "--head", "BF16"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{output}: llama, 22 tensors, {output.stat().st_size / 1000:.1f} kB.\n")
    assert main(["run", str(output), "the end", "--raw", "-n", "4", "--temp", "0"]) == 0


def test_failures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        ([str(tmp_path / "none"), "x.gguf"], "none: is no folder"),
        ([str(repository("falcon-e-prequantized")), str(tmp_path / "x.gguf")], "--masters quantises"),
        ([str(repository("falcon-e")), str(tmp_path / "x.gguf"), "--type", "Q4_0"], "type is 'Q4_0', must be one of TQ1_0, TQ2_0, I2_S"),
        ([str(repository("falcon-e")), str(tmp_path / "no" / "x.gguf")], "there is no folder"),
    ):
        assert main(["convert", *arguments]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    copy = tmp_path / "copy"
    shutil.copytree(repository("falcon-e-prequantized"), copy)
    assert main(["convert", str(copy), str(tmp_path / "x.gguf"), "--masters"]) == 0

"""`sterna diff --against`: a model file that is wrong is named by the first value that differs, and its line."""

from __future__ import annotations

import contextlib
import importlib
import json
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
from sterna import reference
from sterna._core import Gguf
from sterna.arch import architectures
from sterna.cli.main import main
from sterna.errors import ArgumentError, FileError
from sterna.trace import trace

MODELS = Path(__file__).parents[2] / "models"
NORM = ('ops.rms_norm(x, w["ffn_norm"], eps)', "x")
# Oracle, model file, what is replaced by what, and the first value that differs, with a word of its line.
BROKEN = [
    ("qwen3", "qwen3", NORM, "layers.0/ffn_gate", "glu_mlp"),
    ("gpt-oss-small", "gpt_oss", (', sinks=w["attn_sinks"]', ""), "layers.0/attention", "ops.attention"),
    ("gpt-oss-small", "gpt_oss", ("layer % 2 == 0", "layer % 2 == 1"), "layers.0/attention", "ops.attention"),
    ("mixtral", "mixtral", ('style="interleaved", factors', "factors"), "layers.0/attn_q.heads.rope", "ops.rope"),
    ("mamba2-small", "mamba2", ('ops.rms_norm(x, w["attn_norm"], eps)', "x"), "layers.0/ssm_in", "ssm_in"),
    ("lfm2-small", "lfm2", ("c * ops.short_conv(b * x", "b * ops.short_conv(c * x"), "layers.0/shortconv.in_proj.split.2.mul", "short_conv"),
    ("qwen3next-small", "qwen3next", ("q.heads(key_dim)) * (1 / math.sqrt(key_dim))", "q.heads(key_dim))"), "layers.0/delta_rule", "delta_rule"),
]


@contextlib.contextmanager
def broken_file(name: str, old: str, new: str, folder: Path) -> Iterator[None]:
    """The model file with a change stands in for the one in the tree."""
    importlib.import_module(f"sterna.models.{name}")
    before = list(architectures)
    architectures[:] = [entry for entry in before if entry.module != f"sterna.models.{name}"]
    text = (MODELS / f"{name}.py").read_text(encoding="utf-8")
    assert old in text
    path = folder / "models" / f"{name}.py"
    path.parent.mkdir()
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    module = types.ModuleType("broken")
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), module.__dict__)
        yield
    finally:
        architectures[:] = before


@pytest.mark.parametrize(("name", "file", "change", "value", "word"), BROKEN)
def test_a_broken_model_file_is_named_by_value_and_line(
    name: str, file: str, change: tuple[str, str], value: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, before = str(oracle.SUBSET / name / "model.gguf"), tmp_path / "before.txt"
    assert main(["trace", model]) == 0
    before.write_text(capsys.readouterr().out, encoding="utf-8")
    arguments = ["diff", model, "--against", str(before), "--tokens", "40", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == []
    with broken_file(file, *change, tmp_path):
        assert main(arguments) == 1
        output = capsys.readouterr()
        assert main(["diff", model, "--tokens", "40"]) == 0  # the plan computes what the broken file says
    first = json.loads(output.out)[0]
    assert first["name"] == value
    assert f"First diverging value: {value}" in output.err
    path, _, line = first["source"].rpartition(":")
    folder = MODELS if path.startswith("models/") else MODELS.parent / "python"
    assert word in (folder / path.removeprefix("models/")).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_another_implementation_names_the_first_layer_that_is_wrong(tmp_path: Path) -> None:
    folder = oracle.SUBSET / "gpt-oss-small"
    file = Gguf(folder / "model.gguf")

    def compared() -> dict[str, bool]:
        program = trace(file).program
        expected = reference.other_implementation(folder / "reference.npz", program)
        assert len(expected.tokens) == 70
        return {d.name: d.diverges for d in reference.differences(file, program, expected)}

    assert compared() == {"embed": False, "layers.0/experts.add": False, "logits": False}
    with broken_file("gpt_oss", "RELEASED_ORIGINAL_CONTEXT = 4096", "RELEASED_ORIGINAL_CONTEXT = 0", tmp_path):
        assert compared() == {"embed": False, "layers.0/experts.add": True, "logits": True}


def test_a_decoder_reads_what_its_encoder_made_of_the_tokens(tmp_path: Path) -> None:
    path = oracle.model_path("flan-t5")
    if not path.exists():
        pytest.skip("flan-t5 is not in the subset of the oracles")
    file = Gguf(path)
    text = tmp_path / "before.txt"
    text.write_text(trace(file).program.text())
    tokens = [3, 5, 7, 9]
    found = list(reference.differences(file, trace(file).program, reference.other_program(text, file, tokens)))
    assert {"encoder/layers.0/attention", "layers.0/attention", "logits"} <= {d.name for d in found}
    assert all(d.error == 0 for d in found)
    with broken_file("t5", "layer=layer, scale=1.0, causal=False), w", "layer=layer, causal=False), w", tmp_path):
        program = trace(file).program
        found = [d for d in reference.differences(file, program, reference.other_program(text, file, tokens)) if d.diverges]
    assert found[0].name == "layers.0/attention.1"


def test_logits_alone_are_a_reference(tmp_path: Path) -> None:
    folder = oracle.SUBSET / "gemma2"
    program = trace(Gguf(folder / "model.gguf")).program
    expected = reference.other_implementation(folder / "reference.npz", program)
    assert list(expected.values) == [program.values[program.outputs()[0]].name]
    assert [d.diverges for d in reference.differences(Gguf(folder / "model.gguf"), program, expected)] == [False]


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    file = Gguf(oracle.SUBSET / "qwen3" / "model.gguf")
    program = trace(file).program
    path = tmp_path / "reference.txt"
    with pytest.raises(FileError, match=r"reference\.txt: No such file"):
        reference.other_program(path, file, [1])
    path.write_text("no program")
    with pytest.raises(ArgumentError, match=r"reference\.txt: is no program: .*line 1"):
        reference.other_program(path, file, [1])
    path.write_text(trace(Gguf(oracle.SUBSET / "gpt2" / "model.gguf")).program.text())
    with pytest.raises(ArgumentError, match=r"reference\.txt: is no program for the weights of .*model\.gguf"):
        reference.other_program(path, file, [1])
    with pytest.raises(ArgumentError, match=r"has no value of the reference"):
        list(reference.differences(file, program, reference.Reference([1], {"other": np.zeros(1)})))
    path = tmp_path / "reference.npz"
    with pytest.raises(FileError, match=r"reference\.npz: No such file"):
        reference.other_implementation(path, program)
    path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(ArgumentError, match=r"reference\.npz: "):
        reference.other_implementation(path, program)
    np.savez(path, logits_0=np.zeros((1, 8), np.float32))
    with pytest.raises(ArgumentError, match=r"reference\.npz: has no tokens_0 or no logits_0"):
        reference.other_implementation(path, program)

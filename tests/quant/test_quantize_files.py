"""sterna.quantize: whole files, with importance, all or nothing, and its command."""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import sterna
from quantize_models import CASES, Case, tensors_of, write_case
from sterna import _core
from sterna.errors import ArgumentError, FileError, ModelFormatError, NumericError, UnsupportedModelError
from sterna.quantization import quantize
from sterna.quantization.importance import load_importance

Floats = npt.NDArray[np.float32]
SMALL = Case(layers=2, kv_heads=2)
EXPERTS = Case(layers=2, experts=4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    write_case(path, SMALL, random_weights())
    return path


def random_weights() -> Floats:
    return np.random.default_rng(1).standard_normal(5000).astype(np.float32)


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def importance_of(case: Case) -> dict[str, Floats]:
    """Unequal importance for every matrix but the embedding, of a stack one after another."""
    rng = np.random.default_rng(2)
    return {
        name: rng.lognormal(0, 1, (shape[0] if len(shape) > 2 else 1, shape[-1])).astype(np.float32)
        for name, shape in tensors_of(case).items()
        if len(shape) > 1 and name != "token_embd.weight"
    }


def write_gguf_importance(path: Path, values: dict[str, Floats], count: float = 7) -> Path:
    writer = gguf.GGUFWriter(path, "none")
    writer.add_array("imatrix.datasets", ["text.txt", "more.txt"])
    writer.add_uint32("imatrix.chunk_count", 12)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, value in values.items():
        writer.add_tensor(name + ".in_sum2", value * np.float32(count))
        writer.add_tensor(name + ".counts", np.full((len(value), 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def binary_importance(values: dict[str, Floats], calls: int = 8) -> bytes:
    content = struct.pack("<i", len(values))
    for name, value in values.items():
        content += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, value.size)
        content += (value * np.float32(calls)).astype("<f4").tobytes()
    return content + struct.pack("<ii", 12, 8) + b"text.txt"


def test_a_file_is_what_its_type_says(tmp_path: Path, source: Path) -> None:
    stages: list[tuple[str, int, int | None]] = []
    done = sterna.quantize(
        source, tmp_path / "out.gguf", "q4_k_m", progress=lambda *stage: stages.append(stage), threads=2
    )
    before, after = _core.Gguf(source), _core.Gguf(tmp_path / "out.gguf")
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    assert [t.shape for t in after.tensors] == [t.shape for t in before.tensors]
    for tensor in after.tensors:
        weights = before.read(tensor.name).view(np.float32).reshape(tensor.shape)
        want = weights.view(np.uint8) if tensor.format == "F32" else _core.quantize(weights, tensor.format)
        assert after.read(tensor.name).tobytes() == want.tobytes()
    assert {t.format for t in after.tensors} == {"F32", "Q4_K", "Q6_K"}
    added = {"general.file_type": 15, "general.quantization_version": 2}
    assert {key: after.get(key) for key in added} == added
    for key in set(before.keys()) - set(added):
        assert (after.type_of(key), after.get(key)) == (before.type_of(key), before.get(key))
    assert set(after.keys()) == set(before.keys()) | set(added)
    total = sum(tensor.bytes for tensor in after.tensors)
    assert stages[-1] == ("quantize", total, total) and [s[1] for s in stages] == sorted(s[1] for s in stages)
    assert (done.bytes, done.type, done.fallbacks, done.requantized) == (total, "Q4_K_M", [], [])
    assert done.num_weights == sum(int(np.prod(t.shape)) for t in before.tensors)
    assert done.bits_per_weight == 8 * total / done.num_weights
    assert done.formats["Q6_K"] == sum(t.format == "Q6_K" for t in after.tensors)


def test_neither_threads_nor_the_form_of_the_source_change_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "out.gguf"
    write_case(source, EXPERTS, random_weights())
    quantize(source, target, "Q3_K_M", threads=1)
    want = target.read_bytes()
    # In many pieces.
    monkeypatch.setattr("sterna.quantization._CHUNK_WEIGHTS", 256)
    monkeypatch.setattr("sterna.quantization._CHUNK_BYTES", 100)
    for threads in (1, 5):
        quantize(source, target, "Q3_K_M", threads=threads, overwrite=True)
        assert target.read_bytes() == want


def test_splits_become_one_file(tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    write_case(whole, SMALL, random_weights())
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(tmp_path / "split.gguf", "llama", split_max_tensors=5)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = sorted(tmp_path.glob("split-*.gguf"))[0]
    quantize(first, target, "Q5_K_S")
    quantize(whole, tmp_path / "want.gguf", "Q5_K_S")
    assert target.read_bytes() == (tmp_path / "want.gguf").read_bytes()


def test_requantising_is_warned_of(tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    with caplog.at_level(logging.WARNING):
        quantize(source, first, "Q8_0")
        quantize(first, tmp_path / "same.gguf", "Q8_0")
    assert caplog.records == []
    assert (tmp_path / "same.gguf").read_bytes() == first.read_bytes()
    with caplog.at_level(logging.WARNING):
        done = quantize(first, second, "IQ4_NL", head="F16")
    assert "quantised already" in caplog.text
    # Nothing that is quantised is left out, whatever it becomes.
    assert len(done.requantized) == sum(t.format == "Q8_0" for t in _core.Gguf(first).tensors)
    weights = _core.dequantize(_core.Gguf(first).read("blk.0.ffn_up.weight"), "Q8_0")
    want = _core.quantize(weights.reshape(-1, SMALL.width), "IQ4_NL")
    assert _core.Gguf(second).read("blk.0.ffn_up.weight").tobytes() == want.tobytes()


@pytest.mark.parametrize("case", [SMALL, EXPERTS])
def test_both_forms_of_importance(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "source.gguf"
    write_case(source, case, random_weights())
    values = importance_of(case)
    forms = {
        "imatrix.gguf": lambda path: write_gguf_importance(path, values),
        "imatrix.dat": lambda path: path.write_bytes(binary_importance(values)),
    }
    for name, write in forms.items():
        write(tmp_path / name)
        loaded = load_importance(tmp_path / name)
        assert (loaded.num_chunks, loaded.datasets[0]) == (12, "text.txt")
        for tensor, value in values.items():
            np.testing.assert_allclose(loaded.of(tensor, *value.shape), value, rtol=1e-6)
        quantize(source, tmp_path / "out.gguf", "Q4_K_S", imatrix=tmp_path / name, overwrite=True)
        after, before = _core.Gguf(tmp_path / "out.gguf"), _core.Gguf(source)
        assert after.get("quantize.imatrix.file") == name
        assert after.get("quantize.imatrix.dataset") == "text.txt"
        assert after.get("quantize.imatrix.entries_count") == len(values)
        assert after.get("quantize.imatrix.chunks_count") == 12
        for tensor in ("blk.1.attn_q.weight", "output.weight", *(n for n in values if n.startswith("blk.1.ffn_up"))):
            info = after.require(tensor)
            weights = before.read(tensor).view(np.float32).reshape(values[tensor].shape[0], -1, case.width)
            want = [
                _core.quantize(matrix, info.format, np.ascontiguousarray(weigh))
                for matrix, weigh in zip(weights, loaded.of(tensor, len(weights), case.width), strict=True)
            ]
            assert after.read(tensor).tobytes() == np.concatenate(want).tobytes()
            plain = [_core.quantize(matrix, info.format) for matrix in weights]
            assert np.concatenate(plain).tobytes() != np.concatenate(want).tobytes()


def test_experts_that_saw_no_token_count_alike(tmp_path: Path) -> None:
    values = {"blk.0.ffn_up_exps.weight": np.ones((3, 4), np.float32)}
    path = write_gguf_importance(tmp_path / "imatrix.gguf", values, count=0)
    assert (load_importance(path).of("blk.0.ffn_up_exps.weight", 3, 4) == 1).all()


def test_importance_that_does_not_fit(tmp_path: Path, source: Path) -> None:
    target, path = tmp_path / "out.gguf", tmp_path / "imatrix.gguf"
    values = importance_of(SMALL)
    missing = {name: value for name, value in values.items() if name != "blk.1.ffn_up.weight"}
    write_gguf_importance(path, missing)
    with pytest.raises(ArgumentError, match=r"no importance for blk\.1\.ffn_up\.weight"):
        quantize(source, target, "Q4_K_M", imatrix=path)
    # Where nothing makes use of it, nothing is missed.
    quantize(source, target, "Q8_0", imatrix=path)
    target.unlink()
    # llama-imatrix knows nothing of an embedding that is not the output, but may.
    for name, width in (("blk.1.ffn_up.weight", 255), ("token_embd.weight", 512)):
        write_gguf_importance(path, values | {name: np.ones((1, width), np.float32)})
        with pytest.raises(ArgumentError, match=rf"importance of {name} has {width} values, its matrices 256 columns"):
            quantize(source, target, "Q4_K_M", imatrix=path)
    assert not target.exists() and leftovers(tmp_path) == []


GOOD = binary_importance({"a": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "number of entries at byte 0: takes 4 bytes, 0 are left"),
        (struct.pack("<i", 0), "number of entries at byte 0: is 0"),
        (struct.pack("<ii", 1, 1 << 30), "entry 0: name at byte 8: takes 1073741824 bytes"),
        (struct.pack("<ii", 1, -1), "entry 0: name at byte 4: is -1"),
        (GOOD[:20], r"entry 0 \(a\): values at byte 17: takes 16 bytes, 3 are left"),
        (GOOD[:17] + struct.pack("<f", np.nan) + GOOD[21:], "importance of a is nan for column 0"),
        (GOOD[:21] + struct.pack("<f", -1) + GOOD[25:], "importance of a is -0.125 for column 1"),
        (GOOD[:-8] + b"x", "name of the text"),
        (b"GGUF", "header"),
    ],
)
def test_malformed_importance(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=problem):
        load_importance(path)


def test_malformed_gguf_importance(tmp_path: Path) -> None:
    def write(*tensors: tuple[str, Floats]) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "none")
        for name, data in tensors:
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "imatrix.gguf"

    six, four = np.ones(6, np.float32), np.ones(4, np.float32)
    for tensors, problem in (
        ([("a", six)], "holds no importance"),
        ([("a.in_sum2", six)], r"a\.in_sum2 at byte \d+: must be F32 and have a\.counts beside it"),
        ([("a.in_sum2", six.astype(np.float16)), ("a.counts", four)], "must be F32"),
        ([("a.in_sum2", six), ("a.counts", four)], r"a\.in_sum2 at byte \d+: 6 sums for 4 matrices"),
        ([("a.in_sum2", six * np.float32(np.inf)), ("a.counts", six[:1])], "importance of a is inf for column 0"),
    ):
        with pytest.raises(ModelFormatError, match=problem):
            load_importance(write(*tensors))
    with pytest.raises(FileError, match="cannot read"):
        load_importance(tmp_path / "none.gguf")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    for value, problem in ((np.nan, "is -?nan: weights must be finite"), (1e9, "is 1e.09: the largest magnitude in Q")):
        weights = random_weights()
        weights[700] = value  # the second row of the embedding comes first
        write_case(tmp_path / "source.gguf", SMALL, weights)
        with pytest.raises(NumericError, match=r"token_embd\.weight\[700\] " + problem):
            quantize(tmp_path / "source.gguf", tmp_path / "out.gguf", "Q4_K_M", threads=3)
        assert sorted(os.listdir(tmp_path)) == ["source.gguf"]


def test_arguments_that_cannot_be(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    for problem, call in (
        ("there is no 'Q4_9'", lambda: quantize(source, target, "Q4_9")),
        ("head: there is no 'IQ1_S'; there are F32", lambda: quantize(source, target, "Q4_K_M", head="IQ1_S")),
        ("threads is 0", lambda: quantize(source, target, "Q4_K_M", threads=0)),
        ("exists already", lambda: quantize(source, target, "Q4_K_M")),
        ("same file", lambda: quantize(source, source, "Q4_K_M", overwrite=True)),
        ("none.gguf", lambda: quantize(tmp_path / "none.gguf", target, "Q4_K_M")),
    ):
        with pytest.raises((ArgumentError, FileError), match=problem):
            call()
    assert target.read_bytes() == b"precious"
    done = quantize(source, target, "F16", overwrite=True)
    assert done.bits_per_weight < 20 and target.read_bytes()[:4] == b"GGUF"


def test_integers_are_not_quantised(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 256), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up\.weight is I32, which has no weights"):
        quantize(tmp_path / "source.gguf", tmp_path / "out.gguf", "Q8_0")


@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "TQ2_0"])
def test_sources_of_other_formats(tmp_path: Path, source: Path, format: str) -> None:
    first = tmp_path / "first.gguf"
    quantize(source, first, format)
    quantize(first, tmp_path / "out.gguf", "Q6_K")
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        weights = _core.dequantize(_core.Gguf(first).read(name), format).reshape(-1, SMALL.width)
        want = _core.quantize(weights, "Q6_K")
        assert _core.Gguf(tmp_path / "out.gguf").read(name).tobytes() == want.tobytes()


@pytest.mark.parametrize(("order", "format"), [("x86", "I2_S"), ("arm", "I2_S_ARM")])
def test_one_scale_behind_all_rows(order: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # I2_S: pieces of the codes mean nothing without the scale at the end.
    from sterna.gguf_output import GgufOutput

    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, 6 * 256 // 4, dtype=np.uint8) & 0xAA  # codes 0 and 2
    data = codes.tobytes() + struct.pack("<f", 0.75) + bytes(28)
    with GgufOutput(tmp_path / "source.gguf", "bitnet-b1.58") as out:
        out.declare("blk.0.ffn_up.weight", (256, 6), "I2_S", len(data))
        out.begin()
        out.write("blk.0.ffn_up.weight", data)
    monkeypatch.setattr("sterna.quantization._CHUNK_WEIGHTS", 512)
    quantize(tmp_path / "source.gguf", tmp_path / "out.gguf", "TQ2_0", i2s_order=order)
    weights = _core.dequantize(np.frombuffer(data, np.uint8), format)
    assert set(np.unique(weights)) == {-0.75, 0.75}
    got = _core.dequantize(_core.Gguf(tmp_path / "out.gguf").read("blk.0.ffn_up.weight"), "TQ2_0")
    np.testing.assert_array_equal(got, weights)


SCRIPT = """
    import sys, signal
    from pathlib import Path
    from sterna.quantization import quantize
    def progress(stage, done, total):
        print("some", flush=True)
        if sys.argv[3] == "wait":
            signal.pause()
    if sys.argv[3] == "full":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), "Q8_0", progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and signals")
@pytest.mark.parametrize("what", ["SIGINT", "SIGKILL", "full"])
def test_half_a_model_gets_no_name(tmp_path: Path, source: Path, what: str) -> None:
    target = tmp_path / "out.gguf"
    mode = "full" if what == "full" else "wait"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(source), str(target), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if mode == "wait":
            assert process.stdout.readline() == "some\n"
            process.send_signal(getattr(signal, what))
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and not target.exists()
    assert len(leftovers(tmp_path)) == (1 if what == "SIGKILL" else 0)
    assert what != "full" or "no space left" in errors


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sterna", "quantize", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_command(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.gguf"
    result = command(source, target, "q4_k_m", "--head", "q8_0", "-t", "2")
    assert (result.returncode, result.stdout) == (0, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"{target}: ") and line.endswith(" bits per weight.")
    assert _core.Gguf(target).require("output.weight").format == "Q8_0"
    result = command(source, target, "Q2_K", "--overwrite", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["type"], report["path"]) == (0, "Q2_K", str(target))
    assert report["bits_per_weight"] == 8 * report["bytes"] / report["num_weights"]


def test_command_tells_fallbacks_once(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    write_case(source, replace(CASES["narrow"], layers=3), random_weights())
    result = command(source, tmp_path / "out.gguf", "IQ4_XS")
    assert result.returncode == 0
    [line] = [line for line in result.stderr.splitlines() if "IQ4_XS" in line]
    assert line.endswith("rows are no whole blocks of IQ4_XS, they became IQ4_NL.") and " and " in line


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (lambda s, t: (s, t), 2, "Missing argument 'TYPE'"),
        (lambda s, t: (s, t, "Q7"), 1, "error: type: there is no 'Q7'"),
        (lambda s, t: (s, s, "Q8_0"), 1, "exists already"),
        (lambda s, t: (s, s, "Q8_0", "--overwrite"), 1, "same file"),
        (lambda s, t: (t, s, "Q8_0"), 1, "out.gguf"),
        (lambda s, t: (s, t, "Q8_0", "--imatrix", s), 1, "holds no importance"),
        (lambda s, t: (s, t, "Q8_0", "-t", "0"), 2, "Invalid value for '-t'"),
    ],
)
def test_command_fails_in_one_line(
    tmp_path: Path, source: Path, arguments: Callable[[Path, Path], tuple[str | Path, ...]], code: int, problem: str
) -> None:
    before = source.read_bytes()
    result = command(*arguments(source, tmp_path / "out.gguf"))
    assert (result.returncode, result.stdout) == (code, "")
    assert problem in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == (1 if code == 1 else 2)
    assert os.listdir(tmp_path) == ["source.gguf"] and source.read_bytes() == before

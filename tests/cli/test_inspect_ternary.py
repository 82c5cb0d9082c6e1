"""`sterna inspect` of ternary files: what is in them, what is wrong with them, and in which order I2_S is; `i2s_order=`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sterna
import ternary_dialects as dialects
from kernel_cases import assert_same_bits
from oracle import model_path
from sterna import _core
from sterna.cli.main import main
from sterna.ternary import order_signs
from ternary_dialects import RawFile, ternary_twin

SEED = 51


@pytest.fixture(scope="module")
def source() -> RawFile:
    return RawFile.read(model_path("bitnet.TQ2_0"))


def inspected(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json", *options]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def trained(source: RawFile, dialect: str) -> RawFile:
    """With matrices whose columns have the more nonzero weights the larger the weight of the norm before them is."""
    rng = np.random.default_rng(SEED)
    norms = {t.name: np.frombuffer(t.data, "<f4") for t in source.tensors if len(t.dims) == 1}
    names = {"attn_q": "attn_norm", "attn_output": "attn_sub_norm", "ffn_gate": "ffn_norm", "ffn_down": "ffn_sub_norm"}

    def change(tensor: dialects.RawTensor) -> dialects.RawTensor:
        prefix, name = tensor.name.removesuffix(".weight").rsplit(".", 1)
        shape = tensor.shape
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        if name in names:
            weight = np.abs(norms[f"{prefix}.{names[name]}.weight"])
            share = 0.4 + 0.4 * np.clip((weight - weight.mean()) / (4 * weight.std()), -1, 1)
            codes = np.where(rng.random(shape) < share, rng.choice(np.array([-1, 1], np.int8), shape), np.int8(0))
        data = dialects.encode(dialect, codes, 0.05).tobytes()
        return dialects.RawTensor(tensor.name, tensor.dims, dialects.TYPES[dialect], data)

    return source.with_matrices(change)


@pytest.mark.parametrize("dialect", [*dialects.TERNARY, "Q1_0"])
def test_codes_and_scales(dialect: str, source: RawFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ternary_twin(source, dialect, signs_only=dialect == "Q1_0").write(tmp_path / "model.gguf")
    order = "arm" if dialect == "I2_S_ARM" else "x86"
    report = inspected(path, capsys, "--i2s-order", order)
    (row,) = report["ternary"]
    assert (row["format"], row["tensors"], row["one_scale"]) == (dialect, 14, 14)
    assert row["-1"] + row["0"] + row["1"] == pytest.approx(100, abs=0.02)
    assert row["fourth"] == 0
    assert (row["0"] == 0) == (dialect == "Q1_0")
    assert report["checks"]["ternary"] == "ok"
    assert ("i2s_order" in report) == dialect.startswith("I2_S")
    if dialect.startswith("I2_S"):
        assert report["i2s_order"]["assumed"].startswith(f"{order} (the file does not say; --i2s-order overrides)")
        assert "i2s order" not in report["checks"], "random weights say nothing"


def test_files_without_ternary_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspected(model_path("llama3"), capsys)
    assert "ternary" not in report
    assert "ternary" not in report["checks"]


@pytest.mark.parametrize("dialect", ["I2_S", "I2_S_ARM"])
@pytest.mark.parametrize("assumed", ["x86", "arm"])
def test_signs_of_the_order(
    dialect: str, assumed: str, source: RawFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(source, dialect).write(tmp_path / "model.gguf")
    right = "arm" if dialect == "I2_S_ARM" else "x86"
    signs = order_signs(_core.Gguf(path, i2s_order=assumed))
    assert signs is not None
    assert (signs.fits, signs.matrices) == (right, 14)
    report = inspected(path, capsys, "--i2s-order", assumed)
    assert report["i2s_order"]["weights_fit"].startswith(right)
    hint = f"the weights look like {right}: try --i2s-order {right}"
    assert report["checks"].get("i2s order") == (None if right == assumed else hint)
    assert main(["inspect", str(path), "--i2s-order", assumed]) == 0
    assert "i2s order" in capsys.readouterr().out


def test_norms_that_are_no_numbers_say_nothing(source: RawFile, tmp_path: Path) -> None:
    path = trained(source, "I2_S").write(tmp_path / "model.gguf")
    want = order_signs(_core.Gguf(path))
    norm = _core.Gguf(path).require("blk.0.attn_norm.weight")
    raw = bytearray(path.read_bytes())
    raw[norm.offset : norm.offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    signs = order_signs(_core.Gguf(path))
    assert want is not None
    assert signs is not None
    assert (signs.fits, signs.matrices) == ("x86", want.matrices - 3)


@pytest.mark.parametrize(
    ("dialect", "at", "byte", "fault"),
    [
        ("I2_S", 64 + 5, 0xFF, "has the code 3, which means nothing, 4 times, first in row 1, column 5"),
        (
            "TQ2_0",
            66 + 5,
            0xFF,
            "has the code 3, which no ternary quantiser writes and stands for 2, 4 times, first in row 1",
        ),
        ("TQ1_0", 7, 0x01, "has 1 bytes that no ternary quantiser writes"),
        ("TQ1_0", 53, 0x7E, "has 1 scales that are NaN or infinite"),
        ("Q2_0", 1, 0x7E, "has 1 scales that are NaN or infinite"),
        ("I2_S", -29, 0x7F, "has 1 scales that are NaN or infinite"),
    ],
)
def test_faults(
    dialect: str, at: int, byte: int, fault: str, source: RawFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ternary_twin(source, dialect).write(tmp_path / "model.gguf")
    tensor = _core.Gguf(path).require("blk.1.attn_v.weight")
    raw = bytearray(path.read_bytes())
    raw[tensor.offset + (at if at >= 0 else tensor.bytes + at)] = byte
    if at == -29:
        raw[tensor.offset + tensor.bytes + at - 1] = 0xFF
    path.write_bytes(raw)
    assert inspected(path, capsys)["checks"]["ternary"].startswith(f"tensor blk.1.attn_v.weight {fault}")


def test_i2s_order_of_load(source: RawFile, tmp_path: Path) -> None:
    path = ternary_twin(source, "TQ2_0").write(tmp_path / "a.gguf")
    arm = ternary_twin(source, "I2_S_ARM").write(tmp_path / "b.gguf")
    tokens = list(range(20, 40))
    with sterna.load(path, threads=1, context=128) as llm:
        want = llm.logits(tokens)
    with sterna.load(arm, threads=1, context=128, i2s_order="arm") as llm:
        assert_same_bits(llm.logits(tokens), want)
        assert llm.info.formats["I2_S_ARM"] == 14
    with sterna.load(arm, threads=1, context=128) as llm:
        assert (llm.logits(tokens) != want).any()
    with pytest.raises(sterna.ArgumentError, match="i2s_order is 'x64', must be one of x86, arm"):
        sterna.load(arm, i2s_order="x64")


def test_i2s_order_of_commands(
    source: RawFile, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(ternary_twin(source, "I2_S_ARM").write(tmp_path / "model.gguf"))
    text = tmp_path / "text.txt"
    text.write_text("ba da fa ha ja la na pa " * 4)
    bench = ["bench", path, "-p", "4", "-n", "0", "-r", "1", "-o", "json"]
    opened = []

    def gguf(*arguments: Any, **options: Any) -> _core.Gguf:
        opened.append(options)
        return real(*arguments, **options)

    real = _core.Gguf
    monkeypatch.setattr(_core, "Gguf", gguf)
    for command in (["plan", path], ["diff", path, "--tokens", "4"], bench, ["perplexity", path, str(text), "-c", "8"]):
        opened.clear()
        assert main([*command, "--i2s-order", "arm"]) == 0
        assert opened == [{"i2s_order": "arm"}]
        assert main([*command, "--i2s-order", "x87"]) == 2
    assert "Invalid value for '--i2s-order'" in capsys.readouterr().err

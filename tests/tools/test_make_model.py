"""The maker of synthetic models: formats as llama.cpp's quantiser chooses them, valid codes, activations in size."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
import sterna

_TOOL = Path(__file__).parents[2] / "tools" / "make_model.py"
# Rows of one super-block, sixteen layers: what the mix of Q4_K_M needs to show.
_TINY = {"layers": 16, "hidden": 256, "intermediate": 512, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 400}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model", _TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_model"] = module
    spec.loader.exec_module(module)
    return module


make_model = _load()


@pytest.mark.parametrize("file_format", sorted(make_model.FILE_FORMATS))
@pytest.mark.parametrize("name", ["1b", "2b-bitnet", "8b", "moe"])
def test_models_load_and_give_finite_logits(tmp_path: Path, name: str, file_format: str) -> None:
    shape = replace(make_model.SHAPES[name], **_TINY)
    path = tmp_path / "tiny.gguf"
    assert make_model.write_model(path, shape, file_format, name="tiny", seed=1) == path.stat().st_size
    with sterna.load(path, context=64, threads=1) as llm:
        assert llm.detokenize(llm.tokenize("w7 né")).strip() == "w7 né"
        logits = llm.logits(np.arange(360, 376).tolist())
        assert np.isfinite(logits).all()
        # The last norm makes rows of variance 1; rows of the output matrix have length 1, of a tied table 16.
        assert logits.std() == pytest.approx(16.0 if shape.tied else 1.0, rel=0.3)
        # Tokens stay apart, which a mixture of experts needs.
        between = np.corrcoef(logits)
        assert np.abs(between[~np.eye(16, dtype=bool)]).max() < 0.9


@pytest.mark.parametrize(("file_format", "layout"), [("I2_S", "ternary2"), ("Q2_0", "ternary2"), ("Q1_0", "binary")])
def test_dialects_of_bitnet_have_one_scale(tmp_path: Path, file_format: str, layout: str) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_model(path, replace(make_model.SHAPES["2b-bitnet"], **_TINY), file_format, name="tiny")
    file = sterna._core.Gguf(path)
    found = file.scan_ternary("blk.3.ffn_down.weight")
    assert found is not None and found.least_scale == found.largest_scale
    plan = sterna._core.compile_cpu(sterna.trace.trace(file).program, file, threads=1)
    assert layout in plan.layouts


def _formats(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_q4_k_m_is_the_mix_of_the_quantiser(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_model(path, replace(make_model.SHAPES["1b"], **_TINY), "Q4_K_M", name="tiny")
    formats = _formats(path)
    better = [i for i in range(16) if formats[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    # llama-quant.cpp, use_more_bits(i, 16)
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert better == [i for i in range(16) if formats[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert formats["token_embd.weight"] == "Q6_K" and "output.weight" not in formats
    assert {formats[f"blk.{i}.attn_q.weight"] for i in range(16)} == {"Q4_K"}


def test_a_head_of_its_own_format(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_model(path, replace(make_model.SHAPES["8b"], **_TINY), "TQ2_0", name="tiny", head="F16")
    formats = _formats(path)
    assert formats["output.weight"] == "F16" and formats["token_embd.weight"] == "Q4_K"
    assert formats["blk.0.ffn_up.weight"] == "TQ2_0"


@pytest.mark.parametrize("file_format", ["TQ1_0", "TQ2_0"])
def test_bitnet_matrices_are_ternary_with_one_scale(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_model(path, replace(make_model.SHAPES["2b-bitnet"], **_TINY), file_format, name="tiny")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.3.ffn_down.weight")
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    scale = np.abs(values).max()
    codes, counts = np.unique(values / scale, return_counts=True)
    assert codes.tolist() == [-1.0, 0.0, 1.0]
    assert counts.min() > 0.3 * values.size
    assert values.std() == pytest.approx(1 / np.sqrt(512 * 32), rel=0.02)


@pytest.mark.parametrize("file_format", ["TQ1_0", "TQ2_0"])
def test_ternary_codes_have_no_bias(file_format: str) -> None:
    blocks = np.zeros((256, 54 if file_format == "TQ1_0" else 66), np.uint8)
    blocks[:] = np.arange(256, dtype=np.uint8)[:, None]
    make_model._FILL[file_format](blocks, np.ones(256))
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[file_format])
    assert (values.sum(axis=0) == 0).all()


@pytest.mark.parametrize("file_format", ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "F16", "F32"])
def test_weights_have_the_deviation_asked_for(file_format: str) -> None:
    tensor = make_model.Tensor("w", (64, 1024), file_format, 1 / 32)
    raw = np.concatenate([c.view(np.uint8).ravel() for c in make_model.chunks(tensor, np.random.default_rng(0))])
    kind = gguf.GGMLQuantizationType[file_format]
    values = gguf.quants.dequantize(raw.reshape(64, -1), kind)
    assert values.shape == (64, 1024)
    assert values.std() == pytest.approx(1 / 32, rel=0.08)
    assert abs(values.mean()) < 0.15 / 32
    assert values.std(axis=1).min() > 0.75 / 32  # no row is empty


def test_an_interrupted_file_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_model, "chunks", fail)
    with pytest.raises(KeyboardInterrupt):
        make_model.write_model(tmp_path / "tiny.gguf", replace(make_model.SHAPES["1b"], **_TINY), "Q4_0", name="tiny")
    assert not (tmp_path / "tiny.gguf").exists()

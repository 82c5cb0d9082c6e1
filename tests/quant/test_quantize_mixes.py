"""File types: llama.cpp's choice of formats for the same models, as it wrote it (tools/make_quantize_reference.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantize_models import CASES, tensors_of, write_case
from sterna import _core
from sterna.errors import ArgumentError
from sterna.quantization.assignment import assign
from sterna.quantization.mixes import MIXES, find_mix

EXPECTED = json.loads(
    (Path(__file__).parent.parent / "data" / "quantize" / "llama_cpp_formats.json").read_text("utf-8")
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, _core.Gguf]:
    folder = tmp_path_factory.mktemp("models")
    for i, case in enumerate(CASES.values()):
        write_case(folder / f"{i}.gguf", case)
    return {name: _core.Gguf(folder / f"{i}.gguf") for i, name in enumerate(CASES)}


def expanded(short: dict[str, str], case: str) -> dict[str, str]:
    """Formats by tensor of the table's entry, which has those of a kind in the order of layers."""
    found = {}
    for name in tensors_of(CASES[case]):
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        formats = short[kind].split()
        found[name] = formats[0] if len(formats) == 1 else formats[int(name.split(".")[1])]
    return found


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "MXFP4"])
@pytest.mark.parametrize("case", CASES)
def test_formats_are_those_of_llama_cpp(files: dict[str, _core.Gguf], case: str, mix: str) -> None:
    short = EXPECTED[case][mix]
    if not short:
        assert mix == "Q2_K_S"  # which llama.cpp refuses without importance
        return
    got = assign(files[case], MIXES[mix], has_importance=CASES[case].importance)
    assert got.formats == expanded(short, case)


def test_table_covers_every_case() -> None:
    assert set(EXPECTED) == set(CASES)
    assert all(set(of_case) == set(MIXES) - {"MXFP4"} for of_case in EXPECTED.values())
    assert sum(not formats for of_case in EXPECTED.values() for formats in of_case.values()) <= len(CASES)


def test_mxfp4_is_that_throughout(files: dict[str, _core.Gguf]) -> None:
    formats = assign(files["shared keys"], MIXES["MXFP4"]).formats
    head = formats.pop("output.weight")
    assert (head, set(formats.values())) == ("Q6_K", {"MXFP4", "F32"})


def test_head(files: dict[str, _core.Gguf]) -> None:
    for case in ("tied", "shared keys"):
        without = assign(files[case], MIXES["Q4_K_M"]).formats
        changed = assign(files[case], MIXES["Q4_K_M"], head="Q8_0").formats
        heads = {"token_embd.weight", "output.weight"} & set(without)
        assert all(changed[name] == "Q8_0" for name in heads)
        assert {name: f for name, f in changed.items() if name not in heads} == {
            name: f for name, f in without.items() if name not in heads
        }
    with pytest.raises(ArgumentError, match=r"head: rows of 288 weights of output\.weight .* Q6_K"):
        assign(files["narrow"], MIXES["Q4_K_M"], head="Q6_K")


def test_fallbacks_are_told(files: dict[str, _core.Gguf]) -> None:
    found = assign(files["narrow"], MIXES["Q4_K_M"]).fallbacks
    assert ("blk.3.attn_q.weight", "Q4_K", "Q5_0") in found
    found = assign(files["odd"], MIXES["Q4_0"]).fallbacks
    assert ("blk.0.attn_q.weight", "Q4_0", "F16") in found
    assert assign(files["tied"], MIXES["Q4_K_M"]).fallbacks == []


def test_names_of_mixes() -> None:
    assert find_mix("q4_k_m") == ("Q4_K_M", MIXES["Q4_K_M"])
    assert find_mix("Q5_K")[0] == "Q5_K_M"
    with pytest.raises(ArgumentError, match="there is no 'Q4'; there are F32, F16"):
        find_mix("Q4")

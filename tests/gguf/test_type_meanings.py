"""Type ids that mean several formats: the room of a tensor and the architecture tell them apart."""

from __future__ import annotations

import struct
from itertools import product
from pathlib import Path

import pytest
from sterna._core import Gguf
from sterna.errors import ModelFormatError, SternaError, UnsupportedModelError
from ternary_dialects import RawFile, RawTensor

ROWS, COLUMNS = 96, 512
N = ROWS * COLUMNS
IQ4_NL = N // 32 * 18
I2_S = N // 4 + 32
MXFP4 = N // 32 * 17
Q2_0 = N // 64 * 18
Q2_0_G128 = N // 128 * 34
# The sizes that bitnet.cpp's tools have given to TL1 and TL2.
TL1 = [N // 4, N // 4 + 32]
TL2_CODES = (COLUMNS - 256) * ROWS // 3 * 5 // 8 + 256 * ROWS // 2 * 4 // 8
TL2 = [N // 4 + 32, TL2_CODES, TL2_CODES + 32]


def file_of(
    path: Path, *tensors: tuple[int, int], architecture: str = "llama", columns: int = COLUMNS, cut: int = 0
) -> Path:
    """A file of tensors [ROWS, columns], each a type and its bytes."""
    text = architecture.encode()
    pairs = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, len(text)) + text
    table = tuple(RawTensor(f"w{i}", (columns, ROWS), kind, bytes(size)) for i, (kind, size) in enumerate(tensors))
    RawFile(1, pairs, table).write(path)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path


def formats(path: Path) -> list[tuple[str, int]]:
    return [(tensor.format, tensor.bytes) for tensor in Gguf(path).tensors]


@pytest.mark.parametrize("architecture", ["llama", "bitnet-b1.58"])
@pytest.mark.parametrize("count", [1, 3])
def test_i2_s(architecture: str, count: int, tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.gguf", *[(36, I2_S)] * count, (0, 4 * N), architecture=architecture)
    assert formats(path) == [("I2_S", I2_S)] * count + [("F32", 4 * N)]
    assert [t.format for t in Gguf(path, i2s_order="arm").tensors] == ["I2_S_ARM"] * count + ["F32"]
    path = file_of(tmp_path / "b.gguf", (0, 4 * N), (36, I2_S), architecture=architecture)
    assert formats(path)[1] == ("I2_S", I2_S)


@pytest.mark.parametrize(("kind", "name"), [(36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8")])
def test_repacked_iq4_nl(kind: int, name: str, tmp_path: Path) -> None:
    for tensors in ([(kind, IQ4_NL)], [(kind, IQ4_NL), (0, 4 * N)]):
        with pytest.raises(ModelFormatError, match=f"has type {kind}, {name}, which was removed from GGUF"):
            Gguf(file_of(tmp_path / "a.gguf", *tensors))


def test_short_i2_s(tmp_path: Path) -> None:
    """Without its scale, or cut: the data pass the end, whatever the size looks like otherwise."""
    for size in (N // 4, N // 4 + 28, 32):
        path = file_of(tmp_path / "a.gguf", (36, size), architecture="bitnet", cut=-size % 32)
        with pytest.raises(ModelFormatError, match="pass the end of the file"):
            Gguf(path)
    with pytest.raises(ModelFormatError, match="overlap those of"):
        Gguf(file_of(tmp_path / "a.gguf", (36, N // 4), (0, 4 * N), architecture="bitnet"))


def test_i8_s(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="I8_S of bitnet.cpp, which is for activations"):
        Gguf(file_of(tmp_path / "a.gguf", (37, N), architecture="bitnet"))


@pytest.mark.parametrize("architecture", ["llama", "bitnet", "bitnet-b1.58"])
@pytest.mark.parametrize("last", [True, False])
def test_table_lookups_say_how_to_go_on(architecture: str, last: bool, tmp_path: Path) -> None:
    sizes = [(38, "TL1", size) for size in TL1] + [(39, "TL2", size) for size in TL2]
    for kind, name, size in sizes:
        tensors = [(kind, size)] if last else [(kind, size), (0, 4 * N)]
        path = file_of(tmp_path / "a.gguf", *tensors, architecture=architecture)
        with pytest.raises(UnsupportedModelError, match=f"type {kind}, {name} of bitnet.cpp.*sterna convert.*I2_S"):
            Gguf(path)


@pytest.mark.parametrize("architecture", ["llama", "gpt-oss", "bitnet"])
def test_mxfp4(architecture: str, tmp_path: Path) -> None:
    for tensors in ([(39, MXFP4)], [(39, MXFP4), (0, 4 * N)], [(0, 4 * N), (39, MXFP4)]):
        path = file_of(tmp_path / "a.gguf", *tensors, architecture=architecture)
        assert ("MXFP4", MXFP4) in formats(path)


def test_truncated_mxfp4_is_no_tl2(tmp_path: Path) -> None:
    for cut in (1, 32, MXFP4 // 2):
        with pytest.raises(ModelFormatError, match="pass the end of the file"):
            Gguf(file_of(tmp_path / "a.gguf", (39, MXFP4), cut=cut, architecture="gpt-oss"))


@pytest.mark.parametrize("count", [1, 3])
def test_blocks_of_q2_0(count: int, tmp_path: Path) -> None:
    for size, name in ((Q2_0, "Q2_0"), (Q2_0_G128, "Q2_0_G128")):
        for rest in ([], [(0, 4 * N)]):
            path = file_of(tmp_path / "a.gguf", *[(42, size)] * count, *rest, architecture="qwen3")
            assert formats(path)[:count] == [(name, size)] * count


def test_q2_0_is_one_or_the_other(tmp_path: Path) -> None:
    for order in ((Q2_0, Q2_0_G128), (Q2_0_G128, Q2_0)):
        with pytest.raises(ModelFormatError, match=r"overlap those of|pass the end"):
            Gguf(file_of(tmp_path / "a.gguf", *((42, size) for size in order)))
    # Cut, it is not the smaller one.
    for cut in (1, Q2_0 - Q2_0_G128 - 32, Q2_0 - Q2_0_G128 + 32):
        with pytest.raises(ModelFormatError, match="pass the end"):
            Gguf(file_of(tmp_path / "a.gguf", (42, Q2_0), (42, Q2_0), cut=cut))


@pytest.mark.parametrize(("kind", "name"), [(142, "PQ2_0"), (143, "PTQ1_0")])
def test_types_of_prism_ml(kind: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=f"type {kind}, {name} of PrismML's"):
        Gguf(file_of(tmp_path / "a.gguf", (kind, Q2_0_G128)))


def test_any_room_is_an_answer_or_an_error(tmp_path: Path) -> None:
    """No type takes another's bytes: what is accepted has its own size, up to the padding."""
    own = {"I2_S": I2_S, "MXFP4": MXFP4, "Q2_0": Q2_0, "Q2_0_G128": Q2_0_G128}
    sizes = sorted({0, 32, IQ4_NL, I2_S, MXFP4, Q2_0, Q2_0_G128, *TL1, *TL2, 4 * N})
    for kind, size, architecture in product((36, 37, 38, 39, 42), sizes, ("llama", "bitnet")):
        path = file_of(tmp_path / "a.gguf", (kind, size), (0, 4 * N), architecture=architecture)
        try:
            name, found = formats(path)[0]
        except SternaError:
            continue
        assert found == own[name] <= size + 31
        assert name != "MXFP4" or size not in TL2
        assert name != "Q2_0_G128" or size == Q2_0_G128


@pytest.mark.parametrize("columns", [1, 32, 96, 127, 192])
def test_rows_of_part_blocks(columns: int, tmp_path: Path) -> None:
    for kind in (36, 39, 42):
        elements = ROWS * columns
        path = file_of(tmp_path / "a.gguf", (kind, elements // 4 + 32), (0, 4 * elements), columns=columns)
        with pytest.raises(SternaError):
            Gguf(path)

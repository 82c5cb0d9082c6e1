"""What the reader finds in good files, against the reader of the `gguf` package: all metadata, all tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_image import TYPE_NAMES, seed
from reference import reference_dir
from sterna._core import Gguf
from sterna.errors import ModelFormatError

MODELS = sorted(reference_dir("oracle").glob("*/model.gguf"))


def compare(path: Path) -> None:
    ours, theirs = Gguf(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.keys() == list(fields)
    assert ours.version == theirs.fields["GGUF.version"].contents()
    assert ours.alignment == theirs.alignment
    assert ours.file_bytes == path.stat().st_size
    for key, field in fields.items():
        kind = "array" if field.types[0] == gguf.GGUFValueType.ARRAY else TYPE_NAMES[field.types[0]]
        if kind == "array" and len(field.types) > 1:
            kind = f"array[{TYPE_NAMES[field.types[1]]}]"
        assert ours.type_of(key).startswith(kind)
        expected, found = field.contents(), ours.get(key)
        if isinstance(found, np.ndarray):
            assert ours.number_array(key) == (found.dtype.name, found.tobytes())
            found = found.tolist()
            assert ours.array_length(key) == len(found)
        assert found == expected, key
        assert key in ours

    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for tensor, reference in zip(ours.tensors, theirs.tensors, strict=True):
        assert tensor.format == reference.tensor_type.name
        assert tensor.shape == tuple(int(n) for n in reversed(reference.shape))
        assert tensor.bytes == reference.n_bytes
        assert tensor.offset == reference.data_offset
        assert np.array_equal(ours.read(tensor.name), np.asarray(reference.data).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("version", [2, 3])
def test_seed(tmp_path: Path, version: int) -> None:
    path = tmp_path / "seed.gguf"
    path.write_bytes(seed(version).build())
    compare(path)


def test_written_by_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_token_list(["a", "b\u00df", ""])
    writer.add_token_scores([0.0, -1.5, 2.25])
    writer.add_bool("x.flag", True)
    writer.add_float64("x.double", 1e300)
    random = np.random.default_rng(5)
    writer.add_tensor("blk.0.attn_q.weight", random.standard_normal((6, 64), np.float32))
    packed = gguf.quants.quantize(random.standard_normal((3, 64), np.float32), gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("blk.0.attn_k.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    compare(path)
    model = Gguf(path)
    assert model.find("blk.0.attn_k.weight").shape == (3, 64)
    assert model.get_strings("tokenizer.ggml.tokens", 3) == ["a", "b\u00df", ""]
    assert model.string_array_at("tokenizer.ggml.tokens", 1) == "b\u00df".encode()
    assert model.number_array("tokenizer.ggml.scores") == ("float32", np.array([0, -1.5, 2.25], "<f4").tobytes())
    for key in ("tokenizer.ggml.tokens", "llama.block_count", "x.missing"):
        with pytest.raises(ModelFormatError, match=key):
            model.number_array(key)


@pytest.mark.reference
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_reference_model(path: Path) -> None:
    if path.parent.name != "llama-256.Q2_0":
        compare(path)
        return
    # Younger than the gguf package: held against the same model in a format that the package knows.
    ours, twin = Gguf(path), Gguf(path.parents[1] / "llama-256.Q1_0" / "model.gguf")
    assert ours.keys() == twin.keys()
    assert [(t.name, t.shape) for t in ours.tensors] == [(t.name, t.shape) for t in twin.tensors]
    for tensor, other in zip(ours.tensors, twin.tensors, strict=True):
        if other.format == "Q1_0":
            assert (tensor.format, tensor.bytes * 64) == ("Q2_0", int(np.prod(tensor.shape)) * 18)
        else:
            assert np.array_equal(ours.read(tensor.name), twin.read(other.name))

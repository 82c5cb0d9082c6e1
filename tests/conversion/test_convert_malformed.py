"""Repositories that are torn, contradict themselves or are of another kind: one typed error that names the place, and no file."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sterna
from bitnet_repositories import maker, repository
from sterna.conversion.repository import Repository

Tensors = dict[str, tuple[str, Any]]
Q = "model.layers.1.self_attn.q_proj"


def failure(path: Path, error: type[Exception], **options: Any) -> str:
    """What `convert` says, after a look at what it left behind."""
    target = path.parent / "out" / "model.gguf"
    target.parent.mkdir(exist_ok=True)
    with pytest.raises(error) as failed:
        sterna.convert(path, target, **options)
    assert os.listdir(target.parent) == []
    return str(failed.value)


def changed(folder: Path, name: str, change: Callable[[Tensors], Any]) -> Path:
    """A copy of a repository with other tensors."""
    path = folder / name
    shutil.copytree(repository(name), path)
    tensors, _ = maker.weights_of(name)
    change(tensors)
    maker.write_safetensors(path / "model.safetensors", tensors)
    return path


def configured(folder: Path, name: str, **config: Any) -> Path:
    """A copy of a repository with other values in config.json; None removes a key."""
    path = folder / name
    shutil.copytree(repository(name), path)
    values = json.loads((path / "config.json").read_text("utf-8")) | config
    values = {key: value for key, value in values.items() if value is not None}
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, sterna.UnsupportedModelError, "architectures is ['GPT2LMHeadModel']; known are BitNet"),
        ({"architectures": None}, sterna.UnsupportedModelError, "architectures is []"),
        ({"hidden_act": "gelu"}, sterna.UnsupportedModelError, "hidden_act is 'gelu': LlamaForCausalLM is known with silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, sterna.UnsupportedModelError, "quantization_config.quant_method is 'gptq'"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}, sterna.UnsupportedModelError, "quantization_config.linear_class is 'x'"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}}, sterna.UnsupportedModelError, "quantization_mode is 'x'"),
        ({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0.mlp"]}}, sterna.UnsupportedModelError, "a block with 'model.layers.0.mlp' left in"),
        ({"quantization_config": 3}, sterna.ModelFormatError, "quantization_config is 3, expected an object"),
        ({"hidden_size": None}, sterna.ModelFormatError, "config.json: hidden_size is missing"),
        ({"hidden_size": 1e3}, sterna.ModelFormatError, "hidden_size is 1000.0, expected an integer from 1"),
        ({"num_hidden_layers": 10**9}, sterna.ModelFormatError, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 1}, sterna.UnsupportedModelError, "tensor model.layers.1.input_layernorm.weight has no place"),
        ({"num_hidden_layers": 3}, sterna.ModelFormatError, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_key_value_heads": 3}, sterna.ModelFormatError, "num_key_value_heads is 3, does not divide num_attention_heads 4"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, sterna.ModelFormatError, "does not divide hidden_size 256"),
        ({"head_dim": 33}, sterna.ModelFormatError, "head_dim is 33, expected an even number"),
        ({"head_dim": 32}, sterna.ModelFormatError, "has shape [128, 256], expected [32, 256] for 128 rows"),
        ({"rms_norm_eps": 0}, sterna.ModelFormatError, "rms_norm_eps is 0, expected a finite number above 0"),
        ({"rms_norm_eps": True}, sterna.ModelFormatError, "rms_norm_eps is True, expected a number"),
        ({"rope_scaling": {"rope_type": "longrope"}}, sterna.UnsupportedModelError, "rope_scaling.rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, sterna.ModelFormatError, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, sterna.UnsupportedModelError, "rope_parameters.rope_type is 'dynamic'"),
        ({"architectures": [["a"]]}, sterna.UnsupportedModelError, "architectures is [['a']]; known are"),
        ({"rms_norm_eps": 10**400}, sterna.ModelFormatError, "rms_norm_eps is 1000"),
        ({"rms_norm_eps": 1e-320}, sterna.ModelFormatError, "rms_norm_eps is 1e-320, expected a finite number above 0"),
        ({"rope_theta": 1e300}, sterna.ModelFormatError, "rope_theta is 1e+300, expected a finite number above 0"),
        ({"layer_types": [["a"]]}, sterna.UnsupportedModelError, "layer_types is [['a']]: only full_attention"),
        ({"sliding_window": 128}, sterna.UnsupportedModelError, "sliding_window is 128"),
        ({"partial_rotary_factor": 0.5}, sterna.UnsupportedModelError, "partial_rotary_factor is 0.5"),
        ({"tie_word_embeddings": False}, sterna.ModelFormatError, "tensor lm_head.weight is missing"),
        ({"vocab_size": 299}, sterna.ModelFormatError, "model.embed_tokens.weight: is BF16 [300, 256], expected floating point [299, 256]"),
    ],
)  # fmt: skip
def test_configurations(config: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    message = failure(configured(tmp_path, "falcon-e", **config), error)
    assert says in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("kind", "file", "change", "says"),
    [
        ("falcon-e", "tokenizer_config.json", {"tokenizer_class": ["a"]}, "tokenizer_class is ['a'], expected a string"),
        ("falcon-e", "tokenizer_config.json", {"bos_token": "\ud800"}, "is not JSON ('utf-8' codec can't encode character '\\ud800'"),
        ("falcon-e", "tokenizer_config.json", {"chat_template": "\udc00"}, "is not JSON"),
        ("falcon-e", "generation_config.json", {"do_sample": True, "top_p": 10**400}, "top_p is 1000"),
        ("bitnet-1bitllm", "tokenizer_config.json", {"added_tokens_decoder": {"5": None}}, "added_tokens_decoder.5 is null"),
        ("bitnet-1bitllm", "tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {}}}, "99... is no token id"),
        ("llama3-1.58", "model.safetensors.index.json", {"weight_map": {"a": "x\0y"}}, "weight_map.a is 'x\\x00y', expected the name"),
    ],
)  # fmt: skip
def test_values_of_other_json_files(kind: str, file: str, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    shutil.copytree(repository(kind), path)
    values = json.loads((path / file).read_text("utf-8")) if (path / file).exists() else {}
    (path / file).write_text(json.dumps(values | change), encoding="utf-8")
    message = failure(path, sterna.ModelFormatError)
    assert says in message and file in message


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(repository("falcon-e"), path)
    templates = [{"name": ["odd"], "template": "a"}, {"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}), encoding="utf-8")
    sterna.convert(path, tmp_path / "a.gguf")
    assert sterna._core.Gguf(tmp_path / "a.gguf").get("tokenizer.chat_template") == "c"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(repository("llama3-1.58"), path)
    shard = path / "model-00001-of-00003.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    assert "model-00001-of-00003.safetensors: is no regular file" in failure(path, sterna.FileError)
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("/dev/zero")
    assert "config.json: is no regular file" in failure(path, sterna.FileError)


def cut(tensors: Tensors, key: str, rows: int) -> None:
    tensors[key] = (tensors[key][0], tensors[key][1][:rows])


def replaced(tensors: Tensors, key: str, dtype: str, values: Any) -> None:
    tensors[key] = (dtype, np.asarray(values))


def at(tensors: Tensors, key: str, place: tuple[int, ...], value: Any) -> None:
    array = tensors[key][1].copy()
    array[place] = value
    tensors[key] = (tensors[key][0], array)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q}.weight"), f"tensor {Q}.weight is missing"),
        (lambda t: t.pop(f"{Q}.weight_scale"), f"tensor {Q}.weight_scale is missing"),
        (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda t: cut(t, f"{Q}.weight", 63), f"tensor {Q}.weight: has shape [63, 256], expected [64, 256]"),
        (lambda t: cut(t, "model.norm.weight", 63), "tensor model.norm.weight: is BF16 [63], expected floating point [256]"),
        (lambda t: replaced(t, f"{Q}.weight", "I8", np.zeros((64, 256), np.int8)), f"tensor {Q}.weight: has dtype I8"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "U8", np.zeros(1, np.uint8)), f"{Q}.weight_scale: is U8 [1], expected one"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "F32", np.ones(4, np.float32)), f"{Q}.weight_scale: is F32 [4], expected one"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "F32", np.float32([np.nan])), f"{Q}.weight_scale: is nan"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "F32", np.float32([0])), f"{Q}.weight_scale: is 0.0"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "F32", np.float32([-1])), f"{Q}.weight_scale: is -1.0"),
        (lambda t: replaced(t, f"{Q}.weight_scale", "F32", np.float32([1e30])), "its scale is 1e+30, which the float16 of TQ2_0 does not hold"),
        (lambda t: at(t, f"{Q}.weight", (3, 7), 0b01110101), f"tensor {Q}.weight: row 131, column 7 has code 3"),
        (lambda t: at(t, f"{Q}.weight", (0, 0), 0b11), f"tensor {Q}.weight: row 0, column 0 has code 3"),
        (lambda t: at(t, "model.embed_tokens.weight", (299, 255), 0x7FC0), "model.embed_tokens.weight: holds nan at [299, 255]"),
        (lambda t: at(t, "model.embed_tokens.weight", (2, 5), 0x7F00), "which F16 does not; use BF16"),
        (lambda t: at(t, "model.norm.weight", (9,), 0x7F80), "tensor model.norm.weight: holds inf at [9]"),
    ],
)  # fmt: skip
def test_tensors(change: Callable[[Tensors], Any], says: str, tmp_path: Path) -> None:
    assert says in failure(changed(tmp_path, "bitnet-2b4t", change), sterna.ModelFormatError)


@pytest.mark.parametrize(("head", "value", "other"), [("Q8_0", 1e8, "BF16"), ("BF16", 3.4028e38, "F32")])
def test_heads_that_do_not_fit(head: str, value: float, other: str, tmp_path: Path) -> None:
    embedding = np.full((300, 256), value, np.float32)
    path = changed(tmp_path, "bitnet-2b4t", lambda t: replaced(t, "model.embed_tokens.weight", "F32", embedding))
    message = failure(path, sterna.ModelFormatError, head=head)
    assert f"holds {value:.6g}, which {head} does not; use {other} for the head" in message


@pytest.mark.parametrize(
    ("magnitude", "divisor", "says"),
    [(1e30, 1e-30, "its scale is inf in float32"), (1e-30, 1e30, "its scale is 0 in float32"), (1e-44, 1.0, "whose reciprocal no float32 holds")],
)  # fmt: skip
def test_scales_that_no_float32_holds(magnitude: float, divisor: float, says: str, tmp_path: Path) -> None:
    """Of ternary floats, with a `weight_scale` beside them."""

    def scaled(tensors: Tensors) -> None:
        signs = np.where(np.arange(256 * 256) % 3, 1, -1).reshape(256, 256)
        replaced(tensors, f"{Q}.weight", "F32", (signs * magnitude).astype(np.float32))
        replaced(tensors, f"{Q}.weight_scale", "F32", np.float32([divisor]))

    assert says in failure(changed(tmp_path, "bitnet-1bitllm", scaled), sterna.ModelFormatError, type="I2_S")


def test_what_has_no_place(tmp_path: Path) -> None:
    bias = changed(tmp_path, "bitnet-2b4t", lambda t: replaced(t, f"{Q}.bias", "F32", np.ones(256, np.float32)))
    assert f"tensor {Q}.bias has no place" in failure(bias, sterna.UnsupportedModelError)


def test_buffers_of_transformers_are_left_out(tmp_path: Path) -> None:
    path = changed(tmp_path, "bitnet-2b4t", lambda t: replaced(t, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", np.ones(32, np.float32)))
    sterna.convert(path, tmp_path / "a.gguf")


def test_masters(tmp_path: Path) -> None:
    broken = changed(tmp_path, "bitnet-2b4t-masters", lambda t: at(t, f"{Q}.weight", (200, 3), 0x7FC0))
    assert f"tensor {Q}.weight: holds nan at [200, 3]" in failure(broken, sterna.ModelFormatError)
    message = failure(repository("falcon-e-prequantized"), sterna.UnsupportedModelError)
    assert "its values are not ternary" in message and "--masters" in message


@pytest.mark.parametrize("width", [320, 384])
def test_rows_that_do_not_fill_blocks(width: int, tmp_path: Path) -> None:
    def narrow(tensors: Tensors) -> None:
        for i in range(2):
            for part, shape in (("gate", (width, 256)), ("up", (width, 256)), ("down", (256, width))):
                key, (n, k) = f"model.layers.{i}.mlp.{part}_proj.weight", shape
                tensors[key] = ("U8", tensors[key][1].reshape(-1)[: n * k // 4].reshape(n // 4, k))
            cut(tensors, f"model.layers.{i}.mlp.ffn_sub_norm.weight", width)

    path = changed(tmp_path, "bitnet-2b4t", narrow)
    values = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps(values | {"intermediate_size": width}), encoding="utf-8")
    message = failure(path, sterna.UnsupportedModelError)
    assert f"rows of {width} weights do not fill blocks of 256, which TQ2_0 has" in message
    assert ("; I2_S can hold it" in message) == (width == 384)
    if width == 384:
        sterna.convert(path, tmp_path / "a.gguf", type="I2_S")
    else:
        assert "blocks of 128, which I2_S has" in failure(path, sterna.UnsupportedModelError, type="I2_S")


def torn(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:size])


def header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    values = json.loads(data[8 : 8 + length])
    text = edit(values) or json.dumps(values)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[8 + length :])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: torn(p, 0), "the file has 0 bytes"),
        (lambda p: torn(p, 4), "the file has 4 bytes"),
        (lambda p: torn(p, 100), "header: its length is"),
        (lambda p: torn(p, p.stat().st_size - 1), "ends at byte"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "the tensors end at byte"),
        (lambda p: p.write_bytes(struct.pack("<Q", 1 << 62) + b"{}"), "header: its length is 4611686018427387904"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"), "header: is not a JSON object"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"\xff\xfe"), "header: is not JSON"),
        (lambda p: header(p, lambda h: '{"a":1,"a":2}'), "'a' stands there twice"),
        # The shape would multiply to a number of half a megabyte; a search for each name takes minutes.
        (lambda p: header(p, lambda h: h.update(x={"dtype": "U8", "shape": [1 << 40] * 100_000, "data_offsets": [0, 0]})), "are not lists of sizes"),
        (lambda p: header(p, lambda h: "{" + "".join(f'"{i}":0,' for i in range(100_000)) + '"99999":0}'), "'99999' stands there twice"),
        (lambda p: header(p, lambda h: h.update({"x" * 600: {}})), "its name has 600 characters"),
        (lambda p: header(p, lambda h: "[" * 100_000), "header: is not JSON"),
        (lambda p: header(p, lambda h: h.update(x=3)), "tensor x: its entry is not a JSON object"),
        (lambda p: header(p, lambda h: h["model.norm.weight"].update(dtype="F9")), "tensor model.norm.weight: dtype is 'F9'"),
        (lambda p: header(p, lambda h: h["model.norm.weight"].update(shape=[-1])), "are not lists of sizes"),
        (lambda p: header(p, lambda h: h["model.norm.weight"].update(shape=[1 << 39, 1 << 39])), "takes"),
        (lambda p: header(p, lambda h: h["model.norm.weight"].update(shape=[255])), "takes 510 bytes"),
        (lambda p: header(p, lambda h: h["model.norm.weight"].update(data_offsets=[0, 512])), "begins at byte"),
        (lambda p: header(p, lambda h: h.pop("model.norm.weight") and None), "the tensors end at byte"),
    ],
)  # fmt: skip
def test_safetensors_files(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = changed(tmp_path, "bitnet-2b4t", lambda tensors: None)
    damage(path / "model.safetensors")
    message = failure(path, sterna.ModelFormatError)
    assert says in message and "model.safetensors" in message


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = changed(tmp_path, "bitnet-2b4t", lambda tensors: None)

    def shrink(stage: str, done: int, total: int | None) -> None:
        os.truncate(path / "model.safetensors", 200_000)

    assert "in the middle of it" in failure(path, sterna.ModelFormatError, progress=shrink)


def test_any_damaged_header_is_a_typed_error(tmp_path: Path) -> None:
    path = changed(tmp_path, "bitnet-2b4t", lambda tensors: None)
    file = path / "model.safetensors"
    good = file.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in random.integers(0, 8 + length, random.integers(1, 4)):
            data[place] = random.integers(0, 256)
        file.write_bytes(data)
        try:
            with Repository(path) as opened:
                for tensor in opened.tensors.values():
                    if tensor.dtype in ("U8", "BF16"):
                        tensor.all()
        except sterna.SternaError:
            refused += 1
    assert refused > 200  # the others have another name, a space elsewhere, or one integer type for another


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (lambda i: i["weight_map"].update({"model.norm.weight": "../x.safetensors"}), sterna.ModelFormatError, "weight_map.model.norm.weight is '../x.safetensors'"),
        (lambda i: i["weight_map"].update({"model.norm.weight": "gone.safetensors"}), sterna.FileError, "gone.safetensors: No such file"),
        (lambda i: i["weight_map"].update({"model.norm.weight": "model-00001-of-00003.safetensors"}), sterna.ModelFormatError, "which has no such tensor"),
        (lambda i: i["weight_map"].update({"model.norm.weight": 3}), sterna.ModelFormatError, "weight_map.model.norm.weight is 3"),
        (lambda i: i.pop("weight_map"), sterna.ModelFormatError, "weight_map is missing"),
    ],
)  # fmt: skip
def test_indices_of_shards(edit: Callable[[dict[str, Any]], Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    path = tmp_path / "shards"
    shutil.copytree(repository("llama3-1.58"), path)
    place = path / "model.safetensors.index.json"
    values = json.loads(place.read_text("utf-8"))
    edit(values)
    place.write_text(json.dumps(values), encoding="utf-8")
    assert says in failure(path, error)


def test_folders(tmp_path: Path) -> None:
    assert "is no folder" in failure(tmp_path / "nowhere", sterna.FileError)
    (tmp_path / "empty").mkdir()
    assert "config.json: No such file" in failure(tmp_path / "empty", sterna.FileError)
    path = tmp_path / "pickles"
    shutil.copytree(repository("bitnet-2b4t"), path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "the weights are in pytorch_model.bin, a pickle" in failure(path, sterna.UnsupportedModelError)
    (path / "pytorch_model.bin").unlink()
    assert "model.safetensors: there is no such file" in failure(path, sterna.FileError)
    (path / "config.json").write_text("{", encoding="utf-8")
    assert "config.json: is not JSON" in failure(path, sterna.ModelFormatError)


def test_destinations(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(repository("bitnet-2b4t"), path)
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(sterna.ArgumentError, match="is a file of the repository itself"):
        sterna.convert(path, path / "model.safetensors", overwrite=True)
    assert (path / "model.safetensors").read_bytes() == before
    target = tmp_path / "model.gguf"
    sterna.convert(path, target)
    (path / "broken-link").symlink_to("nowhere")
    sterna.convert(path, target, overwrite=True)
    first = target.read_bytes()
    with pytest.raises(sterna.FileError, match="exists already"):
        sterna.convert(path, target, type="TQ1_0")
    assert target.read_bytes() == first
    torn(path / "model.safetensors", 1000)
    with pytest.raises(sterna.ModelFormatError):  # what fails leaves the old file alone
        sterna.convert(path, target, overwrite=True)
    assert target.read_bytes() == first
    assert sorted(os.listdir(tmp_path)) == ["model", "model.gguf"]
    for options in ({"type": "Q4_0"}, {"head": "IQ2_XS"}):
        with pytest.raises(sterna.ArgumentError, match="must be one of"):
            sterna.convert(path, target, **options)

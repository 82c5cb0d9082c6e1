"""Tiny BitNet repositories as Hugging Face has them, random weights of a fixed seed, for tests of `sterna convert`.

    python tools/make_bitnet_repositories.py FOLDER                  # one folder per kind
    python tools/make_bitnet_repositories.py --reference OUT         # NAME.npz per kind: transformers' own logits

`--reference` needs torch and transformers; the tests have its files in tests/data/convert. The repositories themselves
are made anew by each test: their weights come from numpy's legacy generator, whose stream never changes. Logits are
transformers' in float32, weights and activations quantised by its BitLinear and AutoBitLinear.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LENGTHS = (1, 9, 24)
VOCAB_SIZE = 300
LAYER = "model.layers.0.mlp.down_proj"

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = ("t h", "th e", "Ġ the", "i n", "a n", "an d", "Ġ and", "e r", "Ġ t", "o n", "in g", "r e")
BOS = 256 + len(MERGES)  # then two tokens that end
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|eot_id|>{% endfor %}"


@dataclass(frozen=True)
class Kind:
    """One repository: the class, what its config.json says, and how the linear layers are stored."""

    architecture: str = "LlamaForCausalLM"
    model_type: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    storage: str = "packed"  # "packed", "masters" or "ternary" (floats)
    dtype: str = "BF16"
    divides: bool = False  # weight_scale is a divisor
    sub_norms: tuple[str, str] | None = None
    head_norms: bool = False
    inner_norms: bool = False
    exact_scales: bool = False  # as float16 holds them
    shards: int = 1
    tokenizer: str = "llama3"
    head_dim: int = 64
    like: str = ""  # the kind whose weights it has
    masters_argument: bool = False


_BITNET = {"hidden_act": "relu2", "rope_theta": 500000.0, "tie_word_embeddings": True}
_AUTO = {"quant_method": "bitnet", "linear_class": "autobitlinear", "modules_to_not_convert": None}
_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, Kind] = {
    "bitnet-2b4t": Kind(
        "BitNetForCausalLM", "bitnet", _BITNET, {**_AUTO, "quantization_mode": "offline"},
        sub_norms=("attn_sub_norm", "ffn_sub_norm"), exact_scales=True,
    ),
    "bitnet-2b4t-masters": Kind(
        "BitNetForCausalLM", "bitnet", _BITNET, {**_AUTO, "quantization_mode": "online"}, storage="masters",
        sub_norms=("attn_sub_norm", "ffn_sub_norm"),
    ),
    "bitnet-1bitllm": Kind(
        "BitnetForCausalLM", "llama", {"hidden_act": "silu", "tie_word_embeddings": True, "weight_bits": 1},
        storage="masters", dtype="F16", sub_norms=("inner_attn_ln", "ffn_layernorm"), tokenizer="sentencepiece",
    ),
    "llama3-1.58": Kind(
        config={"rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE}, quantization={"quant_method": "bitnet"},
        divides=True, shards=3,
    ),
    "llama-input-norms": Kind(
        config={"rope_theta": 10000.0},
        quantization={**_AUTO, "quantization_mode": "offline", "use_rms_norm": True, "rms_norm_eps": 1e-6},
        inner_norms=True,
    ),
    "falcon-e": Kind(
        config={"rope_theta": 1000042.0, "head_dim": 128, "tie_word_embeddings": True},
        quantization={"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}, divides=True, head_dim=128,
    ),
    "falcon-e-prequantized": Kind(
        config={"rope_theta": 1000042.0, "head_dim": 128, "tie_word_embeddings": True}, storage="masters",
        head_dim=128, masters_argument=True,
    ),
    "falcon-e-bfloat16": Kind(
        config={"rope_theta": 1000042.0, "head_dim": 128, "tie_word_embeddings": True}, storage="ternary",
        head_dim=128, like="falcon-e",
    ),
    "qwen3-masters": Kind(
        "Qwen3ForCausalLM", "qwen3", {"rope_theta": 1000000.0, "head_dim": 64, "use_sliding_window": False},
        {**_AUTO, "quantization_mode": "online"}, storage="masters", dtype="F32", head_norms=True, tokenizer="qwen2",
    ),
}  # fmt: skip
WITH_REFERENCE = tuple(name for name, kind in KINDS.items() if not kind.like)


def config_of(kind: Kind) -> dict[str, Any]:
    """config.json without quantization_config."""
    return {
        "architectures": [kind.architecture], "model_type": kind.model_type, "vocab_size": VOCAB_SIZE,
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "bos_token_id": BOS, "eos_token_id": [BOS + 1, BOS + 2], "tie_word_embeddings": False, **kind.config,
    }  # fmt: skip


def bfloat16(values: Array) -> Array:
    """Rounded to the nearest, ties to even; as its 16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack(codes: Array) -> Array:
    """uint8 [n / 4, k] of codes [n, k]: row i + q * n / 4 in bits 2q of row i."""
    quarters = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def weights_of(name: str) -> tuple[dict[str, tuple[str, Array]], dict[str, tuple[Array, float]]]:
    """The tensors as stored (dtype and array), and codes and scale of each linear layer that is packed."""
    kind = KINDS[name]
    random = np.random.RandomState(zlib.crc32((kind.like or name).encode()))
    config = config_of(kind)
    hidden, inter, heads, kv = (config[key] for key in (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))  # fmt: skip
    q, kv = heads * kind.head_dim, kv * kind.head_dim
    tensors: dict[str, tuple[str, Array]] = {}
    ternary: dict[str, tuple[Array, float]] = {}

    def floats(key: str, values: Array) -> None:
        stored = {"BF16": bfloat16, "F16": np.float16, "F32": np.float32}[kind.dtype]
        tensors[key] = (kind.dtype, np.asarray(stored(values)))

    def norm(key: str, size: int) -> None:
        floats(key, 1 + 0.1 * random.standard_normal(size))

    floats("model.embed_tokens.weight", random.standard_normal((VOCAB_SIZE, hidden)))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm.weight", hidden)
        norm(f"{layer}.post_attention_layernorm.weight", hidden)
        if kind.sub_norms:
            norm(f"{layer}.self_attn.{kind.sub_norms[0]}.weight", q)
            norm(f"{layer}.mlp.{kind.sub_norms[1]}.weight", inter)
        if kind.head_norms:
            norm(f"{layer}.self_attn.q_norm.weight", kind.head_dim)
            norm(f"{layer}.self_attn.k_norm.weight", kind.head_dim)
        for part, n, k in (
            ("self_attn.q_proj", q, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q), ("mlp.gate_proj", inter, hidden), ("mlp.up_proj", inter, hidden),
            ("mlp.down_proj", hidden, inter),
        ):  # fmt: skip
            module = f"{layer}.{part}"
            if kind.inner_norms:
                norm(f"{module}.rms_norm.weight", k)
            master = 0.06 * random.standard_normal((n, k))
            if kind.storage == "masters":
                floats(f"{module}.weight", master)
                continue
            mean = float(np.abs(master).mean())
            codes = np.clip(np.rint(master / mean), -1, 1).astype(np.int8)
            scale = 1 / mean if kind.divides or kind.like else mean
            scale = float(2.0 ** round(math.log2(scale))) if kind.exact_scales else scale
            stored = (bfloat16(np.array([scale])).astype(np.uint32) << 16).view(np.float32)
            factor = float(np.float32(1 / stored[0]) if kind.divides or kind.like else stored[0])
            ternary[module] = (codes, factor)
            if kind.storage == "ternary":
                floats(f"{module}.weight", codes * factor)
            else:
                tensors[f"{module}.weight"] = ("U8", pack(codes))
                tensors[f"{module}.weight_scale"] = ("BF16", bfloat16(stored))
    norm("model.norm.weight", hidden)
    if not config["tie_word_embeddings"]:
        floats("lm_head.weight", 0.1 * random.standard_normal((VOCAB_SIZE, hidden)))
    return tensors, ternary


def write_safetensors(path: Path, tensors: dict[str, tuple[str, Array]]) -> None:
    """The format's own byte map: length, JSON header, data."""
    header, at = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (GPT-2's bytes_to_unicode)."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def tokenizer_json(pattern: str, *, nfc: bool, ignore_merges: bool, bos: bool) -> dict[str, Any]:
    """A byte-level BPE of 256 bytes, a few merges and three control tokens."""
    vocab = {text: i for i, text in enumerate(byte_characters())}
    merges = []
    for i, pair in enumerate(MERGES):
        merges.append(pair.split(" "))
        vocab[pair.replace(" ", "")] = 256 + i
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": BOS + i, "content": text, "special": True, **flags} for i, text in enumerate(control)]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": control[0], "type_id": 0}}, *sequence],
        "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {control[0]: {"id": control[0], "ids": [BOS], "tokens": [control[0]]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, levels]},
        "post_processor": {"type": "Sequence", "processors": [levels, template]} if bos else levels,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def write_tokenizer(folder: Path, kind: Kind) -> None:
    """tokenizer.json or tokenizer.model, and the settings beside it."""
    if kind.tokenizer == "sentencepiece":
        import sentencepiece

        text = "the quick brown fox jumps over the lazy dog and then it sings\n" * 20
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(text.splitlines()), model_writer=(model := _Writer()), vocab_size=290,
            model_type="bpe", byte_fallback=True, minloglevel=2,
        )  # fmt: skip
        (folder / "tokenizer.model").write_bytes(model.data)
        settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
                    "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}  # fmt: skip
    else:
        llama3 = kind.tokenizer == "llama3"
        made = tokenizer_json(
            LLAMA3_PATTERN if llama3 else QWEN2_PATTERN, nfc=not llama3, ignore_merges=llama3, bos=llama3
        )
        (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": TEMPLATE,
                    "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


class _Writer:
    """Where the trainer of sentencepiece writes to."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def write_repository(folder: Path, name: str) -> None:
    """The repository of a kind; `folder` is made."""
    kind = KINDS[name]
    tensors, _ = weights_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(kind) | ({"quantization_config": kind.quantization} if kind.quantization else {})
    if kind.tokenizer == "sentencepiece":
        config |= {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_tokenizer(folder, kind)
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": config["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    if kind.shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    places: dict[str, str] = {}
    for shard in range(kind.shards):
        file = f"model-{shard + 1:05}-of-{kind.shards:05}.safetensors"
        part = {key: tensors[key] for i, key in enumerate(tensors) if i * kind.shards // len(tensors) == shard}
        write_safetensors(folder / file, part)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(array.nbytes for _, array in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def sequences() -> list[list[int]]:
    """The token ids whose logits the references have."""
    random = np.random.RandomState(20261121)
    return [random.randint(0, 256, length).tolist() for length in LENGTHS]


def layer_rows() -> Array:
    """What the reference gives to one linear layer, float32 [5, 512]."""
    random = np.random.RandomState(158)
    return (random.standard_normal((5, 512)) * np.exp(random.standard_normal((5, 1)))).astype(np.float32)


def digest(name: str) -> str:
    """Of the stored weights: a reference belongs to them."""
    found = hashlib.sha256()
    for key, (dtype, array) in weights_of(name)[0].items():
        found.update(f"{key} {dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def loadable(folder: Path, name: str) -> None:
    """The repository in the words of transformers' own classes, where the published ones have others."""
    write_repository(folder, name)
    kind, path = KINDS[name], folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if kind.storage == "masters":
        config["quantization_config"] = {**_AUTO, "quantization_mode": "online"}
    if kind.architecture == "BitnetForCausalLM":
        config |= {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "rope_theta": 10000.0}
        names = {"inner_attn_ln": "attn_sub_norm", "ffn_layernorm": "ffn_sub_norm"}
        tensors, _ = weights_of(name)
        for old, new in names.items():
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
        write_safetensors(folder / "model.safetensors", tensors)
    path.write_text(json.dumps(config), encoding="utf-8")


def reference(name: str) -> dict[str, Array]:
    """transformers' logits [length, vocab_size] of each sequence and output of one linear layer, float32."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    import transformers
    from transformers.integrations.bitnet import BitLinear

    with tempfile.TemporaryDirectory() as folder:
        loadable(Path(folder), name)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.nn.Module.float(model)  # some parts are as the file has them; the model's own method refuses
        for module in model.modules():
            if isinstance(module, BitLinear):
                module.dtype = torch.float32
        found: dict[str, Array] = {"sha256": np.array(digest(name)), "transformers": np.array(transformers.__version__)}
        with torch.no_grad():
            for i, tokens in enumerate(sequences()):
                found[f"logits_{i}"] = model(torch.tensor([tokens])).logits[0].float().numpy()
            found["layer"] = model.get_submodule(LAYER)(torch.from_numpy(layer_rows())).numpy()
    return found


def main() -> int:
    """Writes every kind, or every reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", action="store_true", help="write NAME.npz with transformers' logits")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in WITH_REFERENCE if arguments.reference else KINDS:
        if arguments.reference:
            np.savez_compressed(arguments.folder / f"{name}.npz", **reference(name))
        else:
            write_repository(arguments.folder / name, name)
        print(arguments.folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

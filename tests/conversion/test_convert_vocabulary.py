"""The tokenizer of a converted file against the libraries that the repository's own files are made for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import sterna
import tokenizers
from bitnet_repositories import converted, maker, repository
from sterna._core import Gguf
from sterna.tokenizer import Tokenizer
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS

TEXTS = [
    "the end", "The quick brown fox and the other thing", "in  on\n\n\tand   ", "12345 6 78", "Grüße, 你好 🐦!",
    "it's WE'LL they'RE", "\r\n x\n", "", "a" * 70, "e\u0301 é",
]  # fmt: skip


def copy(name: str, folder: Path, edit: dict[str, Any]) -> Path:
    """A repository with other JSON files: values of keys, or functions of the whole object."""
    path = folder / name
    shutil.copytree(repository(name), path)
    for file, change in edit.items():
        values = json.loads((path / file).read_text("utf-8")) if (path / file).exists() else {}
        if callable(change):
            change(values)
        else:
            values |= change
        (path / file).write_text(json.dumps(values), encoding="utf-8")
    return path


def convert(path: Path) -> Gguf:
    sterna.convert(path, path.with_suffix(".gguf"))
    return Gguf(str(path.with_suffix(".gguf")))


@pytest.mark.parametrize(("name", "pre"), [("bitnet-2b4t", "llama-bpe"), ("qwen3-masters", "qwen2")])
def test_byte_level_tokens_are_those_of_tokenizer_json(name: str, pre: str) -> None:
    file = Gguf(str(converted(name)))
    assert file.get("tokenizer.ggml.pre") == pre
    ours = Tokenizer.from_gguf(file)
    theirs = tokenizers.Tokenizer.from_file(str(repository(name) / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text, add_special=True) == theirs.encode(text).ids, text
    text = "the<|eot_id|>end"
    assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False).ids


def test_sentencepiece_tokens_are_those_of_tokenizer_model() -> None:
    file = Gguf(str(converted("bitnet-1bitllm")))
    assert (file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.add_bos_token")) == ("llama", True)
    ours = Tokenizer.from_gguf(file)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(repository("bitnet-1bitllm") / "tokenizer.model"))
    for text in ("the quick brown fox", "Grüße", "and then it sings", "over  the"):
        want = theirs.encode(text)
        if "  " not in text:  # the library was trained to drop a second space, which llama.cpp keeps
            assert ours.encode(text) == want, text
    assert (ours.bos_id, ours.eos_id, ours.roles["unknown"]) == (1, 2, 0)
    # Rows of the embedding beyond the vocabulary.
    assert file.get_bytes_list("tokenizer.ggml.tokens")[-1] == b"[PAD299]"


def test_special_tokens_ends_template_and_sampling(tmp_path: Path) -> None:
    file = Gguf(str(converted("bitnet-2b4t")))
    ours = Tokenizer.from_gguf(file)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (maker.BOS, maker.BOS + 1, True)
    assert ours.end_ids >= {maker.BOS + 1, maker.BOS + 2}
    assert file.get("tokenizer.chat_template") == maker.TEMPLATE
    assert file.get("general.sampling.temp") == pytest.approx(0.6)
    assert file.get("general.sampling.top_p") == pytest.approx(0.9)
    assert ours.is_control(maker.BOS + 2) and not ours.is_control(maker.BOS - 1)
    path = copy("bitnet-2b4t", tmp_path, {"generation_config.json": {"do_sample": False, "eos_token_id": 3}})
    (path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    file = convert(path)
    assert file.get("tokenizer.chat_template") == "{{ messages }}"
    assert not file.get("general.sampling.temp")
    assert list(file.get("tokenizer.ggml.eog_token_ids")) == [3, maker.BOS + 1, maker.BOS + 2]


def test_tokens_that_settings_add_to_a_sentencepiece_model(tmp_path: Path) -> None:
    added = {"290": {"content": "<|im_end|>", "special": True}, "291": {"content": "  ", "special": False}}
    settings = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "add_bos_token": False}
    ours = Tokenizer.from_gguf(convert(copy("bitnet-1bitllm", tmp_path, {"tokenizer_config.json": settings})))
    assert (ours.eos_id, ours.add_bos, ours.is_control(290), ours.is_control(291)) == (290, False, True, False)


def pre_tokenizer(*parts: dict[str, Any], ignore_merges: bool = False, nfc: bool = False) -> Any:
    def edit(values: dict[str, Any]) -> None:
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(parts)}
        values["model"]["ignore_merges"] = ignore_merges
        values["normalizer"] = {"type": "NFC"} if nfc else None
        values["post_processor"] = None

    return edit


def split(regex: str, **more: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **more}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = {**BYTES, "use_regex": True}


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (pre_tokenizer(WORDS), "gpt-2"),
        (pre_tokenizer({"type": "Digits", "individual_digits": True}, WORDS), "smollm"),
        (pre_tokenizer(split(maker.QWEN2_PATTERN), BYTES), "deepseek-r1-qwen"),
        (pre_tokenizer(split(maker.LLAMA3_PATTERN, behavior="Removed", invert=True), BYTES, ignore_merges=True), "llama-bpe"),
        (pre_tokenizer({"type": "Punctuation", "behavior": "Contiguous"}, WORDS, split("[0-9][0-9][0-9]")), "falcon"),
        *((pre_tokenizer(*map(split, entry.stages), BYTES, ignore_merges=entry.ignore_merges, nfc=entry.nfc), name)
          for name, entry in PRE_TOKENIZERS.items() if entry.byte_level and name in ("gpt-4o", "tekken", "deepseek-llm", "youtu")),
    ],
)  # fmt: skip
def test_pre_tokenizers_are_known_by_their_patterns(edit: Any, name: str, tmp_path: Path) -> None:
    path = copy("bitnet-2b4t", tmp_path, {"tokenizer.json": edit})
    file = convert(path)
    assert file.get("tokenizer.ggml.pre") == name
    ours = Tokenizer.from_gguf(file)
    theirs = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (pre_tokenizer(split(r"\w+"), BYTES), r"tokenizer.json: pre_tokenizer is .*: no known pre-tokenizer has the patterns ['\\w+']"),
        (pre_tokenizer(split(maker.LLAMA3_PATTERN), BYTES, ignore_merges=True, nfc=True), "normalizer NFC"),
        (pre_tokenizer(split(maker.LLAMA3_PATTERN, behavior="MergedWithNext"), BYTES), "pre_tokenizer.pretokenizers[0].behavior is 'MergedWithNext'"),
        (pre_tokenizer({**WORDS, "add_prefix_space": True}), "add_prefix_space is True"),
        (pre_tokenizer({"type": "Metaspace"}, WORDS), "pre_tokenizer.pretokenizers[0].type is 'Metaspace'"),
        (pre_tokenizer({"type": "Metaspace"}), "without the pre-tokenizer ByteLevel"),
        (lambda values: values["model"].update(type="Unigram"), "model.type is 'Unigram'"),
        (lambda values: values["model"].update(dropout=0.1), "model.dropout is 0.1"),
        (lambda values: values.update(normalizer={"type": "NFKC"}), "normalizer.type is 'NFKC'"),
        (lambda values: values.update(post_processor={"type": "BertProcessing"}), "post_processor.type is 'BertProcessing'"),
    ],
)  # fmt: skip
def test_unknown_tokenizers_are_named(edit: Any, says: str, tmp_path: Path) -> None:
    path = copy("bitnet-2b4t", tmp_path, {"tokenizer.json": edit})
    with pytest.raises(sterna.UnsupportedModelError) as failed:
        convert(path)
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), str(failed.value)), failed.value
    assert not path.with_suffix(".gguf").exists()


def test_a_pre_tokenizer_can_be_named(tmp_path: Path) -> None:
    path = copy("bitnet-2b4t", tmp_path, {"tokenizer.json": pre_tokenizer(split(r"\w+"), BYTES)})
    with pytest.raises(sterna.UnsupportedModelError, match="--pre NAME says which"):
        convert(path)
    sterna.convert(path, tmp_path / "a.gguf", pre="falcon3")
    assert Gguf(str(tmp_path / "a.gguf")).get("tokenizer.ggml.pre") == "falcon3"
    with pytest.raises(sterna.ArgumentError, match="pre is 'falcon9', which is no known"):
        sterna.convert(path, tmp_path / "b.gguf", pre="falcon9")


@pytest.mark.parametrize(
    ("file", "edit", "says"),
    [
        ("tokenizer.json", lambda values: values["model"]["vocab"].update(x=300), "has 301 tokens, the embedding 300 rows"),
        ("tokenizer.json", lambda values: values["model"]["vocab"].update(x=-1), "model.vocab.x is -1"),
        ("tokenizer.json", lambda values: values["model"]["vocab"].update(x=65), "model.vocab.x is 65, the id of"),
        ("tokenizer.json", lambda values: values["model"]["merges"].append("abc"), "model.merges[12] is 'abc'"),
        ("tokenizer.json", lambda values: values["added_tokens"].append([]), "added_tokens[3].id is missing"),
        ("tokenizer.json", lambda values: values.pop("model"), "model is missing"),
        ("tokenizer_config.json", {"bos_token": "<x>"}, "bos_token is '<x>', which is not in the vocabulary"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template is 3"),
        ("generation_config.json", {"eos_token_id": 300}, "eos_token_id is 300, expected ids below 300"),
        ("generation_config.json", {"temperature": "hot"}, "temperature is 'hot', expected a number"),
    ],
)  # fmt: skip
def test_malformed_tokenizers_are_named(file: str, edit: Any, says: str, tmp_path: Path) -> None:
    path = copy("bitnet-2b4t", tmp_path, {file: edit})
    with pytest.raises(sterna.ModelFormatError) as failed:
        convert(path)
    assert says in str(failed.value) and file in str(failed.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a", "a number that does not end"),
        (b"\x0a\x10abc", "a field of 16 bytes; 3 are left"),
        (b"\x0b", "wire type 3"),
        (b"", "there are none"),
        (b"\x0a\x03\x0a\x01\xff", "piece 0: its text is not UTF-8"),
        (b"\x0a\x05\x15\x00\x00\xc0\x7f", "piece 0: its score is nan"),
        (b"\x0a\x02\x18\x09", "piece 0: its type is 9"),
    ],
)
def test_malformed_sentencepiece_models(data: bytes, says: str, tmp_path: Path) -> None:
    path = copy("bitnet-1bitllm", tmp_path, {})
    (path / "tokenizer.model").write_bytes(data)
    with pytest.raises(sterna.ModelFormatError, match=says):
        convert(path)


def test_a_unigram_model_is_not_taken_for_bpe(tmp_path: Path) -> None:
    path = copy("bitnet-1bitllm", tmp_path, {})
    data = (path / "tokenizer.model").read_bytes()
    (path / "tokenizer.model").write_bytes(data + b"\x12\x02\x18\x01")  # a second trainer_spec counts more
    with pytest.raises(sterna.UnsupportedModelError, match="model_type is UNIGRAM"):
        convert(path)
    (path / "tokenizer.model").unlink()
    with pytest.raises(sterna.FileError, match=r"nor tokenizer\.model"):
        convert(path)

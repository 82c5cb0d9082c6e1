"""Real vocabularies: the token ids of the original tokenizers, and back to the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_vocabularies import cases, tokenizer_of, vocabularies
from reference import reference_dir

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("path", vocabularies(), ids=lambda path: path.stem)
def test_ids_of_the_original_tokenizer(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    assert len(cases(path)) >= 46
    wrong = [(text, tokenizer.encode(text), ids) for text, ids in cases(path) if tokenizer.encode(text) != ids]
    assert not wrong


@pytest.mark.parametrize("path", vocabularies(), ids=lambda path: path.stem)
def test_decodes_to_the_text(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    if tokenizer.kind == "wordpiece":
        words = "the quick brown fox, and so on"
        assert tokenizer.decode(tokenizer.encode(words)) == words.replace(",", " ,")
        return
    for text, ids in cases(path):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("path", vocabularies(), ids=lambda path: path.stem)
def test_pieces_are_the_bytes_of_the_text(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    assert len(tokenizer.pieces()) == tokenizer.vocab_size
    if tokenizer.kind == "wordpiece":
        return
    for text, ids in cases(path):
        joined = b"".join(tokenizer.token_bytes(i) for i in ids)
        prefix = b" " if tokenizer.kind == "spm" and text else b""
        assert joined == prefix + text.encode()


def test_special_tokens_of_real_vocabularies() -> None:
    expected = {
        "bert-bge": (101, None, None, True, True, {"[PAD]"}),
        "deepseek-llm": (100000, 100001, 100001, True, False, {"<｜end▁of▁sentence｜>"}),
        "falcon": (11, 11, 11, False, False, {"<|endoftext|>"}),
        "gpt-2": (50256, 50256, 50256, False, False, {"<|endoftext|>"}),
        "llama-bpe": (128000, 128001, 128009, True, False, {"<|end_of_text|>", "<|eot_id|>"}),
        "llama-spm": (1, 2, None, True, False, {"</s>"}),
        "phi-3": (1, 32000, 32007, True, False, {"<|endoftext|>", "<|end|>"}),
        "qwen2": (151643, 151643, 151645, False, False, {"<|endoftext|>", "<|im_end|>"}),
        "starcoder": (0, 0, 0, False, False, {"<|endoftext|>", "<fim_pad>"}),
    }
    found = {}
    for path in vocabularies():
        t = tokenizer_of(path)
        ends = {t.token_text(i) for i in t.end_ids}
        found[path.stem.removeprefix("ggml-vocab-")] = (t.bos_id, t.eos_id, t.eot_id, t.add_bos, t.add_eos, ends)
    assert len(found) >= 3
    assert found == {name: expected[name] for name in found}


def test_special_tokens_around_a_text() -> None:
    spm = tokenizer_of(reference_dir("vocab") / "ggml-vocab-llama-spm.gguf")
    assert spm.encode("Hi", add_special=True) == [1, *spm.encode("Hi")]
    assert spm.encode("", add_special=True) == [1]
    bert = tokenizer_of(reference_dir("vocab") / "ggml-vocab-bert-bge.gguf")
    assert bert.encode("hi", add_special=True) == [101, *bert.encode("hi"), 102]


def test_control_tokens_in_trusted_text_only() -> None:
    starcoder = tokenizer_of(reference_dir("vocab") / "ggml-vocab-starcoder.gguf")
    text = "<fim_prefix>def f():<fim_suffix>"
    parsed = starcoder.encode(text, parse_special=True)
    assert parsed == [1, *starcoder.encode("def f():"), 3]
    plain = starcoder.encode(text)
    assert not {1, 3} & set(plain)
    assert starcoder.decode(plain) == text
    assert starcoder.decode(parsed) == "def f():"
    assert starcoder.decode(parsed, special=True) == text
    assert starcoder.encode_spans(
        [("<fim_prefix>", True), ("def f():<fim_suffix>", False), ("<fim_suffix>", True)]
    ) == [
        1,
        *starcoder.encode("def f():<fim_suffix>"),
        3,
    ]

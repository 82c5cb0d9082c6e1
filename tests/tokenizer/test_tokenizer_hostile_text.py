"""Text made to be slow or to crash: a mebibyte of one thing is encoded in time that grows with its length only."""

from __future__ import annotations

import time

import pytest
from fake_metadata import NORMAL, bpe, spm
from sterna.errors import ArgumentError
from sterna.tokenizer import Tokenizer
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS

MIB = 1 << 20
TEXTS = {
    "letter": "a",
    "space": " ",
    "line end": "\n",
    "emoji": "🤗",
    "combining mark": "\u0301",
    "digit": "7",
    "han": "中",
    "less-than": "<",
    "surrogate": "\ud800",
    "capital": "A",
    "letters by turns": "ab",
    "spaces and line ends": " \n",
}
# Goal: 1 s for each MiB. A machine at work on other things is given more, quadratic time would take hours.
LIMIT_SECONDS = 8.0


def seconds(tokenizer: Tokenizer, text: str) -> float:
    start = time.process_time()
    ids = tokenizer.encode(text)
    assert ids or tokenizer.kind == "unigram"
    return time.process_time() - start


def of_size(unit: str, size: int) -> str:
    return unit * (size // len(unit.encode("utf-8", "surrogatepass")))


def vocabulary(kind: str) -> Tokenizer:
    letters = {"ab": NORMAL, "aa": NORMAL, "aaaa": NORMAL}
    if kind == "bpe":
        return Tokenizer.from_gguf(bpe("smollm", extra=letters, merges=["a b", "a a", "aa aa"]))
    if kind == "spm":
        return Tokenizer.from_gguf(spm(extra=letters | {"▁▁": NORMAL, "▁▁▁▁": NORMAL}))
    return Tokenizer.from_gguf(spm(extra=letters, model="t5"))


@pytest.mark.parametrize("unit", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", ["bpe", "spm", "unigram"])
def test_a_mebibyte_of_one_thing(kind: str, unit: str) -> None:
    assert seconds(vocabulary(kind), of_size(unit, MIB)) < LIMIT_SECONDS


FAMILIES = {entry: name for name, entry in PRE_TOKENIZERS.items()}


@pytest.mark.parametrize("pre", FAMILIES.values())
def test_no_pattern_takes_quadratic_time(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(bpe(pre))
    size = MIB // 16
    texts = [
        of_size(unit, size) for unit in (" ", "\t", "7", "A", "a", "中", "\u0301", "<", "'", "\n", " \n", "'s", "a1 ")
    ]
    texts += [texts[0] + "x", texts[1] + "x", texts[2] + "a", texts[3] + "a", texts[4] + "A", texts[7] + "\n"]
    assert sum(seconds(tokenizer, text) for text in texts) < LIMIT_SECONDS


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As pyo3 defines it: the regular expressions give up on some texts of ten million characters.
    panic = type("PanicException", (BaseException,), {})

    class Library:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise panic("retry-limit-in-match over")

    tokenizer = Tokenizer.from_gguf(bpe())
    monkeypatch.setattr(tokenizer._encoder, "_library", Library())
    with pytest.raises(ArgumentError, match=r"a text of 3 characters cannot be tokenized: retry-limit"):
        tokenizer.encode("abc")


def test_many_control_tokens_in_trusted_text() -> None:
    tokenizer = Tokenizer.from_gguf(bpe(extra={f"<unused{i}>": 3 for i in range(6000)}))
    start = time.process_time()
    ids = tokenizer.encode("<unused" * (MIB // 7), parse_special=True)
    assert max(ids) < 256
    assert time.process_time() - start < LIMIT_SECONDS

"""The patterns of the pre-tokenizers: all compile, and what is done for speed never changes a word."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest
from fake_metadata import NORMAL, bpe
from sterna.tokenizer import Tokenizer
from sterna.tokenizer.bpe import BpeEncoder
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, linear_pattern
from tokenizers import Regex, pre_tokenizers

ALPHABETS = (
    list("aabZQz  \t\n\r\n 123456789'sS.,!?<|>éÉǅʰ中文ªº\u0301\u0302\u00a0\u2003²ⅷ5٣🤗_。，\x00\u0085\u2028"),
    list("123 a."),
    list(" \n\ra\t\u00a0."),
    list("AaZ中ʰ\u0301 'sé"),
    list("12²a"),
    list("一二，。 ab"),
    list("ab ab ab\n\n"),
)
DISTINCT = {entry: name for name, entry in PRE_TOKENIZERS.items()}
FAMILIES = pytest.mark.parametrize("pre", DISTINCT, ids=DISTINCT.values())


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 40))) for _ in range(count)]


def splitter(stages: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(stage), "isolated") for stage in stages])


def words_of(splitter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [word for word, _ in splitter.pre_tokenize_str(text)]


@FAMILIES
def test_linear_patterns_find_the_same_words(pre: PreTokenizer) -> None:
    published, linear = splitter(pre.stages), splitter(tuple(map(linear_pattern, pre.stages)))
    for text in texts(1, 600):
        words = words_of(published, text)
        assert words_of(linear, text) == words
        assert "".join(words) == text


@FAMILIES
def test_cuts_fall_between_words(pre: PreTokenizer) -> None:
    published = splitter(pre.stages)
    cut_texts = 0
    for text in texts(2, 600):
        words = words_of(published, text)
        cuts: set[int] = set()
        if pre.alone:
            for run in re.finditer(f"{pre.alone}{{2,}}", text):
                cuts.update(range(run.start() + 1, run.end() + 1))
        if pre.boundary:
            cuts.update(found.start() for found in re.finditer(pre.boundary, text))
        places = sorted({0, *cuts, len(text)})
        parts = [text[begin:end] for begin, end in pairwise(places)]
        assert [word for part in parts for word in words_of(published, part)] == words
        cut_texts += len(parts) > 1
    assert cut_texts > 50 or not (pre.alone or pre.boundary)


def test_numbers_in_groups_from_the_right() -> None:
    groups = [f"{n:03}" for n in range(1000)]
    merges = [f"{n} {m}" for n in range(10) for m in range(10)]
    merges += [merge for n in range(100) for m in range(10) for merge in (f"{n:02} {m}", f"{m} {n:02}")]
    extra = {f"{n:02}": NORMAL for n in range(100)} | dict.fromkeys(groups, NORMAL)
    tokenizer = Tokenizer.from_gguf(bpe("superbpe", extra=extra, merges=merges))
    rng = random.Random(4)
    for length in (1, 2, 3, 4, 191, 192, 193, 194, 500, 3001):
        number = "".join(rng.choices("0123456789", k=length))
        head = length % 3
        expected = [number[:head]] * (head > 0) + [number[i : i + 3] for i in range(head, length, 3)]
        assert [tokenizer.token_text(i) for i in tokenizer.encode(number)] == expected
        around = [tokenizer.token_text(i) for i in tokenizer.encode(f"x{number}.")]
        assert around == ["x", *expected, "."]


@FAMILIES
def test_parts_of_long_text_give_the_ids_of_the_whole(pre: PreTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.tokenizer.bpe._PART_CHARS", 64)
    letters = dict.fromkeys("ab", NORMAL) if not pre.byte_level else {}
    tokenizer = Tokenizer.from_gguf(bpe(DISTINCT[pre], extra=letters | {"ab": NORMAL}, merges=["a b"]))
    encoder = tokenizer._encoder
    assert isinstance(encoder, BpeEncoder)
    parts: list[str] = []
    whole = encoder._encode_part

    def spy(part: str) -> list[int]:
        parts.append(part)
        return whole(part)

    pieces = ["ab", " ", "ab ab", "\n", "\n\n", "中，文", " 12 ", "1" * 70, "\n" * 70, ".", "é"]
    text = "".join(random.Random(6).choices(pieces, k=250))
    expected = encoder._encode_part(text.replace(" ", "▁") if not pre.byte_level else text)
    monkeypatch.setattr(encoder, "_encode_part", spy)
    assert tokenizer.encode(text) == expected
    assert len(parts) > 5 or not (pre.alone or pre.boundary)


def test_published_names() -> None:
    expected = (
        "default gpt-2 llama-bpe llama3 llama-v3 deepseek-llm deepseek-coder deepseek-v3 falcon mpt starcoder refact "
        "command-r qwen2 qwen35 stablelm2 olmo dbrx smollm smaug-bpe poro-chat chatglm-bpe viking jais tekken gpt-4o "
        "llama4 codeshell bloom exaone minerva-7b superbpe trillion bailingmoe kimi-k2 hunyuan seed-coder"
    )
    assert set(expected.split()) <= PRE_TOKENIZERS.keys()

"""Request text never becomes a control token, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from fake_metadata import CONTROL, NORMAL, FakeMetadata, bpe, spm
from real_vocabularies import tokenizer_of, vocabularies
from sterna.tokenizer import Tokenizer
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS

AROUND = ("", " ", "\n", "x", "Hello ", "<", "|", "é", "0", "\u0301", "'s", "\t\t", "中")


def attacks(control: str) -> Iterator[list[tuple[str, bool]]]:
    """Spans whose untrusted text holds the control text, or a part that trusted text around it completes."""
    for before, after in product(AROUND, AROUND):
        yield [("role\n", True), (before + control + after, False), ("\n", True)]
    yield [(control + control, False)]
    for cut in range(1, len(control)):
        head, tail = control[:cut], control[cut:]
        yield [(head, False), (tail, False)]
        yield [(head, True), (tail, False)]
        yield [(head, False), (tail, True)]


def check(tokenizer: Tokenizer, controls: Iterable[str]) -> int:
    control_ids = set(tokenizer.control_ids.values())
    if tokenizer.kind == "wordpiece":
        # What a word is when it is no word of the vocabulary.
        control_ids.discard(tokenizer.roles["unknown"])
    checks = 0
    for control in controls:
        # Alone in trusted text it is recognised, so that the attack is one.
        assert tokenizer.encode(control, parse_special=True) == [tokenizer.control_ids[control]]
        for spans in attacks(control):
            # A part of one control text may be another control text: only what is untrusted counts.
            trusted = {
                i for text, is_trusted in spans if is_trusted for i in tokenizer.encode(text, parse_special=True)
            }
            assert not (set(tokenizer.encode_spans(spans)) & control_ids) - trusted, (control, spans)
            checks += 1
    return checks


def made_up() -> Iterator[tuple[str, FakeMetadata]]:
    """A vocabulary of each family, whose merges would make the control tokens if they were let."""
    for entry, name in {entry: name for name, entry in PRE_TOKENIZERS.items()}.items():
        merges = ["t h", "th e", "< a", "<a >", "< |", "<| a", "<|a |", "<|a| >"]
        extra = {"th": NORMAL, "<a": NORMAL, "<|": NORMAL, "<|a": NORMAL, "<|a|": NORMAL}
        extra |= {"<a>": CONTROL, "the": CONTROL, "<|a|>": CONTROL}
        if not entry.byte_level:
            extra = dict.fromkeys("thea<>|▁x", NORMAL) | extra
        yield name, bpe(name, extra=extra, merges=merges)
    pieces = {"th": NORMAL, "<|": NORMAL, "the": CONTROL, "<|a|>": CONTROL, "<a>": CONTROL}
    yield "sentencepiece", spm(extra=pieces)
    yield "sentencepiece with a prefix", spm(extra=pieces, add_space_prefix=True)
    yield "unigram", spm(extra=pieces, model="t5")


def test_injection() -> None:
    checks, kinds = 0, 0
    for name, metadata in made_up():
        tokenizer = Tokenizer.from_gguf(metadata)
        assert {"the", "<a>", "<|a|>"} <= tokenizer.control_ids.keys(), name
        checks += check(tokenizer, tokenizer.control_ids)
        kinds += 1
    for path in vocabularies():
        tokenizer = tokenizer_of(path)
        checks += check(tokenizer, tokenizer.control_ids)
        kinds += 1
    assert kinds >= 35
    assert checks >= 20_000

"""Spans, control tokens, roles, and the way back: on vocabularies made for it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fake_metadata import BYTE, CONTROL, NORMAL, USER_DEFINED, bpe, byte_characters, byte_tokens, spm
from sterna.errors import ArgumentError
from sterna.tokenizer import Tokenizer
from sterna.tokenizer.matcher import TextMatcher

WORDS = {"he": NORMAL, "ll": NORMAL, "hell": NORMAL, "Ġhe": NORMAL, "<|end|>": CONTROL, "<|e|>": CONTROL}
MERGES = ("h e", "l l", "he ll", "Ġ he")


def words() -> Tokenizer:
    return Tokenizer.from_gguf(bpe(extra=WORDS, merges=MERGES))


def test_spans_between_control_tokens_merge_as_one_text() -> None:
    tokenizer = words()
    end, hell = tokenizer.control_ids["<|end|>"], tokenizer.encode("hell")[0]
    assert tokenizer.token_text(hell) == "hell"
    for cut in range(5):
        for first, second in ((True, False), (False, True), (False, False), (True, True)):
            spans = [("<|end|>", True), ("hell"[:cut], first), ("hell"[cut:], second), ("<|end|>", True)]
            assert tokenizer.encode_spans(spans) == [end, hell, end]


def test_any_split_into_spans_gives_the_ids_of_the_whole() -> None:
    tokenizer = words()
    rng = random.Random(11)
    for _ in range(300):
        text = "".join(rng.choice(["he", "ll", " ", "hell", "x", "é", "🤗", "\n"]) for _ in range(12))
        cuts = sorted(rng.randrange(len(text)) for _ in range(4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        spans = [(piece, rng.random() < 0.5) for piece in pieces]
        assert tokenizer.encode_spans(spans) == tokenizer.encode(text)


def test_control_text_across_trusted_spans_and_around_an_empty_one() -> None:
    tokenizer = words()
    end = tokenizer.control_ids["<|end|>"]
    assert tokenizer.encode_spans([("<|e", True), ("nd|>", True)]) == [end]
    assert tokenizer.encode_spans([("<|e", True), ("", False), ("nd|>", True)]) == [end]
    assert end not in tokenizer.encode_spans([("<|e", True), ("nd|>", False)])
    assert end not in tokenizer.encode_spans([("<|e", False), ("nd|>", True)])


def test_matcher_takes_the_longest_text_at_the_leftmost_place() -> None:
    matcher = TextMatcher({"<a>": 1, "<a>b": 2, "b<": 3, "<": 4, "x": 5})
    assert list(matcher.find_all("<a>b<a>")) == [(0, 4, 2), (4, 7, 1)]
    assert list(matcher.find_all("b<a>")) == [(0, 2, 3)]
    assert list(matcher.find_all("<<x")) == [(0, 1, 4), (1, 2, 4), (2, 3, 5)]
    assert list(matcher.find_all("ab")) == []
    assert list(TextMatcher({}).find_all("<a>")) == []


def test_matcher_against_a_scan_of_all_texts() -> None:
    rng = random.Random(5)
    for _ in range(300):
        texts = {"".join(rng.choice("<a>") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 6))}
        ids = {text: i for i, text in enumerate(sorted(texts))}
        haystack = "".join(rng.choice("<a>b") for _ in range(25))
        expected, position = [], 0
        while position < len(haystack):
            here = [text for text in ids if haystack.startswith(text, position)]
            if here:
                longest = max(here, key=len)
                expected.append((position, position + len(longest), ids[longest]))
                position += len(longest)
            else:
                position += 1
        assert list(TextMatcher(ids).find_all(haystack)) == expected


def test_user_defined_tokens_are_cut_out_of_any_text() -> None:
    for make in (bpe, spm):
        tokenizer = Tokenizer.from_gguf(make(extra={"<tool>": USER_DEFINED, "<tool><tool>": USER_DEFINED}))
        first = tokenizer.vocab_size - 2
        assert tokenizer.encode("a<tool>b")[1:-1] == [first]
        assert tokenizer.encode("<tool><tool><tool>") == [first + 1, first]
        assert tokenizer.decode([first]) == "<tool>"


def test_user_defined_tokens_that_look_like_control_tokens_are_no_text() -> None:
    for make in (bpe, spm):
        tokenizer = Tokenizer.from_gguf(make(extra={"<｜User｜>": USER_DEFINED, "[PAD999]": USER_DEFINED}))
        user = tokenizer.vocab_size - 2
        assert user not in tokenizer.encode("<｜User｜>")
        assert tokenizer.encode("<｜User｜>", parse_special=True) == [user]
        assert tokenizer.decode([user]) == "<｜User｜>"


def test_fillers_of_a_vocabulary_match_nothing() -> None:
    for make in (bpe, spm):
        probe = Tokenizer.from_gguf(make())
        filler = f"[PAD{probe.vocab_size}]"
        tokenizer = Tokenizer.from_gguf(make(extra={filler: USER_DEFINED}))
        assert probe.vocab_size not in tokenizer.encode(filler)


def test_user_defined_runs_of_spaces_in_a_sentencepiece_vocabulary() -> None:
    tokenizer = Tokenizer.from_gguf(spm(extra={"   ": USER_DEFINED}))
    run = tokenizer.vocab_size - 1
    assert tokenizer.encode("a   b") == [*tokenizer.encode("a"), run, *tokenizer.encode("b")]
    # An ordinary token for the same spaces does the work then.
    tokenizer = Tokenizer.from_gguf(spm(extra={"▁▁": NORMAL, "  ": USER_DEFINED}))
    assert tokenizer.encode("a  b")[1] == tokenizer.vocab_size - 2


def test_a_control_token_that_is_a_common_word() -> None:
    merges = ("t h", "th e")
    tokenizer = Tokenizer.from_gguf(bpe(extra={"th": NORMAL, "the": CONTROL}, merges=merges))
    the = tokenizer.vocab_size - 1
    assert [tokenizer.token_text(i) for i in tokenizer.encode("the")] == ["th", "e"]
    assert tokenizer.encode("the", parse_special=True) == [the]
    tokenizer = Tokenizer.from_gguf(spm(extra={"th": NORMAL, "the": CONTROL}))
    assert tokenizer.encode("the") == [*tokenizer.encode("th"), *tokenizer.encode("e")]


def test_space_prefix_after_each_control_token() -> None:
    tokenizer = Tokenizer.from_gguf(spm(extra={"▁a": NORMAL, "<|x|>": CONTROL}, add_space_prefix=None))
    a, x = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert tokenizer.encode("a<|x|>a", parse_special=True) == [a, x, a]
    assert tokenizer.decode([a]) == "a"
    assert tokenizer.decode([x, a, a]) == "a a"


def test_phi_3_swallows_white_space_after_control_tokens() -> None:
    metadata = spm(extra={"<|end|>": CONTROL})
    metadata.values["general.name"] = "Phi-3-mini"
    tokenizer = Tokenizer.from_gguf(metadata)
    end = tokenizer.vocab_size - 1
    assert tokenizer.encode("<|end|> \n a", parse_special=True) == [end, *tokenizer.encode("a")]


def test_well_known_texts_are_control_tokens_whatever_the_file_says() -> None:
    extra = {"<|im_end|>": NORMAL, "<|endoftext|>": USER_DEFINED, "</s>": USER_DEFINED, "<|eom_id|>": CONTROL}
    tokenizer = Tokenizer.from_gguf(bpe(extra=extra))
    im_end = 256
    assert tokenizer.eot_id == im_end
    assert tokenizer.end_ids == {256, 257, 259}
    assert tokenizer.is_control(im_end)
    assert not set(tokenizer.encode("<|im_end|><|endoftext|>")) & tokenizer.end_ids
    assert tokenizer.roles["eom"] == 259


def test_end_of_message_is_no_end_in_the_harmony_format() -> None:
    extra = {"<|return|>": CONTROL, "<|call|>": CONTROL, "<|end|>": CONTROL}
    assert Tokenizer.from_gguf(bpe(extra=extra)).end_ids == {256, 257}
    assert Tokenizer.from_gguf(bpe(extra={"<|end|>": CONTROL})).end_ids == {256}


def test_end_and_suppress_lists() -> None:
    lists = {"eog_token_ids": np.array([7], np.int32), "suppress_tokens": np.array([3, 5], np.int32)}
    tokenizer = Tokenizer.from_gguf(bpe(eos_token_id=9, **lists))
    assert tokenizer.end_ids == {7, 9}
    assert tokenizer.suppress_ids == (3, 5)


def test_pieces() -> None:
    tokens = {"Ġé": NORMAL, "Ã©": NORMAL, "plain text": USER_DEFINED, "▁": NORMAL, "a\0b": USER_DEFINED, "": NORMAL}
    pieces = Tokenizer.from_gguf(bpe(extra=tokens)).pieces()
    assert pieces[:256] == [bytes([i]) for i in range(256)]
    # "é" alone is a character of the encoding, the byte 0xE9; "▁" is none.
    assert pieces[256:] == [b" \xe9", "é".encode(), b"plain text", "▁".encode(), b"a\0b", b""]
    pieces = Tokenizer.from_gguf(spm(extra={"▁a": NORMAL, "▁b": USER_DEFINED})).pieces()
    assert pieces[3:259] == [bytes([i]) for i in range(256)]
    assert pieces[-2:] == [b" a", "▁b".encode()]


def test_plain_byte_pair_encoding_falls_back_to_bytes() -> None:
    metadata = bpe("gemma4", extra={"▁": NORMAL, "a": NORMAL, "▁a": NORMAL}, merges=["▁ a"])
    tokenizer = Tokenizer.from_gguf(metadata.with_({"model": "gemma4", "pre": None}))
    ids = tokenizer.encode(" a\né")
    assert [tokenizer.token_text(i) for i in ids] == ["▁a", "<0x0A>", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == " a\né"


def test_decode_replaces_what_is_no_utf_8() -> None:
    tokenizer = Tokenizer.from_gguf(bpe())
    assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"
    assert tokenizer.decode([0xE2, 0x82, 0xAC]) == "€"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("token_id", [-1, 256, 1 << 40])
def test_ids_outside_of_the_vocabulary(token_id: int) -> None:
    tokenizer = Tokenizer.from_gguf(bpe())
    for call in (lambda: tokenizer.decode([token_id]), lambda: tokenizer.token_bytes(token_id)):
        with pytest.raises(ArgumentError):
            call()


def test_surrogates() -> None:
    tokenizer = Tokenizer.from_gguf(bpe())
    assert tokenizer.encode("\ud83e\udd17") == tokenizer.encode("🤗")
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode_spans([("\ud83e", True), ("\udd17", False)]) == tokenizer.encode("\ufffd\ufffd")


def test_byte_tables_of_the_tests_are_complete() -> None:
    assert len(set(byte_characters())) == len(set(byte_tokens())) == 256
    assert BYTE == 6

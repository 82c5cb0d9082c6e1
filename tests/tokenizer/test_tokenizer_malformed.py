"""Vocabularies that are wrong: refused with the file and the key, or accepted where that is harmless; never worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_metadata import BYTE, CONTROL, NORMAL, PREFIX, UNKNOWN, USER_DEFINED, FakeMetadata, bpe, byte_characters, spm
from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.tokenizer import Tokenizer


def i32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


def spm_with_scores(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> FakeMetadata:
    metadata = spm()
    return metadata.with_({"scores": change(metadata.values[PREFIX + "scores"].copy())})


def spm_with_types(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> FakeMetadata:
    metadata = spm()
    return metadata.with_({"token_type": change(metadata.values[PREFIX + "token_type"].copy())})


def set_at(index: int, value: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def change(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values[index] = value
        return values

    return change


def spm_with_byte_token(text: str) -> FakeMetadata:
    """The token of byte 0x41 is written as `text`."""
    metadata = spm()
    tokens = list(metadata.values[PREFIX + "tokens"])
    tokens[3 + 0x41] = text
    return metadata.with_({"tokens": tokens})


def without_bytes(count: int) -> FakeMetadata:
    """A SentencePiece vocabulary in which the first `count` bytes have no token."""
    metadata = spm()
    kept = [i for i in range(len(metadata.values[PREFIX + "tokens"])) if not 3 <= i < 3 + count]
    return metadata.with_(
        {
            "tokens": [metadata.values[PREFIX + "tokens"][i] for i in kept],
            "scores": metadata.values[PREFIX + "scores"][kept],
            "token_type": metadata.values[PREFIX + "token_type"][kept],
        }
    )


def with_charsmap(data: bytes) -> FakeMetadata:
    return spm(model="t5", precompiled_charsmap=np.frombuffer(data, np.uint8))


def trie(units: dict[int, int], texts: bytes = b"x\0", size: int = 1024) -> bytes:
    """A character map whose trie has these units; the others are dead ends (a label that no place matches)."""
    array = np.full(size, 0x800000FF, np.uint32)
    for place, unit in units.items():
        array[place] = unit
    return (4 * size).to_bytes(4, "little") + array.tobytes() + texts


ROOT = 256 << 10  # children of the root stand at 256 ^ label
LEAF = {0: ROOT, 256 ^ 97: 97 | 0x100 | (353 ^ 512) << 10}  # "a" has a value, which stands at 512
# (id, what, metadata, the key that is blamed)
REFUSED: list[tuple[str, Callable[[], FakeMetadata], str]] = [
    ("V01 tokens missing", lambda: bpe(tokens=None), "tokens"),
    ("V02 tokens of i32", lambda: bpe(tokens=i32(1, 2)), "tokens"),
    ("V02 tokens a string", lambda: bpe(tokens="a"), "tokens"),
    ("V03 no tokens", lambda: bpe(tokens=[], token_type=i32()), "tokens"),
    ("V05 scores short", lambda: spm_with_scores(lambda s: s[:-1]), "scores"),
    ("V05 scores long", lambda: spm_with_scores(lambda s: np.append(s, np.float32(0))), "scores"),
    ("V05 scores missing", lambda: spm().with_({"scores": None}), "scores"),
    ("V06 scores of i8", lambda: spm_with_scores(lambda s: s.astype(np.int8)), "scores"),
    ("V06 scores of f64", lambda: spm_with_scores(lambda s: s.astype(np.float64)), "scores"),
    ("V06 scores of strings", lambda: spm().with_({"scores": ["0"]}), "scores"),
    ("V07 types of u8", lambda: spm_with_types(lambda t: t.astype(np.uint8)), "token_type"),
    ("V07 types of strings", lambda: bpe(token_type=["1"]), "token_type"),
    ("V08 types short", lambda: spm_with_types(lambda t: t[:-1]), "token_type"),
    ("V08 types long", lambda: bpe(token_type=np.ones(300, np.int32)), "token_type"),
    ("V08 types missing", lambda: spm(token_type=None), "token_type"),
    ("V09 type 99", lambda: spm_with_types(set_at(5, 99)), "token_type"),
    ("V09 type -1", lambda: spm_with_types(set_at(5, -1)), "token_type"),
    ("V09 type 7", lambda: bpe(token_type=np.full(256, 7, np.int32)), "token_type"),
    ("V10 merges of i32", lambda: bpe().with_({"merges": i32(1)}), "merges"),
    ("V10 merges missing", lambda: bpe().with_({"merges": None}), "merges"),
    ("V10 merge not UTF-8", lambda: bpe(merges=[b"a \xff"]), "merges"),  # type: ignore[list-item]
    ("V11 merge without space", lambda: bpe(merges=["ab"]), "merges"),
    ("V11 merge without right side", lambda: bpe(merges=["a "]), "merges"),
    ("V11 merge without left side", lambda: bpe(merges=[" a"]), "merges"),
    ("V11 empty merge", lambda: bpe(merges=[""]), "merges"),
    ("V11 spaces elsewhere", lambda: bpe(extra={"ab": NORMAL}, merges=["a", "b c d"]), "merges"),
    ("V12 merge of an unknown token", lambda: bpe(merges=["a ℵ"]), "merges"),
    ("V12 merge into an unknown token", lambda: bpe(merges=["a b"]), "merges"),
    ("V12 long merge into an unknown token", lambda: bpe(extra={"abc": NORMAL}, merges=["abc abc"]), "merges"),
    ("V13 too many merges", lambda: bpe().with_({"merges": range(10**7)}), "merges"),
    ("V13 too many tokens", lambda: bpe().with_({"tokens": range(10**7)}), "tokens"),
    ("V14 bos behind the end", lambda: bpe(bos_token_id=256), "bos_token_id"),
    ("V15 bos 2^32 - 1", lambda: bpe(bos_token_id=2**32 - 1), "bos_token_id"),
    ("V15 bos -1", lambda: bpe(bos_token_id=-1), "bos_token_id"),
    ("V15 bos a float", lambda: bpe(bos_token_id=1.0), "bos_token_id"),
    ("V15 bos a bool", lambda: bpe(bos_token_id=True), "bos_token_id"),
    ("V15 eos a string", lambda: bpe(eos_token_id="1"), "eos_token_id"),
    ("V17 end list out of range", lambda: bpe(eog_token_ids=i32(3, 256)), "eog_token_ids"),
    ("V17 end list negative", lambda: bpe(eog_token_ids=i32(-1)), "eog_token_ids"),
    ("V18 all texts empty", lambda: bpe(tokens=["", ""], token_type=i32(1, 1)), "tokens"),
    ("V19 duplicate texts", lambda: bpe(extra={"ab": NORMAL}).with_({"tokens": [*byte_characters(), "a"]}), "tokens"),
    ("V19 duplicate pieces", lambda: spm(extra={"b": NORMAL}), "tokens"),
    ("V20 token of 1 MiB", lambda: bpe(extra={"a" * (1 << 20): NORMAL}), "tokens"),
    ("V21 token not UTF-8", lambda: bpe().with_({"tokens": [b"\xff", *byte_characters()[1:]]}), "tokens"),
    (
        "V21 a character in two tokens",
        lambda: bpe().with_({"tokens": [b"\xc3", b"\xa9"], "token_type": i32(1, 1)}),
        "tokens",
    ),
    ("V22 <0x-1>", lambda: spm_with_byte_token("<0x-1>"), "tokens"),
    ("V22 <0xZZ>", lambda: spm_with_byte_token("<0xZZ>"), "tokens"),
    ("V22 <0x100>", lambda: spm_with_byte_token("<0x100>"), "tokens"),
    ("V22 <0x4>", lambda: spm_with_byte_token("<0x4>"), "tokens"),
    ("V22 <0x41> and more", lambda: spm_with_byte_token("<0x41>\n"), "tokens"),
    ("V22 twice the same byte", lambda: spm_with_byte_token("<0x4a>"), "tokens"),
    ("V23 one byte token missing", lambda: without_bytes(1), "tokens"),
    ("V23 no byte tokens and no unknown token", lambda: without_bytes(256).with_({"unknown_token_id": 5}), "tokens"),
    ("V24 charsmap of 0 bytes", lambda: with_charsmap(b""), "precompiled_charsmap"),
    ("V24 charsmap of 1 byte", lambda: with_charsmap(b"\0"), "precompiled_charsmap"),
    ("V24 charsmap of 3 bytes", lambda: with_charsmap(b"\0\0\0"), "precompiled_charsmap"),
    ("V24 charsmap of strings", lambda: spm(model="t5", precompiled_charsmap=["a"]), "precompiled_charsmap"),
    ("V24 charsmap of i32", lambda: spm(model="t5", precompiled_charsmap=i32(1)), "precompiled_charsmap"),
    (
        "V25 trie larger than the map",
        lambda: with_charsmap((1 << 20).to_bytes(4, "little") + b"\0" * 4096),
        "precompiled_charsmap",
    ),
    ("V25 trie of 2^32 - 4", lambda: with_charsmap(b"\xfc\xff\xff\xff" + b"\0" * 4096), "precompiled_charsmap"),
    (
        "V25 trie of odd size",
        lambda: with_charsmap((1025).to_bytes(4, "little") + b"\0" * 4096),
        "precompiled_charsmap",
    ),
    ("V25 no texts", lambda: with_charsmap(trie({0: ROOT}, texts=b"")), "precompiled_charsmap"),
    ("V25 text without end", lambda: with_charsmap(trie({0: ROOT}, texts=b"x")), "precompiled_charsmap"),
    ("V25 text not UTF-8", lambda: with_charsmap(trie({0: ROOT}, texts=b"\xff\0")), "precompiled_charsmap"),
    ("V25 root outside", lambda: with_charsmap(trie({0: 1024 << 10})), "precompiled_charsmap"),
    (
        "V25 node outside",
        lambda: with_charsmap(trie({0: ROOT, 256 ^ 97: 97 | 0x200 | 0xFFFF << 10})),
        "precompiled_charsmap",
    ),
    (
        "V25 replacement outside",
        lambda: with_charsmap(trie(LEAF | {512: 0x80000002})),
        "precompiled_charsmap",
    ),
    (
        "V25 value that is a node",
        lambda: with_charsmap(trie(LEAF | {512: 0})),
        "precompiled_charsmap",
    ),
    ("V26 cycle", lambda: with_charsmap(trie({0: ROOT, 256 ^ 97: 97 | 97 << 10})), "precompiled_charsmap"),
    ("V30 add_bos an integer", lambda: bpe(add_bos_token=1), "add_bos_token"),
    ("V30 add_eos a string", lambda: bpe(add_eos_token="true"), "add_eos_token"),
    ("V30 add_space_prefix a float", lambda: spm(add_space_prefix=1.0), "add_space_prefix"),
    ("V32 NaN score", lambda: spm_with_scores(set_at(270, np.nan)), "scores"),
    ("V32 infinite score", lambda: spm_with_scores(set_at(270, np.inf)), "scores"),
    ("V32 infinite score below", lambda: spm_with_scores(set_at(270, -np.inf)), "scores"),
    ("V33 suppress list of strings", lambda: bpe(suppress_tokens=["a"]), "suppress_tokens"),
    ("V33 suppress list of floats", lambda: bpe(suppress_tokens=np.ones(1, np.float32)), "suppress_tokens"),
    ("V33 suppress list out of range", lambda: bpe(suppress_tokens=i32(300)), "suppress_tokens"),
    ("V35 fim id out of range", lambda: bpe(fim_pre_token_id=300), "fim_pre_token_id"),
    ("V35 eot id out of range", lambda: bpe(eot_token_id=300), "eot_token_id"),
    ("V35 eom id a string", lambda: bpe(eom_token_id="x"), "eom_token_id"),
    ("model missing", lambda: bpe(model=None), "model"),
    ("model an integer", lambda: bpe(model=3), "model"),
    ("pre an integer", lambda: bpe().with_({"pre": 1}), "pre"),
    (
        "too many user-defined tokens",
        lambda: bpe(extra={f"<{i:0999}>": USER_DEFINED for i in range(1100)}),
        "tokens",
    ),
    (
        "WordPiece without an unknown token",
        lambda: bpe().with_({"model": "bert", "tokens": ["a"], "token_type": None}),
        "unknown_token_id",
    ),
    (
        "WordPiece with the same word twice",
        lambda: bpe().with_(
            {"model": "bert", "tokens": ["[UNK]", "▁a", "▁a"], "token_type": i32(3, 1, 1), "unknown_token_id": 0}
        ),
        "tokens",
    ),
]


@pytest.mark.parametrize(("make", "key"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(make: Callable[[], FakeMetadata], key: str, capfd: pytest.CaptureFixture[str]) -> None:
    metadata = make()
    with pytest.raises(ModelFormatError) as caught:
        Tokenizer.from_gguf(metadata)
    assert caught.value.field == PREFIX + key or (caught.value.field == key and key in metadata.values)
    assert caught.value.file == metadata.path
    assert key in str(caught.value) or caught.value.byte_offset == 0
    if PREFIX + key in metadata.values and caught.value.byte_offset is not None:
        assert caught.value.byte_offset in (0, metadata.offset_of(PREFIX + key))
    assert capfd.readouterr() == ("", "")


ACCEPTED: list[tuple[str, Callable[[], FakeMetadata]]] = [
    ("V04 one token", lambda: bpe(tokens=["a"], token_type=i32(1))),
    ("V12 merge into a control token", lambda: bpe(extra={"ab": CONTROL}, merges=["a b"])),
    ("V12 merge of a control token", lambda: bpe(extra={"ab": CONTROL, "abc": NORMAL}, merges=["ab c"])),
    ("V16 all roles one token", lambda: bpe(**{f"{role}_token_id": 7 for role in ("bos", "eos", "eot", "padding")})),
    ("V18 some texts empty", lambda: bpe(extra={"": NORMAL}).with_({"tokens": [*byte_characters(), ""]})),
    ("V18 some pieces empty", lambda: spm(extra={"": NORMAL, "b ": USER_DEFINED})),
    ("V20 token of 64 KiB", lambda: bpe(extra={"a" * 65536: NORMAL})),
    ("V23 no byte tokens", lambda: without_bytes(256)),
    ("V23 a byte-level vocabulary without some bytes", lambda: bpe(tokens=["a", "b"], token_type=i32(1, 1))),
    ("V31 control token that is a word", lambda: spm(extra={"the": CONTROL})),
    ("V35 padding behind the end", lambda: bpe(padding_token_id=256)),
    ("no types", lambda: bpe(token_type=None)),
    ("no pre-tokenizer", lambda: bpe().with_({"pre": None})),
    ("no merges", bpe),
    ("several unknown tokens", lambda: spm(extra={"[PAD286]": UNKNOWN, "<u>": UNKNOWN})),
    ("no unknown token, but bytes", lambda: spm(unknown_token_id=20)),
]


@pytest.mark.parametrize("make", [case[1] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_accepted(make: Callable[[], FakeMetadata], capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_gguf(make())
    ids = tokenizer.encode("the abc\0 é")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert "a" in tokenizer.decode(ids, special=True) or tokenizer.vocab_size < 3
    assert len(tokenizer.pieces()) == tokenizer.vocab_size
    assert capfd.readouterr() == ("", "")


UNSUPPORTED: list[tuple[str, Callable[[], FakeMetadata], str]] = [
    ("V27 unknown model", lambda: bpe(model="plamo9"), "plamo9"),
    ("V27 no vocabulary", lambda: bpe(model="none"), "none"),
    ("V29 unknown pre", lambda: bpe("no-such-pre"), "no-such-pre"),
]


@pytest.mark.parametrize(("make", "name"), [case[1:] for case in UNSUPPORTED], ids=[case[0] for case in UNSUPPORTED])
def test_unsupported(make: Callable[[], FakeMetadata], name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        Tokenizer.from_gguf(make())


def test_a_byte_pair_vocabulary_that_says_llama() -> None:
    with pytest.raises(ModelFormatError):
        Tokenizer.from_gguf(bpe(model="llama"))


def test_a_sentencepiece_vocabulary_that_says_gpt2() -> None:
    with pytest.raises(ModelFormatError):
        Tokenizer.from_gguf(spm(model="gpt2"))


def test_enough_cases() -> None:
    assert len({name for name, *_ in [*REFUSED, *ACCEPTED, *UNSUPPORTED]}) >= 90
    classes = {name.split()[0] for name, *_ in [*REFUSED, *ACCEPTED, *UNSUPPORTED] if name.startswith("V")}
    # V28 has its own tests, V34 (templates) is not about tokens.
    assert classes == {f"V{i:02}" for i in range(1, 36)} - {"V28", "V34"}


def test_byte_tokens_of_a_plain_vocabulary_are_checked_when_decoded() -> None:
    metadata = bpe("gemma4").with_({"tokens": ["<0x-1>", "a"], "token_type": i32(BYTE, NORMAL)})
    with pytest.raises(ModelFormatError, match="token 0"):
        Tokenizer.from_gguf(metadata).pieces()

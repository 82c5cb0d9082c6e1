"""Byte-level BPE from a tokenizer.json: tokens, types, merges, and the name of its pre-tokenizer by what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sterna.conversion.repository import JsonFile
from sterna.tokenizer.metadata import MAX_MERGES, MAX_TOKENS
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS
from sterna.tokenizer.vocabulary import TokenType
from sterna.typed_reads import shown

# Of several names for the same behaviour these, which older programs know as well.
_PREFERRED = ("llama-bpe", "qwen2", "gpt-2", "falcon", "smollm", "tekken", "gpt-4o", "deepseek-llm", "deepseek-v3")
# What the pre-tokenizers of the tokenizers library do that are no Split (src/pre_tokenizers).
_BYTE_LEVEL_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass
class TokenList:
    """A vocabulary on its way into GGUF."""

    path: Path
    model: str  # tokenizer.ggml.model: "gpt2" or "llama"
    texts: list[bytes] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[bytes] | None = None
    pre: str = ""
    # What a post-processor puts before and behind a text: "" for nothing, None where there is no post-processor.
    prefix: str | None = None
    suffix: str | None = None
    add_space_prefix: bool | None = None


def is_byte_level(file: JsonFile) -> bool:
    """Whether a tokenizer.json is a byte-level BPE."""
    return any(item.values.get("type") == "ByteLevel" for item in _pre_tokenizers(file))


def read_tokenizer_json(file: JsonFile, pre: str | None = None) -> TokenList:
    """`pre` is the name of its pre-tokenizer, where the caller knows it.

    ModelFormatError; UnsupportedModelError, with the key and its value, for what the runtime cannot do.
    """
    model = file.object("model")
    if model is None:
        file.fail("model", "is missing")
    if model.text("type", "BPE") != "BPE":
        model.unsupported("type", "of byte-level tokenizers only BPE is converted")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.values.get(name):
            model.unsupported(name, "is not converted")
    tokens = TokenList(file.path, "gpt2")
    _read_texts(file, model, tokens)
    tokens.scores = [0.0] * len(tokens.texts)
    tokens.merges = _merges(model)
    tokens.pre = pre or _pre_tokenizer_name(file, model)
    tokens.prefix, tokens.suffix = _post_processor(file)
    return tokens


def _read_texts(file: JsonFile, model: JsonFile, tokens: TokenList) -> None:
    vocab = model.object("vocab")
    if vocab is None:
        model.fail("vocab", "is missing")
    by_id: dict[int, tuple[bytes, TokenType]] = {}
    for text in vocab.values:
        token_id = vocab.integer(text, 0, MAX_TOKENS - 1)
        if token_id in by_id:
            vocab.fail(text, f"is {token_id}, the id of {by_id[token_id][0].decode()!r} as well")
        by_id[token_id] = (text.encode(), TokenType.NORMAL)
    for i, item in enumerate(file.items("added_tokens")):
        entry = JsonFile(file.path, item if isinstance(item, dict) else {}, f"added_tokens[{i}].")
        token_id = entry.integer("id", 0, MAX_TOKENS - 1)
        special = entry.flag("special", False)
        type_ = TokenType.CONTROL if special else TokenType.USER_DEFINED
        by_id[token_id] = (entry.text("content").encode(), type_)
    if not by_id:
        vocab.fail("", "is empty")
    unused = TokenType.UNUSED
    for token_id in range(max(by_id) + 1):
        text_bytes, type_ = by_id.get(token_id, (f"[PAD{token_id}]".encode(), unused))
        tokens.texts.append(text_bytes)
        tokens.types.append(type_)


def _merges(model: JsonFile) -> list[bytes]:
    """ "a b" each; later versions of the library write pairs."""
    merges = model.items("merges")
    if len(merges) > MAX_MERGES:
        model.fail("merges", f"has {len(merges)} entries, at most {MAX_MERGES}")
    found = []
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) and side for side in pair)):
            model.fail(f"merges[{i}]", f"is {shown(merge)}, expected two tokens")
        if " " in pair[0] + pair[1]:
            model.unsupported(f"merges[{i}]", f"{shown(merge)} holds a space, which byte-level tokens do not")
        found.append(f"{pair[0]} {pair[1]}".encode())
    return found


def _pre_tokenizers(file: JsonFile) -> Iterator[JsonFile]:
    """The pre-tokenizers in their order, sequences taken apart."""
    pending = [("pre_tokenizer", file.object("pre_tokenizer"))]  # the next one last
    while pending:
        key, item = pending.pop()
        if item is None:
            continue
        if item.values.get("type") == "Sequence":
            parts = item.items("pretokenizers")
            pending += [
                (f"{key}.pretokenizers[{i}]", JsonFile(file.path, part, f"{key}.pretokenizers[{i}]."))
                for i, part in reversed(list(enumerate(parts)))
                if isinstance(part, dict)
            ]
        else:
            yield item


def _pre_tokenizer_name(file: JsonFile, model: JsonFile) -> str:
    """The tokenizer.ggml.pre whose entry cuts text by the same patterns in the same order."""
    stages = tuple(stage for item in _pre_tokenizers(file) if (stage := _stage(item)) is not None)
    ignore_merges = model.flag("ignore_merges", False)
    nfc = _is_nfc(file)
    fitting = [
        name
        for name, entry in PRE_TOKENIZERS.items()
        if entry.byte_level and (entry.stages, entry.ignore_merges, entry.nfc) == (stages, ignore_merges, nfc)
    ]
    if not fitting:
        more = f"ignore_merges {str(ignore_merges).lower()}, normalizer {'NFC' if nfc else 'none'}"
        file.unsupported(
            "pre_tokenizer",
            f"no known pre-tokenizer has the patterns {list(stages)} with {more}; --pre NAME says which",
        )
    return next((name for name in _PREFERRED if name in fitting), fitting[0])


def _stage(item: JsonFile) -> str | None:
    """The pattern that a pre-tokenizer cuts by; None where it does not cut."""
    kind = item.text("type")
    if kind == "ByteLevel":
        if item.flag("add_prefix_space", True):
            item.unsupported("add_prefix_space", "a space before every text is not converted")
        return _BYTE_LEVEL_WORDS if item.flag("use_regex", True) else None
    if kind == "Digits":
        return r"\p{N}" if item.flag("individual_digits", False) else r"\p{N}+"
    if kind == "Punctuation" and item.text("behavior", "Isolated") == "Contiguous":
        return _PUNCTUATION
    if kind == "Split":
        pattern = item.object("pattern")
        regex = None if pattern is None else pattern.values.get("Regex")
        way = item.text("behavior"), item.flag("invert", False)
        # Removing what does not match is the same for a pattern that leaves nothing out, and those compared with do.
        if isinstance(regex, str) and way in (("Isolated", False), ("Removed", True)):
            return regex
        item.unsupported("behavior" if isinstance(regex, str) else "pattern", "this kind of split is not converted")
    item.unsupported("type", "this pre-tokenizer is not converted")


def _is_nfc(file: JsonFile) -> bool:
    normalizer = file.object("normalizer")
    if normalizer is None or (normalizer.values.get("type") == "Sequence" and not normalizer.items("normalizers")):
        return False
    if normalizer.text("type") != "NFC":
        normalizer.unsupported("type", "of normalizers only NFC is converted")
    return True


def _post_processor(file: JsonFile) -> tuple[str | None, str | None]:
    """The special tokens before and behind a single text."""
    processor = file.object("post_processor")
    items = [] if processor is None else [processor]
    if processor is not None and processor.values.get("type") == "Sequence":
        items = [
            JsonFile(file.path, item, f"post_processor.processors[{i}].")
            for i, item in enumerate(processor.items("processors"))
            if isinstance(item, dict)
        ]
    for item in items:
        kind = item.text("type")
        if kind == "TemplateProcessing":
            return _template(item)
        if kind != "ByteLevel":
            item.unsupported("type", "this post-processor is not converted")
    return None, None


def _template(item: JsonFile) -> tuple[str, str]:
    names: list[str | None] = []
    for part in item.items("single"):
        special = part.get("SpecialToken") if isinstance(part, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        names.append(name if isinstance(name, str) else None)
    at = names.index(None) if None in names else -1
    before, behind = names[:at], names[at + 1 :]
    if at < 0 or len(before) > 1 or len(behind) > 1 or None in behind:
        item.unsupported("single", "more than one token before or behind a text is not converted")
    return (before or [""])[0] or "", (behind or [""])[0] or ""

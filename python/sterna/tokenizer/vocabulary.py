"""The vocabulary of a model as its GGUF file gives it, validated: texts, types, scores and the tokens with a special
role."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

from sterna.errors import ModelFormatError, UnsupportedModelError
from sterna.tokenizer.metadata import MAX_TOKEN_BYTES, MAX_TOKENS, Fields

_log = logging.getLogger(__name__)

_TOKENS = "tokenizer.ggml.tokens"
# Between the texts of all tokens in one string; a text that holds it is handled alone.
SEPARATOR = b"\0"
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")


class TokenType(IntEnum):
    """What a token is for (gguf.TokenType)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# tokenizer.ggml.model -> our name of the algorithm, and the ids that a file of that kind means when it names none (the
# defaults of llama.cpp's llama_vocab::impl::load).
_KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": ("bpe", {}),
    "gemma4": ("bpe", {}),
    "llama": ("spm", {"bos": 1, "eos": 2, "unknown": 0}),
    "bert": ("wordpiece", {"bos": 101, "unknown": 100, "separator": 102, "mask": 103}),
    "t5": ("unigram", {"eos": 1, "unknown": 2}),
}

# Files often name no end-of-turn token, or call it an ordinary one, so it is recognised by its text: the lists are
# facts about published models, as gathered in llama.cpp's llama_vocab::impl::load. Earlier entries win.
_EOT_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
_EOM_TEXTS = ("<|eom_id|>",)
_FIM_TEXTS = {
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_END_TEXTS = (
    *_EOT_TEXTS, "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>",
    "<|tool_response>", "[e~[",
)  # fmt: skip
# "</s>" is the strike-through tag of HTML in some vocabularies (Gemma): only a control token of that text ends
# anything.
_END_ONLY_IF_CONTROL = frozenset({"</s>"})

# Older converters called the role markers of some models ("<｜User｜>") ordinary added tokens.
_LOOKS_LIKE_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)
# All of them together; published vocabularies have a few thousand.
_MAX_USER_DEFINED_CHARS = 1 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Everything about the tokens that does not depend on the algorithm; `vocab_size` is `len(tokens)`."""

    file: str
    model: str  # tokenizer.ggml.model
    kind: str  # "bpe", "spm", "wordpiece" or "unigram"
    pre: str  # tokenizer.ggml.pre
    tokens: list[bytes]  # UTF-8, as written in the file
    # All of them, with SEPARATOR between: work on all tokens at once is many times faster than one by one.
    joined: bytes
    types: bytes  # TokenType of each, with wrong types of well-known control tokens put right
    roles: dict[str, int]  # "bos", "eos", "eot", "unknown", "fim_pre", ... -> id
    control_ids: dict[str, int]  # text -> id of what request text must never become
    user_defined_ids: dict[str, int]  # text -> id of what is cut out of any text before the algorithm sees it
    end_ids: frozenset[int]  # of tokens that end a generation
    suppress_ids: tuple[int, ...]  # of tokens that must not be generated

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def ids_of(self, *types: TokenType) -> list[int]:
        """The tokens of these types, in their order."""
        return _ids_of(self.types, types)


def byte_value(text: bytes) -> int | None:
    """The value of a byte token, "<0x0A>"; None for any other text."""
    found = _BYTE_TOKEN.match(text)
    return int(found[1], 16) if found else None


def read_vocabulary(fields: Fields) -> Vocabulary:
    """Reads and validates the tokens of a file. ModelFormatError, UnsupportedModelError (an unknown
    tokenizer.ggml.model)."""
    model = fields.string("tokenizer.ggml.model", None)
    if model is None:
        raise fields.fail("tokenizer.ggml.model", "is missing")
    if model not in _KINDS:
        raise UnsupportedModelError(f"{fields.file}: tokenizers of kind {model!r} are not supported")
    kind, defaults = _KINDS[model]

    tokens = fields.strings(_TOKENS, limit=MAX_TOKENS)
    if not tokens:
        raise fields.fail(_TOKENS, "the vocabulary is empty")
    size = len(tokens)
    most = max(map(len, tokens))
    if most > MAX_TOKEN_BYTES:
        longest = next(i for i, token in enumerate(tokens) if len(token) == most)
        raise fields.fail(_TOKENS, f"token {longest} has {most} bytes, more than the limit of {MAX_TOKEN_BYTES}")
    if most == 0:
        raise fields.fail(_TOKENS, "the text of every token is empty")
    joined = SEPARATOR.join(tokens)
    _check_utf8(fields, joined)

    types = bytearray(_read_types(fields, kind, size))
    roles = _read_roles(fields, size, defaults)
    ends = _settle_roles(_known_texts(tokens, joined), types, roles)
    ends.update(fields.token_ids("tokenizer.ggml.eog_token_ids", size))

    control, user_defined = _special_texts(tokens, types)
    if sum(map(len, user_defined)) > _MAX_USER_DEFINED_CHARS:
        raise fields.fail(_TOKENS, f"the {len(user_defined)} user-defined tokens are too many or too long")
    return Vocabulary(
        file=fields.file,
        model=model,
        kind=kind,
        pre="gemma4" if model == "gemma4" else fields.string("tokenizer.ggml.pre", "") or "default",
        tokens=tokens,
        joined=joined,
        types=bytes(types),
        roles=roles,
        control_ids=control,
        user_defined_ids=user_defined,
        end_ids=frozenset(ends),
        suppress_ids=tuple(fields.token_ids("tokenizer.ggml.suppress_tokens", size)),
    )


def _ids_of(types: bytes | bytearray, wanted: Iterable[TokenType]) -> list[int]:
    return [found.start() for found in re.finditer(b"[%b]" % re.escape(bytes(wanted)), types)]


def _special_texts(tokens: list[bytes], types: bytes | bytearray) -> tuple[dict[str, int], dict[str, int]]:
    """The tokens that only trusted text becomes, and those that are cut out of any text."""
    control, user_defined = {}, {}
    for token_id in _ids_of(types, (TokenType.CONTROL, TokenType.UNKNOWN)):
        control[tokens[token_id].decode()] = token_id
    for token_id in _ids_of(types, (TokenType.USER_DEFINED,)):
        text = tokens[token_id].decode()
        if _LOOKS_LIKE_CONTROL.fullmatch(text):
            control[text] = token_id
        # Converters fill holes of a vocabulary with "[PAD17]": no text of that form belongs to them.
        elif text != f"[PAD{token_id}]":
            user_defined[text] = token_id
    control.pop("", None)
    user_defined.pop("", None)
    return control, user_defined


def _check_utf8(fields: Fields, joined: bytes) -> None:
    try:
        # The separators keep a sequence that is cut in two from healing.
        joined.decode()
    except UnicodeDecodeError as error:
        before = joined.count(SEPARATOR, 0, error.start)
        raise fields.fail(_TOKENS, f"the text of token {before} or one before it is not UTF-8") from error


def _read_types(fields: Fields, kind: str, size: int) -> bytes:
    key = "tokenizer.ggml.token_type"
    if kind in ("bpe", "wordpiece") and not fields.has(key):
        return bytes((TokenType.NORMAL,)) * size
    return fields.token_types(key, size)


def _read_roles(fields: Fields, size: int, defaults: dict[str, int]) -> dict[str, int]:
    names = ("bos", "eos", "eot", "eom", "unknown", "separator", "cls", "mask", *_FIM_TEXTS)
    # "seperator" is how GGUF spells it; the others are names that were in use before.
    spellings = {"separator": "seperator", "fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
    roles = {}
    for name in names:
        for spelling in (name, spellings.get(name, name)):
            token_id = fields.token_id(f"tokenizer.ggml.{spelling}_token_id", size)
            if token_id is not None:
                roles[name] = token_id
                break
        else:
            if name in defaults and defaults[name] < size:
                roles[name] = defaults[name]
    # Nothing depends on padding here, and files with a padding token behind the end of the vocabulary are about.
    try:
        padding = fields.token_id("tokenizer.ggml.padding_token_id", size)
    except ModelFormatError as error:
        _log.warning("%s (ignored)", error)
    else:
        if padding is not None:
            roles["padding"] = padding
    if "cls" in roles and not fields.has("tokenizer.ggml.bos_token_id"):
        roles["bos"] = roles["cls"]
    return roles


def _known_texts(tokens: list[bytes], joined: bytes) -> dict[str, int]:
    """The tokens with a well-known text; of several with the same one the last."""
    known = {text.encode() for text in (*_END_TEXTS, *chain.from_iterable(_FIM_TEXTS.values()))}
    found = known.intersection(tokens)
    if joined.count(SEPARATOR) != len(tokens) - 1:  # a text holds the separator
        return {token.decode(): token_id for token_id, token in enumerate(tokens) if token in found}
    # Searching one long string is many times faster than walking the list.
    ids = {}
    separated = SEPARATOR + joined + SEPARATOR
    for text in found:
        begin, last = separated.find(SEPARATOR + text + SEPARATOR), -1
        while begin >= 0:
            last, begin = begin, separated.find(SEPARATOR + text + SEPARATOR, begin + 1)
        ids[text.decode()] = separated.count(SEPARATOR, 0, last)
    return ids


def _settle_roles(texts: dict[str, int], types: bytearray, roles: dict[str, int]) -> set[int]:
    """Fills `roles` from well-known texts, marks those tokens as control tokens, and returns what ends a generation."""

    def find(name: str, candidates: tuple[str, ...]) -> None:
        for text in candidates:
            if name not in roles and text in texts:
                roles[name] = texts[text]
                mark(text)

    def mark(text: str) -> None:
        token_id = texts[text]
        if types[token_id] != TokenType.CONTROL:
            _log.debug("token %d (%r) is taken for a control token by its text", token_id, text)
            types[token_id] = TokenType.CONTROL

    find("eot", _EOT_TEXTS)
    find("eom", _EOM_TEXTS)
    for name, candidates in _FIM_TEXTS.items():
        find(name, candidates)
    ends = {roles[name] for name in ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom") if name in roles}
    for text in _END_TEXTS:
        if text in texts and not (text in _END_ONLY_IF_CONTROL and types[texts[text]] != TokenType.CONTROL):
            ends.add(texts[text])
            mark(text)
    # In the harmony format and in Solar Open "<|end|>" ends a message, not the turn.
    if "<|end|>" in texts and (
        {"<|return|>", "<|call|>"} <= texts.keys()
        or ("<|flush|>" in texts and texts.keys() & {"<|call|>", "<|calls|>"})
    ):
        ends.discard(texts["<|end|>"])
    return ends

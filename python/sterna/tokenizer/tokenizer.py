"""`Tokenizer`: text to token ids and back, built from a GGUF file; control tokens come from trusted text only."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from sterna.errors import ArgumentError
from sterna.tokenizer.encoder import Encoder
from sterna.tokenizer.matcher import TextMatcher
from sterna.tokenizer.metadata import Fields, Metadata
from sterna.tokenizer.pretokenizers import PRE_TOKENIZERS
from sterna.tokenizer.vocabulary import TokenType, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Tokenizer:
    """The tokenizer of one model. Safe to use from several threads."""

    def __init__(self, fields: Fields, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._pieces: list[bytes] | None = None
        self._byte_level = vocab.kind == "bpe" and vocab.model != "gemma4"
        add_bos, add_eos, add_space_prefix = _DEFAULT_FLAGS[vocab.kind]
        if vocab.kind == "bpe" and vocab.pre in PRE_TOKENIZERS:
            pre = PRE_TOKENIZERS[vocab.pre]
            add_bos, self._byte_level = pre.add_bos, pre.byte_level
        # Some files of Gemma 4 say that it needs no bos; it does.
        self._add_bos = fields.flag("tokenizer.ggml.add_bos_token", add_bos) or vocab.pre == "gemma4"
        self._add_eos = fields.flag("tokenizer.ggml.add_eos_token", add_eos)
        self._add_sep = vocab.kind == "wordpiece" and fields.flag("tokenizer.ggml.add_sep_token", True)
        self._add_space_prefix = (
            fields.flag("tokenizer.ggml.add_space_prefix", add_space_prefix) and vocab.kind != "bpe"
        )
        self._encoder = self._build_encoder(fields)
        self._matcher = TextMatcher(vocab.control_ids)
        self._strips_right, self._strips_left = _stripping_ids(fields, vocab)

    @classmethod
    def from_gguf(cls, metadata: Metadata) -> Tokenizer:
        """The tokenizer of a file.

        ModelFormatError (with file and key) for a malformed vocabulary, UnsupportedModelError for a kind or a
        pre-tokenizer that is not known.
        """
        fields = Fields(metadata)
        return cls(fields, read_vocabulary(fields))

    def _build_encoder(self, fields: Fields) -> Encoder:
        # Each library is imported only by those who need it.
        vocab = self._vocab
        if vocab.kind == "bpe":
            from sterna.tokenizer.bpe import BpeEncoder

            return BpeEncoder(fields, vocab)
        if vocab.kind == "wordpiece":
            from sterna.tokenizer.wordpiece import WordPieceEncoder

            return WordPieceEncoder(fields, vocab)
        from sterna.tokenizer.spm import SentencePieceEncoder

        return SentencePieceEncoder(fields, vocab, add_space_prefix=self._add_space_prefix)

    # What the file says.

    @property
    def kind(self) -> str:
        """ "bpe", "spm" (SentencePiece BPE), "wordpiece" or "unigram"."""
        return self._vocab.kind

    @property
    def pre(self) -> str:
        """How text is cut into words (tokenizer.ggml.pre)."""
        return self._vocab.pre

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocab.vocab_size

    @property
    def token_types(self) -> npt.NDArray[np.int32]:
        """The type of each token (`TokenType`), int32 [vocab_size]."""
        import numpy as np

        return np.frombuffer(self._vocab.types, np.uint8).astype(np.int32)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self._vocab.roles.get("bos")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""
        return self._vocab.roles.get("eos")

    @property
    def eot_id(self) -> int | None:
        """The token that ends a turn of a conversation."""
        return self._vocab.roles.get("eot")

    @property
    def roles(self) -> dict[str, int]:
        """All tokens with a role, by its name: "bos", "eos", "eot", "eom", "unknown", "padding", "fim_pre" and so on.
        All tokens with a role, by its name: "bos", "eos", "eot", "eom", "unknown", "padding", "fim_pre" and so on."""
        return dict(self._vocab.roles)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a generation: eos, eot, eom and their like."""
        return self._vocab.end_ids

    @property
    def suppress_ids(self) -> tuple[int, ...]:
        """The tokens that must not be generated."""
        return self._vocab.suppress_ids

    @property
    def add_bos(self) -> bool:
        """True when `add_special` puts bos before a text."""
        return self._add_bos and self.bos_id is not None

    @property
    def add_eos(self) -> bool:
        """True when `add_special` puts eos (for BERT: the separator) behind a text."""
        return (self._add_sep and "separator" in self._vocab.roles) or (self._add_eos and self.eos_id is not None)

    def is_control(self, token_id: int) -> bool:
        """True for a token that is no part of a reply's text."""
        return self._vocab.types[self._checked(token_id)] in (TokenType.CONTROL, TokenType.UNKNOWN)

    def token_text(self, token_id: int) -> str:
        """The token as the file writes it ("Ġthe", "▁the", "<|im_end|>")."""
        return self._vocab.tokens[self._checked(token_id)].decode()

    @property
    def control_ids(self) -> Mapping[str, int]:
        """What request text never becomes, by its text: control tokens, and others that look like them."""
        return MappingProxyType(self._vocab.control_ids)

    # Text to tokens.

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The tokens of `text`; with `parse_special` the texts of control tokens in it become these tokens."""
        return self.encode_spans([(text, parse_special)], add_special=add_special)

    def encode_spans(self, spans: Iterable[tuple[str, bool]], *, add_special: bool = False) -> list[int]:
        """The tokens of a text that comes in spans (text, trusted).

        Control tokens are recognised in trusted text only, across neighbouring trusted spans too. Everything between
        two control tokens is encoded as one text, whatever spans it came from.
        """
        ids: list[int] = []
        if add_special and self.add_bos:
            ids.append(self._vocab.roles["bos"])
        pending: list[str] = []
        strip_next = False

        def flush(*, strip_end: bool = False) -> None:
            nonlocal strip_next
            text = "".join(pending)
            pending.clear()
            if strip_next:
                text = text.lstrip()
            if strip_end:
                text = text.rstrip()
            strip_next = False
            if text:
                ids.extend(self._encoder.encode(text))

        for text, trusted in _joined(spans):
            position = 0
            for begin, end, token_id in self._matcher.find_all(text) if trusted else ():
                pending.append(text[position:begin])
                flush(strip_end=token_id in self._strips_left)
                ids.append(token_id)
                strip_next = token_id in self._strips_right
                position = end
            pending.append(text[position:])
        flush()
        if add_special and self.add_eos:
            ids.append(self._vocab.roles["separator" if self._add_sep else "eos"])
        return ids

    # Tokens to text.

    def pieces(self) -> list[bytes]:
        """The bytes that each token stands for, [vocab_size]; control tokens give their text."""
        with self._lock:
            if self._pieces is None:
                from sterna.tokenizer.pieces import pieces_of

                self._pieces = pieces_of(self._vocab, byte_level=self._byte_level)
            return self._pieces

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        return self.pieces()[self._checked(token_id)]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD. Control tokens are left out unless `special`."""
        pieces = self.pieces()
        types = self._vocab.types
        hidden = () if special else (TokenType.CONTROL, TokenType.UNKNOWN)
        kept = [i for i in map(self._checked, ids) if types[i] not in hidden]
        text = b"".join([pieces[i] for i in kept])
        # The space that encoding put before the text.
        if (self._add_space_prefix and kept and pieces[kept[0]].startswith(b" ")) or self.kind == "wordpiece":
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise ArgumentError(f"token id {token_id} is outside of the vocabulary of {self.vocab_size} tokens")
        return int(token_id)


# add_bos, add_eos, add_space_prefix where the file does not say (llama.cpp, llama_vocab::impl::load).
_DEFAULT_FLAGS = {
    "bpe": (False, False, False),
    "spm": (True, False, True),
    "wordpiece": (True, False, False),
    "unigram": (False, True, True),
}


def _joined(spans: Iterable[tuple[str, bool]]) -> Iterable[tuple[str, bool]]:
    """Valid Unicode, with neighbouring spans of one kind as one."""
    texts: list[str] = []
    current = False
    for text, trusted in spans:
        if not text:
            continue
        if trusted != current and texts:
            yield _valid("".join(texts)), current
            texts.clear()
        current = trusted
        texts.append(text)
    if texts:
        yield _valid("".join(texts)), current


def _valid(text: str) -> str:
    """`text` with pairs of surrogates joined and lone ones replaced, as the libraries take UTF-8 only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _stripping_ids(fields: Fields, vocab: Vocabulary) -> tuple[frozenset[int], frozenset[int]]:
    """Control tokens that swallow white space behind them, and before them.

    tokenizer.json says so, GGUF does not: models are told by name, as llama.cpp does (llama_vocab::impl::load).
    """
    name = fields.string("general.name", "").lower()
    if "phi-3" in name or "phi3" in name:
        keep = ("<unk>", "<s>", "<|endoftext|>")
        return frozenset(i for text, i in vocab.control_ids.items() if text not in keep), frozenset()
    masks = ("[MASK]",) if "modern-bert" in name else ("<mask>",) if vocab.pre.startswith("jina-v2") else ()
    return frozenset(), frozenset(vocab.control_ids[text] for text in masks if text in vocab.control_ids)

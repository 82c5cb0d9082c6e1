"""WordPiece (BERT) with the `tokenizers` library."""

from __future__ import annotations

from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from sterna.tokenizer.encoder import guarded
from sterna.tokenizer.metadata import Fields
from sterna.tokenizer.vocabulary import TokenType, Vocabulary

_TOKENS = "tokenizer.ggml.tokens"
_SPACE_MARK = "▁"
# As in transformers: a longer word is unknown as a whole.
_MAX_WORD_CHARS = 100


class WordPieceEncoder:
    """Greedy longest-match encoding of words. GGUF marks the beginning of a word ("▁the", "ing"), the library its
    continuation."""

    def __init__(self, fields: Fields, vocab: Vocabulary) -> None:
        unknown = vocab.roles.get("unknown")
        if unknown is None:
            raise fields.fail("tokenizer.ggml.unknown_token_id", "is missing")
        ids: dict[str, int] = {}
        added: list[AddedToken] = []
        for token_id, token in enumerate(vocab.tokens):
            text = token.decode()
            if vocab.types[token_id] == TokenType.USER_DEFINED:
                added.append(AddedToken(text, normalized=False))
            elif vocab.types[token_id] in (TokenType.CONTROL, TokenType.UNKNOWN):
                continue
            else:
                text = text.removeprefix(_SPACE_MARK) if text.startswith(_SPACE_MARK) else "##" + text
            if ids.setdefault(text, token_id) != token_id and token:
                raise fields.fail(_TOKENS, f"tokens {ids[text]} and {token_id} have the same text {token[:80]!r}")
        # No word is spelled like this: the library only needs a name for what it does not know.
        unknown_name = "\0unknown"
        ids[unknown_name] = unknown
        lowercase = fields.flag("tokenizer.ggml.normalizer.lowercase", True)
        strip_accents = fields.flag("tokenizer.ggml.normalizer.strip_accents", lowercase)
        self._library = LibraryTokenizer(
            guarded(
                lambda: models.WordPiece(vocab=ids, unk_token=unknown_name, max_input_chars_per_word=_MAX_WORD_CHARS),
                vocab.file,
                _TOKENS,
            )
        )
        self._library.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
        )
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if added:
            guarded(lambda: self._library.add_tokens(added), vocab.file, _TOKENS)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

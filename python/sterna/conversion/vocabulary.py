"""The tokenizer of a repository as GGUF metadata: tokens of either kind, special tokens, ends, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sterna.conversion.files import read_file
from sterna.conversion.hyperparameters import Entry
from sterna.conversion.repository import JsonFile, Repository
from sterna.conversion.sentencepiece_model import read_sentencepiece
from sterna.conversion.tokenizer_json import TokenList, is_byte_level, read_tokenizer_json
from sterna.errors import FileError, ModelFormatError, UnsupportedModelError
from sterna.sampling import FILE_KEYS
from sterna.tokenizer.vocabulary import TokenType
from sterna.typed_reads import shown

# Names in tokenizer_config.json and config.json -> those in GGUF.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_MAX_TEMPLATE_BYTES = 1 << 20
# transformers adds bos by the key add_bos_token in these, whatever tokenizer.json says.
_LLAMA_CLASSES = frozenset({"LlamaTokenizer", "LlamaTokenizerFast", "BitnetTokenizer"})


def vocabulary_entries(repository: Repository, rows: int, pre: str | None) -> list[Entry]:
    """All `tokenizer.*` keys, and what generation_config.json says, for an embedding of `rows` rows.

    `pre` is tokenizer.ggml.pre, where the caller knows better than what can be told from tokenizer.json.

    FileError where there is no tokenizer, ModelFormatError, UnsupportedModelError (a kind or a pre-tokenizer that is
    not known: names file, key and value).
    """
    settings = repository.json("tokenizer_config.json")
    settings = settings or JsonFile(repository.folder / "tokenizer_config.json", {})
    tokens = _read_tokens(repository, settings, pre)
    if len(tokens.texts) > rows:
        raise ModelFormatError(
            f"{tokens.path}: has {len(tokens.texts)} tokens, the embedding {rows} rows", str(tokens.path), "vocab"
        )
    for token_id in range(len(tokens.texts), rows):
        tokens.texts.append(f"[PAD{token_id}]".encode())
        tokens.types.append(TokenType.UNUSED)
        tokens.scores.append(-1000.0)
    entries: list[Entry] = [("tokenizer.ggml.model", tokens.model, "string")]
    if tokens.pre:
        entries.append(("tokenizer.ggml.pre", tokens.pre, "string"))
    entries.append(("tokenizer.ggml.tokens", tokens.texts, "array[string]"))
    if tokens.model == "llama":
        entries.append(("tokenizer.ggml.scores", tokens.scores, "array[float32]"))
    entries.append(("tokenizer.ggml.token_type", [int(type_) for type_ in tokens.types], "array[int32]"))
    if tokens.merges is not None:
        entries.append(("tokenizer.ggml.merges", tokens.merges, "array[string]"))
    if tokens.add_space_prefix is not None:
        entries.append(("tokenizer.ggml.add_space_prefix", tokens.add_space_prefix, "bool"))
    entries += _special_tokens(repository, settings, tokens)
    entries += _generation(repository, rows, {key: value for key, value, _ in entries})
    template = _chat_template(repository, settings)
    if template is not None:
        entries.append(("tokenizer.chat_template", template, "string"))
    return entries


def _read_tokens(repository: Repository, settings: JsonFile, pre: str | None) -> TokenList:
    json, model = repository.json("tokenizer.json"), repository.folder / "tokenizer.model"
    if json is not None and is_byte_level(json):
        return read_tokenizer_json(json, pre)
    if model.is_file():
        tokens = read_sentencepiece(model)
        _add_tokens(tokens, settings)
        return tokens
    if json is not None:
        kind = (json.values.get("model") or {}).get("type") if isinstance(json.values.get("model"), dict) else None
        raise UnsupportedModelError(
            f"{json.path}: model.type is {shown(kind)} without the pre-tokenizer ByteLevel, and there is no "
            "tokenizer.model beside it"
        )
    place = repository.folder / "tokenizer.json"
    raise FileError(f"{place}: there is no such file, nor tokenizer.model", str(place))


def _add_tokens(tokens: TokenList, settings: JsonFile) -> None:
    """The tokens that tokenizer_config.json adds to those of a tokenizer.model, or makes special."""
    added = settings.object("added_tokens_decoder")
    if added is None:
        return
    for name in added.values:
        if not (name.isdecimal() and len(name) <= 9):
            added.fail(name, "is no token id")
    for name in sorted(added.values, key=int):
        token_id, entry = int(name), added.object(name)
        if entry is None:
            added.fail(name, "is null, expected an object")
        text, special = entry.text("content").encode(), entry.flag("special", False)
        if token_id > len(tokens.texts):
            added.fail(name, f"leaves a hole behind the {len(tokens.texts)} tokens before")
        type_ = TokenType.CONTROL if special else TokenType.USER_DEFINED
        if token_id == len(tokens.texts):
            tokens.texts.append(text)
            tokens.types.append(type_)
            tokens.scores.append(-1000.0)
        elif tokens.texts[token_id] != text or tokens.types[token_id] == TokenType.NORMAL:
            tokens.texts[token_id] = text
            tokens.types[token_id] = type_


def _special_tokens(repository: Repository, settings: JsonFile, tokens: TokenList) -> list[Entry]:
    ids = {text: token_id for token_id, text in enumerate(tokens.texts)}
    found: dict[str, int] = {}
    for name, role in _ROLES.items():
        text = settings.values.get(f"{name}_token")
        if isinstance(text, dict):
            text = text.get("content")
        if isinstance(text, str) and text.encode() in ids:
            found[role] = ids[text.encode()]
        elif isinstance(text, str):
            settings.fail(f"{name}_token", f"is {shown(text)}, which is not in the vocabulary")
        else:
            given = _ids(repository.config, f"{name}_token_id", len(tokens.texts))
            if given:
                found[role] = given[0]
    entries: list[Entry] = [(f"tokenizer.ggml.{role}_token_id", token_id, "uint32") for role, token_id in found.items()]
    by_class = settings.text("tokenizer_class", "") in _LLAMA_CLASSES or tokens.model == "llama"
    for side, at, role, default in (
        ("bos", tokens.prefix, "bos", by_class),
        ("eos", tokens.suffix, "eos", False),
    ):
        key = f"add_{side}_token"
        add = settings.flag(key, default) if by_class or at is None else at != ""
        if at and not by_class and ids.get(at.encode()) != found.get(role):
            raise UnsupportedModelError(
                f"{tokens.path}: post_processor puts {shown(at)} there, which is not {role}_token"
            )
        if add and role not in found:
            settings.fail(key, f"is true, and there is no {role}_token")
        entries.append((f"tokenizer.ggml.{key}", add, "bool"))
    return entries


def _ids(file: JsonFile, name: str, vocab_size: int) -> list[int]:
    """One token id or a list of them; ids outside of the vocabulary (padding, often) are refused."""
    value = file.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if type(token_id) is not int or (not 0 <= token_id < vocab_size and not name.startswith("pad")):
            file.fail(name, f"is {shown(value)}, expected ids below {vocab_size}")
    return [token_id for token_id in ids if 0 <= token_id < vocab_size]


def _generation(repository: Repository, rows: int, known: dict[str, Any]) -> list[Entry]:
    """What ends a generation beside eos, and the sampling that the model's makers recommend."""
    generation = repository.json("generation_config.json")
    ends = _ids(repository.config, "eos_token_id", rows)
    if generation is not None:
        ends += _ids(generation, "eos_token_id", rows)
    entries: list[Entry] = []
    eos = known.get("tokenizer.ggml.eos_token_id")
    if set(ends) - {eos}:
        all_ends = {*ends} if eos is None else {*ends, eos}
        entries.append(("tokenizer.ggml.eog_token_ids", sorted(all_ends), "array[uint32]"))
    if generation is not None and generation.flag("do_sample", False):
        for key, name in FILE_KEYS.items():
            name = {"penalty_window": ""}.get(name, name)
            if name and generation.has(name):
                kind = "int32" if name == "top_k" else "float32"
                value = generation.integer(name, 0, 1 << 30) if name == "top_k" else generation.number(name, high=100.0)
                entries.append((f"general.sampling.{key}", value, kind))
    return entries


def _chat_template(repository: Repository, settings: JsonFile) -> str | None:
    """chat_template.jinja, else the default one of tokenizer_config.json."""
    path: Path = repository.folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_file(path, _MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"{path}: is not UTF-8 text: byte {error.start}", str(path)) from None
    template = settings.values.get("chat_template")
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(entries, {}).get("template")
    if template is not None and not isinstance(template, str):
        settings.fail("chat_template", f"is {shown(template)}, expected a string")
    return template

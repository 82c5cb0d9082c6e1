"""Which chat template a model file has, found without importing what renders it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The default for a file without template whose vocabulary has ChatML's control tokens."""

TEMPLATE_KEY = "tokenizer.chat_template"


class FoundTemplate(NamedTuple):
    """What a `ChatTemplate` is made of."""

    text: str
    source: str  # "file", "argument" or "default (ChatML)"
    tokens: dict[str, str]  # by name ("bos_token", ...) the texts of the model's own control tokens


def find_template(metadata: Mapping[str, Any], text: str | None = None) -> FoundTemplate | None:
    """The template of a model file, or `text` instead of it; None if there is none and no default fits.

    `metadata` has GGUF's keys and Python values. A file without template whose vocabulary holds ChatML's control tokens
    gets `CHATML`. For any other the engine cannot know what the model was trained on.
    """
    tokens = metadata.get("tokenizer.ggml.tokens") or ()

    def text_of(key: str) -> str:
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        found = tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else ""
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

    names = {"bos_token": text_of("bos"), "eos_token": text_of("eos")}
    names |= {f"{name}_token": text_of(key) for name, key in (("pad", "padding"), ("unk", "unknown")) if text_of(key)}
    template = metadata.get(TEMPLATE_KEY) if text is None else text
    if isinstance(template, str) and template:
        return FoundTemplate(template, "file" if text is None else "argument", names)
    if "<|im_start|>" in tokens and "<|im_end|>" in tokens:
        return FoundTemplate(CHATML, "default (ChatML)", names)
    return None

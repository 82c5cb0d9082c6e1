"""Tokenizers: text to token ids and back, built from a GGUF file's own metadata after validation."""

from sterna.tokenizer.metadata import Metadata
from sterna.tokenizer.tokenizer import Tokenizer
from sterna.tokenizer.vocabulary import TokenType

__all__ = ["Metadata", "TokenType", "Tokenizer"]

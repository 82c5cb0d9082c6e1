"""Loaded models for the tests of the public API: tiny ones with random weights, and the two real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sterna
from chat_template import TEMPLATE
from oracle import model_path


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    return model_path("llama3")


@pytest.fixture(scope="session")
def llm(tiny_path: Path) -> Iterator[sterna.LLM]:
    """A Llama of random weights with 320 tokens: 3 control tokens, 256 bytes, 61 syllables."""
    with sterna.load(tiny_path, chat_template=TEMPLATE, context=512, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def long_llm(tiny_path: Path) -> Iterator[sterna.LLM]:
    """With a context that takes seconds to fill."""
    with sterna.load(tiny_path, context=100_000, threads=2, chat_template="{{ messages[0].content }}") as model:
        yield model


@pytest.fixture(scope="session")
def prompt() -> list[int]:
    """Tokens of the vocabulary, end tokens excepted."""
    return np.random.default_rng(7).integers(3, 320, 23).tolist()


@pytest.fixture(scope="session")
def smollm2() -> Iterator[sterna.LLM]:
    with sterna.load("smollm2:135m", context=2048) as model:
        yield model


@pytest.fixture(scope="session")
def gemma3() -> Iterator[sterna.LLM]:
    with sterna.load("gemma3:270m", context=1024) as model:
        yield model

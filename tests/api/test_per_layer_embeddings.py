"""Models with a second embedding table: a row of a soft prompt has none of its own there, and takes that of token 0."""

from __future__ import annotations

import numpy as np
import oracle
import sterna
from sterna._core import Gguf, dequantize


def test_soft_prompts_of_a_model_with_per_layer_embeddings() -> None:
    path = oracle.model_path("gemma4-small")
    file = Gguf(path)
    tensor = next(tensor for tensor in file.tensors if tensor.name == "token_embd.weight")
    table = dequantize(file.read(tensor.name), tensor.format).reshape(tensor.shape)
    tokens = np.random.default_rng(3).integers(3, 64, 30).tolist()
    with sterna.load(path, context=128, threads=2) as llm:
        rows = llm.logits(tokens, embeddings=table[[0, 0, 0]])
        assert np.array_equal(rows, llm.logits([0, 0, 0, *tokens])[3:])
        other = llm.logits(tokens, embeddings=table[[7, 8, 9]])
        assert np.isfinite(other).all()
        assert not np.array_equal(other, llm.logits([7, 8, 9, *tokens])[3:])

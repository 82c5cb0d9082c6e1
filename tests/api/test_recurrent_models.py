"""Models with recurrent layers through the public API: what they say about themselves, and drafts that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import sterna
from oracle import model_path
from recurrent_models import RECURRENT, write_model


def test_info_says_that_nothing_is_guessed_ahead() -> None:
    with sterna.load(model_path("mamba2-small"), context=512) as llm:
        assert not llm.info.speculation
        assert llm.info.to_dict()["speculation"] is False
        assert "states of recurrent layers" in str(llm.info)
        assert llm.info.memory.has_states
        (pool,) = llm.info.memory.pools
        assert pool.window == -1
        assert llm.info.memory.kv == pool.pages * pool.page_bytes
        plan = sterna.plan(model_path("mamba2-small"), context=512)
        assert plan.pools == llm.info.memory.pools
    with sterna.load(model_path("llama3"), context=64) as llm:
        assert llm.info.speculation


def test_a_state_is_found_by_the_next_request() -> None:
    with sterna.load(model_path("lfm2-small"), context=512) as llm:
        tokens = [int(t) for t in np.random.default_rng(3).integers(3, 64, 200)]
        first = llm.generate(tokens, max_tokens=20, temperature=0)
        again = llm.generate([*tokens, *first.tokens], max_tokens=20, temperature=0)
        assert again.usage.cached_tokens >= 192


def test_drafts_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = write_model(RECURRENT["lfm2"](), tmp_path / "lfm2.gguf")
    with pytest.raises(sterna.ArgumentError, match="lfm2.gguf has recurrent layers"):
        sterna.load(path, draft=path)

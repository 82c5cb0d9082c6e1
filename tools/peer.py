"""llama.cpp through llama-cpp-python's low-level interface: the peer that benchmarks and comparisons hold sterna to."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PeerSettings:
    """What of llama.cpp's own choices is worth trying: weight repacking and flash attention."""

    repack: bool = True
    flash_attention: bool = False

    def __str__(self) -> str:
        return f"repack {'on' if self.repack else 'off'}, flash attention {'on' if self.flash_attention else 'off'}"


ALL_SETTINGS = tuple(PeerSettings(repack, flash) for repack in (True, False) for flash in (False, True))


class Peer:
    """One model in llama.cpp, one sequence, no sampler."""

    def __init__(
        self,
        path: str,
        *,
        context: int,
        threads: int,
        settings: PeerSettings = PeerSettings(),
        all_logits: bool = False,
    ) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = settings.repack
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = max(512, context if all_logits else 512)
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(settings.flash_attention)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    @staticmethod
    def version() -> str:
        """Version of the package, and the CPU features it was built with."""
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}; {llama_cpp.llama_print_system_info().decode().strip(' |')}"

    def clear(self) -> None:
        """Forgets the sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def evaluate(self, tokens: Sequence[int], start: int, outputs: Sequence[int]) -> None:
        """Computes tokens at positions start.., keeping logits of the rows in `outputs`."""
        batch = self._batch
        wanted = set(outputs)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = int(token)
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i in wanted
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def logits(self, tokens: Sequence[int], start: int = 0) -> npt.NDArray[np.float32]:
        """Logits of every token, [num_tokens, vocab_size]."""
        self.evaluate(tokens, start, range(len(tokens)))
        rows = [
            np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, i), (self.vocab_size,))
            for i in range(len(tokens))
        ]
        return np.stack(rows)

    def prefill_seconds(self, tokens: Sequence[int]) -> float:
        """Time of a prompt from an empty cache, logits of its last token included."""
        self.clear()
        begin = time.perf_counter()
        for start in range(0, len(tokens), 512):
            chunk = tokens[start : start + 512]
            self.evaluate(chunk, start, [len(chunk) - 1])
        self._api.llama_synchronize(self._context)
        return time.perf_counter() - begin

    def decode_seconds(self, tokens: Sequence[int], start: int) -> float:
        """Time of computing `tokens` one after another from position `start` on."""
        begin = time.perf_counter()
        for i, token in enumerate(tokens):
            self.evaluate([token], start + i, [0])
        self._api.llama_synchronize(self._context)
        return time.perf_counter() - begin

    def close(self) -> None:
        """Frees the context and the model."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

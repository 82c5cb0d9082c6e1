"""llama.cpp through llama-cpp-python's low-level interface: the peer that benchmarks and comparisons hold sterna to."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UBATCH = 512  # llama.cpp's own choice of tokens per run
MAX_BATCH = 2048


@dataclass(frozen=True)
class PeerSettings:
    """What of llama.cpp's own choices is worth trying: repacked weights, flash attention, one cache for sequences."""

    repack: bool = True
    flash_attention: bool = False
    unified_cache: bool = False

    def __str__(self) -> str:
        unified = ", unified cache" if self.unified_cache else ""
        return f"repack {_on(self.repack)}, flash attention {_on(self.flash_attention)}{unified}"


def _on(value: bool) -> str:
    return "on" if value else "off"


def all_settings(sequences: int = 1) -> list[PeerSettings]:
    """Those worth trying; one sequence has no use for a unified cache."""
    both = (True, False)
    unified = (False, True) if sequences > 1 else (False,)
    return [PeerSettings(repack, flash, one) for repack in both for flash in (False, True) for one in unified]


class Peer:
    """One model in llama.cpp, without a sampler."""

    def __init__(
        self,
        path: str,
        *,
        context: int,
        threads: int,
        sequences: int = 1,
        settings: PeerSettings = PeerSettings(),
        all_logits: bool = False,
    ) -> None:
        """`context` is that of each sequence; all_logits: `logits` may be asked for that many tokens at once."""
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
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.kv_unified = settings.unified_cache
        params.n_batch = max(MAX_BATCH, context if all_logits else 0)
        params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(settings.flash_attention)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.sequences = sequences
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    @staticmethod
    def version() -> str:
        """Version of the package, and the CPU features it was built with."""
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}; {llama_cpp.llama_print_system_info().decode().strip(' |')}"

    def clear(self) -> None:
        """Forgets all sequences."""
        self._api.llama_memory_clear(self._memory, True)

    def rewind(self, position: int) -> None:
        """Forgets what stands at `position` and after it, in all sequences."""
        for sequence in range(self.sequences):
            if not self._api.llama_memory_seq_rm(self._memory, sequence, position, -1):
                raise RuntimeError("llama_memory_seq_rm failed")

    def evaluate(self, tokens: Sequence[int], start: int, outputs: Collection[int], sequence: int = 0) -> None:
        """Computes tokens at positions start.. of a sequence, keeping logits of the rows in `outputs`."""
        wanted = set(outputs)
        for i, token in enumerate(tokens):
            self._put(i, token, start + i, sequence, i in wanted)
        self._decode(len(tokens))

    def _put(self, row: int, token: int, position: int, sequence: int, output: bool) -> None:
        batch = self._batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = output

    def _decode(self, rows: int) -> None:
        self._batch.n_tokens = rows
        if self._api.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama_decode failed")

    def logits(self, tokens: Sequence[int], start: int = 0) -> npt.NDArray[np.float32]:
        """Logits of every token, [num_tokens, vocab_size]."""
        self.evaluate(tokens, start, range(len(tokens)))
        rows = [
            np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, i), (self.vocab_size,))
            for i in range(len(tokens))
        ]
        return np.stack(rows)

    def prefill(self, prompts: Sequence[Sequence[int]], start: int) -> None:
        """One prompt for each sequence from position `start` on, and logits of its last token."""
        for sequence, tokens in enumerate(prompts):
            for begin in range(0, len(tokens), MAX_BATCH):
                chunk = tokens[begin : begin + MAX_BATCH]
                last = begin + len(chunk) == len(tokens)
                self.evaluate(chunk, start + begin, [len(chunk) - 1] if last else [], sequence)

    def prefill_seconds(self, prompts: Sequence[Sequence[int]], start: int = 0) -> float:
        """Time of `prefill`."""
        begin = time.perf_counter()
        self.prefill(prompts, start)
        self._api.llama_synchronize(self._context)
        return time.perf_counter() - begin

    def decode_seconds(self, steps: Sequence[Sequence[int]], start: int) -> float:
        """Time of `steps`, one token for each sequence in each, from position `start` on; as llama-batched-bench."""
        begin = time.perf_counter()
        for i, tokens in enumerate(steps):
            for sequence, token in enumerate(tokens):
                self._put(sequence, token, start + i, sequence, True)
            self._decode(len(tokens))
            self._api.llama_synchronize(self._context)
        return time.perf_counter() - begin

    def close(self) -> None:
        """Frees the context and the model."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

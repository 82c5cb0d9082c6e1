"""The methods of `LLM` that look at a text without continuing it: score, logits, hidden states, vectors, perplexity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from sterna.errors import MemoryBudgetError
from sterna.memory_budget import BUDGET_SHARE, available_memory, readable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import RequestHandle
    from sterna.divergence import Divergence
    from sterna.llm import LLM, Tokens
    from sterna.results import Perplexity


class MeasuringMethods:
    """What an `LLM` tells of given texts. Any number of threads may ask."""

    def score(self, text: str | Tokens) -> npt.NDArray[np.float32]:
        """Log-probability of each token after those before it: float32 [n - 1], as the first has none before it.

        A str is tokenised as a prompt of `generate` is.
        """
        llm = cast("LLM", self)
        engine, tokens = llm.engine, llm._prompt_tokens(text)
        if len(tokens) == 1:
            import numpy as np

            return np.zeros(0, np.float32)
        return _scores(engine.submit_score(tokens))

    @overload
    def embed(
        self, texts: str | list[int] | npt.NDArray[np.integer[Any]], *, normalize: bool = True
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def embed(self, texts: list[str] | list[list[int]], *, normalize: bool = True) -> npt.NDArray[np.float32]: ...
    def embed(self, texts: Any, *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """The vector of a text, float32 [d]; for a list of texts those of all, [n, d], computed together.

        Rows are pooled as the file says; where it does not, an encoder's by their mean, a decoder's last one is taken.
        With `normalize` vectors have length 1. A str is tokenised with the special tokens that the vocabulary adds
        ([CLS] and [SEP] of BERT), a list of ints is taken as tokens. UnsupportedModelError where the model makes no
        vectors; ContextOverflowError for a text longer than `info.max_embedded` tokens, which is never cut;
        NumericError, ArgumentError.
        """
        llm = cast("LLM", self)
        from sterna.embedding import embed

        prompts = llm._batch_of(texts)
        if prompts is None:
            vector: npt.NDArray[np.float32] = embed(llm.engine, [llm._text_tokens(texts)], normalize)[0]
            return vector
        return embed(llm.engine, [llm._text_tokens(item) for item in prompts], normalize)

    def logits(
        self,
        tokens: Tokens,
        *,
        lora: str | tuple[str, float] | None = None,
        embeddings: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float32]:
        """What the model says after each token: float32 [len(tokens), vocab_size]. MemoryBudgetError.

        lora, embeddings: as in `generate`; input rows in front of the tokens have no rows in the result.
        """
        llm = cast("LLM", self)
        return self._rows(tokens, llm.info.vocab_size, "", lora, embeddings)

    def hidden_states(
        self,
        tokens: Tokens,
        layer: int,
        *,
        lora: str | tuple[str, float] | None = None,
        embeddings: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float32]:
        """What a layer reads for each token: float32 [len(tokens), hidden_size].

        Layers count from 0, which reads the embeddings; the number of layers, or -1, stands for what the last one
        gives, before the final norm. lora, embeddings: as in `logits`. ArgumentError, MemoryBudgetError.
        """
        llm = cast("LLM", self)
        from sterna.hidden import hidden_state_name

        name = hidden_state_name(llm._program, layer)
        return self._rows(tokens, llm.engine.hidden_size, name, lora, embeddings)

    def _rows(
        self,
        tokens: Tokens,
        width: int,
        value: str,
        lora: str | tuple[str, float] | None,
        embeddings: npt.ArrayLike | None,
    ) -> npt.NDArray[np.float32]:
        """Logits, or rows of another value, after each token."""
        llm = cast("LLM", self)
        ids = llm._prompt_tokens(llm._checked(tokens))
        needed, available = len(ids) * width * 4, available_memory()
        if available is not None and needed > available * BUDGET_SHARE:
            raise MemoryBudgetError(f"the result needs {readable(needed)}; {readable(available)} are available")
        context, key, rows = llm._contexts.make(lora, embeddings)
        handle = llm.engine.submit_score(
            ids, positions_from=rows, logits=True, hidden=value, context=context, context_key=key
        )
        return _scores(handle)

    def perplexity(
        self,
        text: str,
        context: int = 512,
        *,
        save_logits: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """How well the model predicts a text, as llama-perplexity measures it; lower is better. `float()` gives it.

        Windows of `context` tokens, each scored on its second half. `save_logits` is a file for the distributions at
        all scored positions, what `divergence` compares with (llama-perplexity reads it as well). `progress` is called
        with (windows done, windows). ArgumentError for a text shorter than one window; FileError.
        """
        llm = cast("LLM", self)
        from sterna.perplexity import perplexity

        return perplexity(llm.engine, llm.tokenizer, text, context, progress, save_logits)

    def divergence(
        self,
        reference: str | Path,
        text: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Divergence:
        """How far this model lies from a reference run, from the file that its `perplexity(save_logits=...)` wrote.

        Also reads the files of llama-perplexity --kl-divergence-base. The windows are the file's; `text`, where it is
        given, must have the same tokens. ArgumentError for another text, vocabulary or a longer context; FileError,
        ModelFormatError for a file that is none or cut off.
        """
        llm = cast("LLM", self)
        from sterna.perplexity import divergence

        return divergence(llm.engine, llm.tokenizer, reference, text, progress)


def _scores(handle: RequestHandle) -> npt.NDArray[np.float32]:
    try:
        return handle.scores()
    except BaseException:
        handle.cancel()
        raise

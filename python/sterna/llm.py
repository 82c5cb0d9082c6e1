"""`LLM`: a loaded model. Everything that can be asked of it; any number of threads may ask at the same time."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias, Unpack, cast, overload

from sterna.adapters import ContextMaker
from sterna.arguments import GENERATE_ALIASES, is_array, keyword_arguments
from sterna.async_methods import AsyncMethods
from sterna.errors import ArgumentError, ContextOverflowError, SternaError, TemplateError
from sterna.generation import Request, TextStream, wait_all
from sterna.measuring import MeasuringMethods
from sterna.request_options import REQUEST_OPTION_NAMES, RequestOptions, split_options, submitted
from sterna.sampling import Sampling, encodable, engine_params, new_seed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sterna._core import Engine, Program
    from sterna.answers import Answer, ChatPrompt, ChatStream, OnEnd
    from sterna.chat import ChatTemplate, FoundTemplate, Message
    from sterna.info import ModelInfo
    from sterna.prefix_cache import PrefixCache
    from sterna.results import Completion, Stats
    from sterna.session import Session
    from sterna.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Tokens: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
Messages: TypeAlias = "str | Sequence[Mapping[str, Any] | Message]"
Tools: TypeAlias = Sequence[Mapping[str, Any]]

# A token of text stands for 4 bytes or so: what has more than this per token of the context is not worth tokenising.
_MAX_BYTES_PER_TOKEN = 16
# What the engine itself tells a template.
_TEMPLATE_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt", "now"})
_generate_arguments = keyword_arguments(GENERATE_ALIASES, REQUEST_OPTION_NAMES)


class LLM(AsyncMethods, MeasuringMethods):
    """A loaded model, made by `sterna.load`. `with` or `close()` frees it; `info` tells what was loaded.

    Where a method takes sampling arguments, they may come as keywords (`temperature=0`), as `sampling=Sampling(...)`,
    or both, keywords winning. The same prompt, sampling and seed give the same tokens, whatever else runs at the time.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: FoundTemplate | None,
        info: ModelInfo,
        *,
        defaults: Mapping[str, Any],
        seed: int | None = None,
        prefix_cache: PrefixCache | None = None,
        decoder_start: int | None = None,
        adapters: Mapping[str, int] | None = None,
        program: Program,
    ) -> None:
        self._running = engine
        self._defaults = dict(defaults)
        self._sampling = Sampling(seed=seed)
        self.tokenizer = tokenizer
        self._found_template = template
        self._prefix_cache = prefix_cache
        self._program = program
        self._decoder_start = decoder_start
        self._contexts = ContextMaker(adapters or {}, engine.hidden_size)
        self.info = info

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template; None when the model has none. TemplateError when it is too long."""
        from sterna.chat import make_template

        return None if self._found_template is None else make_template(self._found_template)

    # Its life.

    @property
    def closed(self) -> bool:
        return self._running.closed

    def close(self) -> None:
        """Ends what is running and frees weights, cache and threads, now. A closed model cannot be used again.

        What is to be kept in a prefix cache is written first.
        """
        if self._prefix_cache is not None:
            self._prefix_cache.close()
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"context {self.info.context}"
        return f"<sterna.LLM {self.info.name}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a loaded model cannot be pickled or copied: load it in each process that needs it")

    def stats(self) -> Stats:
        """What the engine does now, and what it has done since it was loaded. SternaError when the model is closed."""
        from sterna.results import Stats

        return Stats.of(self.engine.stats())

    @property
    def engine(self) -> Engine:
        """The engine below, over token ids. SternaError when the model is closed."""
        if self._running.closed:
            raise SternaError("the model is closed")
        return self._running

    # Text.

    @overload
    def generate(
        self,
        prompt: str | list[int] | npt.NDArray[np.integer[Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Completion]: ...
    @_generate_arguments
    def generate(
        self,
        prompt: Any,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion | list[Completion]:
        """Continues a prompt; for a list of prompts a list of results, computed together.

        A str is tokenised with the special tokens that the vocabulary adds (bos); texts of control tokens in it are
        plain text. A list of ints is taken as tokens. `max_tokens` None: up to an end token, or a full context.
        ContextOverflowError when a prompt leaves no room; ArgumentError.
        """
        prompts = self._batch_of(prompt)
        if prompts is None:
            return wait_all([self._submit(self._begun(prompt), max_tokens, sampling, options)])[0]
        # All are checked before the first one is computed.
        tokens = [self._begun(item) for item in prompts]
        return wait_all(submitted(partial(self._submit, ids, max_tokens, sampling, options) for ids in tokens))

    @_generate_arguments
    def stream(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> TextStream:
        """As `generate` for one prompt, in pieces: str with `tokens`, `logprobs`; the last has a `finish_reason`."""
        return TextStream(self._submit(self._begun(prompt), max_tokens, sampling, options))

    # Chat.

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Message: ...
    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[True],
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatStream: ...
    @_generate_arguments
    def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        tools: Tools | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Message | ChatStream:
        """Answers a str or a list of OpenAI messages through the chat template; with `stream` as events.

        Text of the messages never becomes a control token. `tools` are JSON schemas for the template, and calls of them
        in the answer become `tool_calls`. `template_kwargs` are names for the template (`enable_thinking`).
        TemplateError when the model has no template, or it fails; ContextOverflowError, ArgumentError.
        """
        from sterna.answers import ChatStream

        prompt = self._chat_prompt(messages, tools, template_kwargs)
        answer = ChatStream(self._answer(prompt, max_tokens=max_tokens, sampling=sampling, options=options))
        return answer if stream else answer.wait()

    def session(self, system: str | None = None, *, messages: Sequence[Mapping[str, Any]] = ()) -> Session:
        """A conversation over several turns; earlier ones are not computed again. It begins with `messages`."""
        from sterna.session import Session

        return Session(self, system, messages=messages)

    def apply_chat_template(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The text that `chat` would give to the model. TemplateError, ArgumentError."""
        rendered = self._chat_template().render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **template_kwargs
        )
        return rendered.text

    # Tokens.

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The tokens of a text. `add_special` adds bos and the like where the vocabulary wants them.

        With `parse_special` the texts of control tokens become these tokens: for trusted text only.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Tokens, special: bool = False) -> str:
        """The text of tokens; control tokens are left out unless `special`. ArgumentError for an id out of range."""
        return self.tokenizer.decode(self._checked(tokens), special=special)

    # Below: how requests come about.

    def _chat_template(self) -> ChatTemplate:
        if self.template is None:
            raise TemplateError(
                f"{self.info.name} has no chat template: use generate(), or give one to load(chat_template=...)"
            )
        return self.template

    def _chat_prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        template_kwargs: Mapping[str, Any] | None,
        *,
        add_generation_prompt: bool = True,
    ) -> ChatPrompt:
        from sterna.answers import ChatPrompt

        more = dict(template_kwargs or {})
        for name in _TEMPLATE_ARGUMENTS & more.keys():
            raise ArgumentError(f"template_kwargs: {name!r} is the engine's own")
        rendered = self._chat_template().render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **more
        )
        self._check_length(rendered.text)
        tokens = self.tokenizer.encode_spans(rendered.spans)
        # Most templates write bos themselves.
        if self.tokenizer.add_bos and tokens[:1] != [self.tokenizer.bos_id]:
            tokens.insert(0, cast(int, self.tokenizer.bos_id))
        self._restore(tokens)
        return ChatPrompt(tokens, opens_reasoning=rendered.opens_reasoning, tools=bool(tools))

    def _answer(
        self,
        prompt: ChatPrompt,
        *,
        max_tokens: int | None,
        sampling: Sampling | None,
        options: Mapping[str, Any],
        on_end: OnEnd | None = None,
    ) -> Answer:
        from sterna.answers import Answer

        # SentencePiece writes the space before a word with the word, the first one of an answer too.
        drop_space = self.tokenizer.kind == "spm"
        request = self._submit(prompt.tokens, max_tokens, sampling, options, drop_leading_space=drop_space)
        return Answer(request, prompt, on_end)

    def _merged(self, sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ArgumentError(f"sampling is {type(sampling).__name__}, must be a sterna.Sampling")
        base = sampling if sampling is not None else self._sampling
        if base.seed is None:
            base = base.updated({"seed": self._sampling.seed})
        return base.updated(options)

    def _submit(
        self,
        tokens: list[int],
        max_tokens: int | None,
        sampling: Sampling | None,
        options: Mapping[str, Any],
        *,
        drop_leading_space: bool = False,
    ) -> Request:
        sampling_options, terms = split_options(options)
        merged = self._merged(sampling, sampling_options)
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 0):
            raise ArgumentError(f"max_tokens is {max_tokens!r:.60}, must be 0 or more, or None for no limit")
        texts, ids = merged.stops
        seed = new_seed() if merged.seed is None or merged.seed == -1 else int(merged.seed)
        # A model with an encoder and a decoder encodes the prompt, and the text begins with a token of its own.
        encoded, begun = ((), tokens) if self._decoder_start is None else (tokens, [self._decoder_start])
        context, context_key, rows = self._contexts.make(terms.lora, terms.embeddings, encoded)
        handle = self.engine.submit(
            begun,
            max_tokens=None if max_tokens is None else min(max_tokens, self.info.context),
            sampling=engine_params(merged, self._defaults, self.tokenizer.suppress_ids, seed),
            stop_ids=sorted({*ids, *(() if merged.ignore_eos else self.tokenizer.end_ids)}),
            stop_strings=texts,
            top_logprobs=merged.top_logprobs,
            drop_leading_space=drop_leading_space,
            context=context,
            context_key=context_key,
            **terms.engine_arguments(),
        )
        # The folder is for what depends on tokens alone.
        keep = None if self._prefix_cache is None or context is not None else self._prefix_cache.keep
        return Request(
            handle, prompt=tokens, rows=rows, seed=seed, logprobs=merged.top_logprobs is not None, on_end=keep
        )

    def _batch_of(self, prompt: Any) -> Sequence[Any] | None:
        """The prompts of a batch, or None for a single prompt."""
        if isinstance(prompt, str) or not isinstance(prompt, Sequence):
            return None
        is_batch = all(isinstance(item, Sequence) or is_array(item) for item in prompt)
        return prompt if is_batch else None

    def _text_tokens(self, text: str | Tokens) -> list[int]:
        """The tokens of a text to embed, of which there is at least one; how many there may be is the engine's."""
        if isinstance(text, str):
            encodable(text, "text")
            self._check_length(text)
            tokens = self.tokenizer.encode(text, add_special=True)
        else:
            tokens = self._checked(text)
        if not tokens:
            raise ArgumentError("the text is empty")
        return tokens

    def _prompt_tokens(self, prompt: str | Tokens) -> list[int]:
        """The tokens of a prompt, of which there is at least one and not more than the context holds."""
        if isinstance(prompt, str):
            encodable(prompt, "prompt")
            self._check_length(prompt)
            tokens = self.tokenizer.encode(prompt, add_special=True)
        else:
            tokens = self._checked(prompt)
        if not tokens:
            raise ArgumentError("the prompt is empty")
        if len(tokens) > self.info.context:
            raise ContextOverflowError(f"the prompt has {len(tokens)} tokens; the context holds {self.info.context}")
        return tokens

    def _begun(self, prompt: str | Tokens) -> list[int]:
        """The tokens of a prompt that will be continued; what the prefix cache has of them is at hand then."""
        tokens = self._prompt_tokens(prompt)
        self._restore(tokens)
        return tokens

    def _restore(self, tokens: list[int]) -> None:
        if self._prefix_cache is not None:
            self._prefix_cache.restore(tokens)

    def _check_length(self, text: str) -> None:
        limit = _MAX_BYTES_PER_TOKEN * self.info.context
        if len(text) * 4 > limit and len(text.encode("utf-8", "replace")) > limit:
            raise ContextOverflowError(
                f"the prompt has {len(text)} characters, more than {self.info.context} tokens can hold"
            )

    def _checked(self, tokens: Tokens) -> list[int]:
        """Tokens as a list of ints of the vocabulary. ArgumentError."""
        try:
            if is_array(tokens):
                if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
                    raise ArgumentError(f"expected token ids, not an array {list(tokens.shape)} of {tokens.dtype}")
                ids: list[int] = tokens.tolist()
            elif isinstance(tokens, Sequence) and not isinstance(tokens, str | bytes):
                ids = [operator.index(token) for token in tokens]
            else:
                raise ArgumentError(f"expected a list of token ids, not {type(tokens).__name__}")
        except TypeError as error:
            raise ArgumentError(f"token ids must be integers: {error}") from None
        for position, token in enumerate(ids):
            if not 0 <= token < self.info.vocab_size:
                raise ArgumentError(
                    f"token {token} at position {position} is not in the vocabulary of {self.info.vocab_size}"
                )
        return ids

"""What generation gives back: `Completion` and its parts, and the pieces of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sterna._core import EngineStats
    from sterna.chat import Message, ToolCall


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `cached_tokens` of the prompt were not computed again.

    Equal usages differ in these at most: what the cache had is no part of the answer.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went, and the tokens that it went to.

    Of the generated tokens `draft_tokens` were guessed ahead, and `accepted_tokens` guesses were right.
    """

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Of the prompt's tokens that were computed; 0 when there were none."""
        tokens = self.prompt_tokens - self.cached_tokens
        return tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Of the generated tokens but the first, which the prompt's last step gives; 0 when there were none."""
        tokens = self.generated_tokens - 1
        return tokens / self.decode_seconds if tokens > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Stats:
    """What an engine does now, and what it has done since it was made.

    `pages_in_use` hold the KV of running requests, `pages_cached` that of ended ones, kept for requests that begin
    alike; `page_limit` is how many of 64 tokens there may be. A batch is one run of the model over `rows` tokens.
    """

    running: int
    waiting: int
    pages_in_use: int
    pages_cached: int
    page_limit: int
    requests: int  # that have ended, and their tokens:
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    draft_tokens: int
    accepted_tokens: int
    preemptions: int
    batches: int
    rows: int

    @staticmethod
    def of(stats: EngineStats) -> Stats:
        names = [field.name for field in fields(Stats) if field.name not in ("batches", "rows")]
        return Stats(**{name: getattr(stats, name) for name in names}, batches=stats.runs, rows=stats.tokens)


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its log-probability under the model's own logits, and the most likely tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One generated continuation.

    `tokens` are the generated ones, without the one that stopped it. `finish_reason` is "stop" (an end token or a stop
    text: `stopped_by` has it), "length" (max_tokens, or the context is full) or "cancelled". `logprobs` has an entry
    per token where the request asked for them. The same request with `seed` gives the same tokens again.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    seed: int
    logprobs: list[TokenLogprob] | None = None
    stopped_by: int | str | None = None

    def __str__(self) -> str:
        return self.text


class TextPiece(str):
    """Text of a stream, always whole characters; `tokens` are those that arrived with it."""

    __slots__ = ("finish_reason", "logprobs", "tokens")

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]  # where the request asked for them
    finish_reason: str | None  # of the last piece only

    def __new__(
        cls,
        text: str,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        finish_reason: str | None = None,
    ) -> TextPiece:
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        piece.logprobs = logprobs
        piece.finish_reason = finish_reason
        return piece

    def __reduce__(self) -> tuple[type[TextPiece], tuple[object, ...]]:
        return TextPiece, (str(self), self.tokens, self.logprobs, self.finish_reason)


@dataclass(frozen=True)
class ChatEvent:
    """A part of a streamed answer: text of one kind, a tool call, or at the end the whole message."""

    kind: Literal["content", "reasoning", "tool_call", "end"]
    text: str = ""
    tool_call: ToolCall | None = None
    message: Message | None = None

    def __str__(self) -> str:
        """The text of the answer proper, so that printing every event prints the answer."""
        return self.text if self.kind == "content" else ""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-probability of `count` tokens in `windows` windows; `error` is a standard error."""

    value: float
    error: float
    count: int
    windows: int
    context: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"

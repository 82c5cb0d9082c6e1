"""Memory of a model, known before anything is allocated."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from sterna.errors import MemoryBudgetError
from sterna.memory_budget import readable

if TYPE_CHECKING:
    from sterna._core import Program

PAGE_TOKENS = 64
STATE_WINDOW = -1  # of a pool whose pages hold states
# How the cache rounds keys and values: q8_0 is 8.5 bits for each, in groups of 32 along a head's dimension.
KvDtype = Literal["f16", "f32", "q8_0"]
KV_DTYPES: tuple[str, ...] = get_args(KvDtype)
# Rows that one prefill run computes, and the most rows and bytes of logits: a vocabulary of 262,144 has a MiB per row.
PREFILL_TOKENS = 512
MAX_OUTPUTS = 64
MAX_LOGITS_BYTES = 16 << 20


@dataclass(frozen=True)
class KvPool:
    """Pages of the layers that see all positions (window 0), the last `window`, or a state (-1): what they may take.

    A page of states holds those of one sequence after up to 64 tokens; each is there twice, so that a run that was
    interrupted can begin again.
    """

    window: int
    page_bytes: int
    pages: int  # at most


@dataclass(frozen=True)
class PartMemory:
    """What one device holds of a model whose layers are divided; the fields are those of `MemoryPlan`."""

    device: str
    layers: int
    weights: int
    kv: int
    scratch: int
    draft: int = 0
    budget: int | None = None

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.scratch + self.draft

    @property
    def fits(self) -> bool:
        return self.budget is None or self.total <= self.budget


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a loaded model takes beyond Python, its libraries and the tokenizer, once its context has been full.

    `weights` are packed for the kernels. `kv` is for `kv_tokens`; it is allocated in slabs as sequences grow, so a
    short run takes a part of it. `scratch` is what one run computes in, logits included. `draft` is all that a draft
    model takes, its own KV cache for as many tokens included. The file is read and never mapped: cached pages of it are
    not counted. `budget` is what it was planned for (None: unknown), `max_context` the longest context within it.
    `device` is whose memory it is, "cpu" or "cuda:0"; `budget` is unknown where that is not there. Where layers are
    divided (`gpu_layers`), these are sums, `device` is "cpu + cuda:0", and `parts` says what each device takes.
    """

    weights: int
    kv: int
    scratch: int
    context: int
    kv_tokens: int
    pools: tuple[KvPool, ...]
    budget: int | None = None
    max_context: int | None = None
    draft: int = 0
    device: str = "cpu"
    parts: tuple[PartMemory, ...] = ()  # two of them, or none

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.scratch + self.draft

    @property
    def has_states(self) -> bool:
        """Whether layers keep states: what was computed cannot be cut back to fewer tokens."""
        return any(pool.window == STATE_WINDOW for pool in self.pools)

    @property
    def fits(self) -> bool:
        """Every device has room for its part."""
        return all(part.budget is None or part.total <= part.budget for part in self.parts or (self,))

    def to_dict(self) -> dict[str, Any]:
        parts = [{**asdict(part), "total": part.total, "fits": part.fits} for part in self.parts]
        return {**asdict(self), "parts": parts, "total": self.total, "fits": self.fits}

    def check(self) -> None:
        """MemoryBudgetError with all that it takes, and what would fit, if this plan does not."""
        problems = []
        for part in self.parts or (self,):
            if part.budget is None or part.total <= part.budget:
                continue
            what = (
                f"the {part.layers} layers on {part.device} need" if isinstance(part, PartMemory) else "the model needs"
            )
            where = "" if part.device == "cpu" else f" on {part.device}"
            draft = f", draft model {readable(part.draft)}" if part.draft else ""
            problems.append(
                f"{what} {readable(part.total)}, the memory budget{where} is {readable(part.budget)}: "
                f"weights {readable(part.weights)}, KV cache {readable(part.kv)} for {self.kv_tokens} tokens, scratch "
                f"{readable(part.scratch)}{draft}"
            )
        if problems:
            fitting = f"a context of {self.max_context} tokens" if self.max_context else "no context"
            raise MemoryBudgetError(f"{'; '.join(problems)}; {fitting} would fit")


@dataclass(frozen=True)
class PlanSettings:
    """What a plan is compiled with, apart from the program."""

    threads: int  # 0: one per CPU
    kv_dtype: str
    max_tokens: int
    max_outputs: int
    max_sequences: int
    device: str = "cpu"  # or "cuda:N"

    @staticmethod
    def choose(*, vocab_size: int, threads: int, kv_dtype: str, max_sequences: int) -> PlanSettings:
        """Sizes of one run: every running sequence may want its logits, scoring wants as many rows as are cheap."""
        outputs = max(1, min(MAX_OUTPUTS, MAX_LOGITS_BYTES // (4 * vocab_size)))
        outputs = max(outputs, max_sequences)
        return PlanSettings(threads, kv_dtype, max(PREFILL_TOKENS, outputs), outputs, max_sequences)


@dataclass(frozen=True)
class CacheSize:
    """What is asked of a cache: a `context` (None: the trained length, or what of it fits), and room for `kv_tokens`
    (None: one context)."""

    context: int | None
    kv_tokens: int | None
    trained_context: int

    @property
    def longest_context(self) -> int:
        return max(self.trained_context, self.context or 0)

    def choose(self, fitting: int | None) -> tuple[int, int]:
        """Context and tokens of the cache, where a context of `fitting` tokens has room (0: none; None: unknown)."""
        context = self.context
        if context is None:
            context = min(self.trained_context, self.kv_tokens or fitting or self.trained_context)
        return context, self.kv_tokens or context


@dataclass(frozen=True)
class ModelPart:
    """Layers of a model that one device has, that of the settings."""

    program: Program
    settings: PlanSettings
    layers: int


class _Needs:
    """What one part takes, for any number of tokens."""

    def __init__(self, part: ModelPart) -> None:
        from sterna import _core

        self._settings = settings = part.settings
        if settings.device == "cpu":
            bytes_of = partial(_core.plan_memory, threads=settings.threads)
        else:
            bytes_of = partial(_core.plan_memory_cuda, device=int(settings.device.partition(":")[2]))
        self.weights, self.scratch, self._kinds = bytes_of(
            part.program, kv_dtype=settings.kv_dtype, max_tokens=settings.max_tokens, max_outputs=settings.max_outputs
        )
        # Bytes of a page on all devices together, by which an engine limits a pool's pages.
        self._whole_pages = [size for _, size in self._kinds]

    @staticmethod
    def join(parts: Sequence[_Needs]) -> None:
        """A page of the parts of one model is in each of them that has layers of its window."""
        sums = Counter[int]()
        for part in parts:
            sums.update(dict(part._kinds))
        for part in parts:
            part._whole_pages = [sums[window] for window, _ in part._kinds]

    def pools(self, tokens: int) -> tuple[KvPool, ...]:
        from sterna._core import pool_page_limit

        most, rows = self._settings.max_sequences, self._settings.max_tokens
        return tuple(
            KvPool(window, size, pool_page_limit(window, tokens, most, rows, whole))
            for (window, size), whole in zip(self._kinds, self._whole_pages, strict=True)
        )

    def kv(self, tokens: int) -> int:
        return sum(pool.pages * pool.page_bytes for pool in self.pools(tokens))

    def total(self, tokens: int) -> int:
        return self.weights + self.scratch + self.kv(tokens)


def plan_memory(
    parts: Sequence[ModelPart], budgets: Sequence[int | None], size: CacheSize, draft: ModelPart | None = None
) -> MemoryPlan:
    """The plan of a model, or of one whose layers are divided, with a budget for each part.

    A draft model is on the first part's device, and its cache holds as many tokens.
    """
    needs = [_Needs(part) for part in parts]
    _Needs.join(needs)
    drafts = [] if draft is None else [_Needs(draft)]
    fittings = [
        _fitting_context([own, *(drafts if own is needs[0] else [])], budget, size.longest_context)
        for own, budget in zip(needs, budgets, strict=True)
    ]
    fitting = min((each for each in fittings if each is not None), default=None)
    context, kv_tokens = size.choose(fitting)
    memories = tuple(
        PartMemory(
            device=part.settings.device,
            layers=part.layers,
            weights=own.weights,
            kv=own.kv(kv_tokens),
            scratch=own.scratch,
            draft=sum(each.total(kv_tokens) for each in drafts) if own is needs[0] else 0,
            budget=budget,
        )
        for own, part, budget in zip(needs, parts, budgets, strict=True)
    )
    return MemoryPlan(
        weights=sum(part.weights for part in memories),
        kv=sum(part.kv for part in memories),
        scratch=sum(part.scratch for part in memories),
        context=context,
        kv_tokens=kv_tokens,
        pools=_common_pools([own.pools(kv_tokens) for own in needs]),
        budget=None if None in budgets else sum(budget or 0 for budget in budgets),
        max_context=fitting,
        draft=memories[0].draft,
        device=" + ".join(part.device for part in memories),
        parts=memories if len(memories) > 1 else (),
    )


def _common_pools(parts: Sequence[tuple[KvPool, ...]]) -> tuple[KvPool, ...]:
    """Pools of a whole model: a page is in each part that has layers of its window, and as large as these together."""
    found: dict[int, KvPool] = {}
    for pool in (pool for pools in parts for pool in pools if pool.page_bytes):
        before = found.get(pool.window)
        page_bytes = pool.page_bytes + (0 if before is None else before.page_bytes)
        found[pool.window] = replace(pool, page_bytes=page_bytes)
    return tuple(found.values())


def _fitting_context(parts: Sequence[_Needs], budget: int | None, longest: int) -> int | None:
    """The longest context, up to `longest`, that all parts together have room for; 0: none. None: nobody knows."""
    if budget is None:
        return None
    pages = bisect.bisect_right(
        range(-(-longest // PAGE_TOKENS)),
        budget,
        key=lambda page: sum(p.total((page + 1) * PAGE_TOKENS) for p in parts),
    )
    return min(pages * PAGE_TOKENS, longest)


def plan_encoder(part: ModelPart, budget: int | None, size: CacheSize) -> tuple[ModelPart, MemoryPlan]:
    """As `plan_memory`, for a model that takes whole texts only: one run has rows for the longest of them.

    A context of None is the trained length, halved until the plan fits. The cache holds what one run needs: its rows,
    and a page more for each of its texts.
    """
    settings = part.settings
    wanted, _ = size.choose(None)
    while True:
        rows = max(settings.max_tokens, wanted)
        chosen = replace(part, settings=replace(settings, max_tokens=rows))
        pages = size.kv_tokens or rows + PAGE_TOKENS * settings.max_outputs
        plan = plan_memory([chosen], [budget], replace(size, context=wanted, kv_tokens=pages))
        if plan.fits or size.context is not None or wanted <= settings.max_tokens:
            return chosen, plan
        wanted = max(settings.max_tokens, wanted // 2)

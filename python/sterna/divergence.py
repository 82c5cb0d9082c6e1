"""How far a model's distributions lie from those of a reference run, position by position: Kullback-Leibler divergence.

The figures are those of llama-perplexity --kl-divergence, in float64 (ggml-org/llama.cpp, tools/perplexity): the
divergence of a position sums over tokens whose reference log-probability is above -16, standard errors are those of
means of independent values, and that of the ratio of two perplexities takes their covariance into account.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.errors import NumericError
from sterna.results import Perplexity

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_LEAST_LOG_PROBABILITY = -16.0
# Rows whose probabilities are in memory at once, in a few copies of 8 bytes.
_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.6f} ± {self.error:.6f}"


@dataclass(frozen=True)
class Divergence:
    """A model against a reference on the same text; `float()` gives the mean KL divergence, in nats.

    `kl_percentiles` are by percent: 50 is the median. `same_top` is the share of positions with the same most likely
    token. Differences of probability are those of the text's own token, model minus reference.
    """

    perplexity: Perplexity
    reference: Perplexity
    log_ratio: Estimate  # of the perplexities
    ratio: Estimate
    kl: Estimate
    kl_percentiles: dict[float, float]
    kl_max: float
    same_top: Estimate
    probability_difference: Estimate
    probability_difference_rms: Estimate

    def __float__(self) -> float:
        return self.kl.value

    def __str__(self) -> str:
        percent = Estimate(100 * self.same_top.value, 100 * self.same_top.error)
        mean, rms = self.probability_difference, self.probability_difference_rms
        lines = [
            ("perplexity", str(self.perplexity)),
            ("perplexity, reference", str(self.reference)),
            ("ratio", str(self.ratio)),
            ("ln of the ratio", str(self.log_ratio)),
            ("KL divergence, mean", str(self.kl)),
            *((_name(percentile), f"{value:.6f}") for percentile, value in self.kl_percentiles.items()),
            ("KL divergence, maximum", f"{self.kl_max:.6f}"),
            ("same top token", f"{percent.value:.3f} ± {percent.error:.3f} %"),
            ("Δp, mean", f"{100 * mean.value:.4f} ± {100 * mean.error:.4f} %"),
            ("Δp, RMS", f"{100 * rms.value:.4f} ± {100 * rms.error:.4f} %"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _name(percentile: float) -> str:
    return "KL divergence, median" if percentile == 50 else f"KL divergence, {percentile:g} %"


def log_softmax(logits: F32) -> F64:
    """Row-wise, in float64. NumericError for rows that hold no numbers."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    if not np.isfinite(wide.min(initial=0.0)):
        raise NumericError("the model's logits hold NaN or infinity")
    return wide


class Comparison:
    """Collects positions of a run and of its reference; `result` has the figures."""

    def __init__(self) -> None:
        self._parts: list[F64] = []

    def add(self, logits: F32, reference: F32, tokens: npt.NDArray[np.int32]) -> None:
        """Positions: the model's logits and the reference's log-probabilities, [n, vocab_size], and the next tokens."""
        step = max(1, _ELEMENTS // logits.shape[1])
        for begin in range(0, len(logits), step):
            part = slice(begin, begin + step)
            self._parts.append(_measure(logits[part], reference[part], tokens[part]))

    def result(self, windows: int, context: int) -> Divergence:
        """The figures of all positions."""
        losses, reference, kl, difference, same = np.concatenate(self._parts, axis=1)
        count = len(losses)
        log_ratio = _estimate(losses - reference)
        ratio = math.exp(log_ratio.value)
        mean_square = _estimate(difference**2)
        rms = math.sqrt(mean_square.value)
        share = float(same.mean())
        return Divergence(
            perplexity=perplexity_of(losses, windows, context),
            reference=perplexity_of(reference, windows, context),
            log_ratio=log_ratio,
            ratio=Estimate(ratio, ratio * log_ratio.error),
            kl=_estimate(kl),
            kl_percentiles={percent: float(np.percentile(kl, percent)) for percent in PERCENTILES},
            kl_max=float(kl.max()),
            same_top=Estimate(share, math.sqrt(share * (1 - share) / max(count - 1, 1))),
            probability_difference=_estimate(difference),
            probability_difference_rms=Estimate(rms, 0.5 / rms * mean_square.error if rms > 0 else 0.0),
        )


def _measure(logits: F32, reference: F32, tokens: npt.NDArray[np.int32]) -> F64:
    """[5, n]: losses of both, divergence, difference of probability, and whether the most likely token is the same."""
    ours, theirs = log_softmax(logits), reference.astype(np.float64)
    counted = theirs > _LEAST_LOG_PROBABILITY
    terms = np.exp(theirs, out=np.zeros_like(theirs), where=counted)
    terms *= np.subtract(theirs, ours, out=np.zeros_like(theirs), where=counted)
    rows = np.arange(len(tokens))
    loss, reference_loss = -ours[rows, tokens], -theirs[rows, tokens]
    difference = np.exp(-loss) - np.exp(-reference_loss)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return np.stack([loss, reference_loss, terms.sum(axis=1), difference, same.astype(np.float64)])


def _estimate(values: F64) -> Estimate:
    return Estimate(float(values.mean()), math.sqrt(values.var() / max(len(values) - 1, 1)))


def perplexity_of(losses: F64, windows: int, context: int) -> Perplexity:
    """The perplexity of tokens with these losses, in nats."""
    mean = _estimate(losses)
    value = math.exp(mean.value)
    return Perplexity(value, value * mean.error, len(losses), windows, context)

"""The sampler against numpy: every stage, their order, ties, what is refused, and the random numbers themselves."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sterna import _core
from sterna.errors import ArgumentError, NumericError

Row = npt.NDArray[np.float32]


def rows(seed: int, n: int, scale: float = 3.0) -> Row:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def order(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.lexsort((np.arange(len(logits)), -logits))


def reference(logits: Row, **p: float) -> npt.NDArray[np.float64]:
    """Probabilities as sampler.h defines them, in float64."""
    x = logits.astype(np.float64)
    keep = order(x)
    if p.get("top_k"):
        keep = keep[: int(p["top_k"])]
    share = np.exp(x[keep] - x[keep[0]])
    if p.get("top_p", 1) < 1:
        reached = np.cumsum(share) / share.sum()
        keep = keep[: int(np.searchsorted(reached, p["top_p"], side="left")) + 1]
    share = np.exp(x[keep] - x[keep[0]])
    keep = keep[: int((share >= p.get("min_p", 0)).sum())]
    weight = np.exp((x[keep] - x[keep[0]]) / p.get("temperature", 1))
    out = np.zeros(len(x))
    out[keep] = weight / weight.sum()
    return out


SETTINGS: list[dict[str, float]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1e-9},
    {"temperature": 50.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 100_000},
    {"top_p": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.01, "temperature": 0.6},
    {"top_p": 0.95, "min_p": 0.02, "temperature": 1.5},
]


@pytest.mark.parametrize("params", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 1000, 49152])
@pytest.mark.parametrize("scale", [0.5, 6.0])
def test_filters(params: dict[str, float], n: int, scale: float) -> None:
    logits = rows(n, n, scale)
    got = _core.Sampler(_core.SamplingParams(**params), n).probabilities(logits)
    want = reference(logits, **params)
    # A share at the very edge of top_p may fall on either side in float32; no such case is among these seeds.
    assert np.array_equal(got > 0, want > 1e-38)
    np.testing.assert_allclose(got, want, rtol=2e-6 / min(1.0, max(params.get("temperature", 1), 0.1)), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=40),
    st.integers(0, 10),
    st.sampled_from([1.0, 0.3, 0.77]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_ties_go_to_the_lower_token(values: list[float], top_k: int, top_p: float, min_p: float) -> None:
    """Where logits are equal, what a filter keeps are the lower tokens."""
    logits = np.array(values, np.float32)
    params = _core.SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    got = _core.Sampler(params, len(values)).probabilities(logits)
    kept = np.flatnonzero(got)
    assert set(kept) == set(order(logits.astype(np.float64))[: len(kept)])
    if top_k:
        assert len(kept) <= top_k
    greedy = _core.Sampler(_core.SamplingParams(temperature=0), len(values)).sample(logits)
    assert greedy.token == int(np.argmax(logits))


def test_order_of_stages() -> None:
    """Temperature comes after top_p: a high temperature lets no further token in."""
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    for temperature in (0.1, 1.0, 100.0):
        sampler = _core.Sampler(_core.SamplingParams(temperature=temperature, top_p=0.85), 3)
        assert np.flatnonzero(sampler.probabilities(logits)).tolist() == [0, 1]


def test_bias_and_penalties() -> None:
    logits = rows(1, 50)
    history = [3, 3, 7, 9, 7, 3, 11]
    params = _core.SamplingParams(
        repetition_penalty=1.3,
        penalty_window=4,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={0: 5.0, 7: -1.5},
    )
    want = logits.copy()
    want[0] += np.float32(5)
    want[7] += np.float32(-1.5)
    for token in set(history[-4:]):
        want[token] = want[token] / np.float32(1.3) if want[token] > 0 else want[token] * np.float32(1.3)
    for token in {9, 7, 3, 11}:  # generated: the prompt is three tokens long
        want[token] -= np.float32(history[3:].count(token) * 0.25 + 0.5)
    got = _core.Sampler(params, 50).probabilities(logits, history=history, num_prompt=3)
    np.testing.assert_allclose(got, reference(want), rtol=2e-6)


@pytest.mark.parametrize(("window", "penalised"), [(0, []), (1, [2]), (2, [1, 2]), (100, [0, 1, 2]), (-1, [0, 1, 2])])
def test_penalty_window(window: int, penalised: list[int]) -> None:
    params = _core.SamplingParams(repetition_penalty=2.0, penalty_window=window)
    got = _core.Sampler(params, 4).probabilities(np.ones(4, np.float32), history=[0, 1, 2], num_prompt=3)
    assert np.flatnonzero(got < got[3]).tolist() == penalised


def test_scratch_is_clean_between_calls() -> None:
    sampler = _core.Sampler(_core.SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0), 20)
    logits = rows(2, 20)
    first = sampler.probabilities(logits)
    sampler.probabilities(logits, history=[1, 2, 3, 1, 1], num_prompt=0)
    assert np.array_equal(first, sampler.probabilities(logits))


def test_bans_and_masks() -> None:
    logits = rows(3, 130)
    banned = _core.SamplingParams(temperature=0, logit_bias={int(np.argmax(logits)): -math.inf})
    assert _core.Sampler(banned, 130).sample(logits).token == int(np.argsort(-logits)[1])

    words = np.zeros(3, np.uint64)
    for token in (5, 64, 129):
        words[token // 64] |= np.uint64(1 << (token % 64))
    for params in (_core.SamplingParams(), _core.SamplingParams(top_k=50, top_p=0.99)):
        got = _core.Sampler(params, 130).probabilities(logits, mask=words)
        assert set(np.flatnonzero(got)) <= {5, 64, 129}

    seen: list[list[int]] = []

    def mask(generated: list[int], allowed: npt.NDArray[np.uint64]) -> None:
        seen.append(generated)
        assert allowed.tolist()[:2] == [2**64 - 1] * 2
        allowed[:] = 0
        allowed[1] = 2

    sampler = _core.Sampler(_core.SamplingParams(), 130)
    assert sampler.sample(logits, history=[1, 2, 3], num_prompt=1, mask=mask).token == 65
    assert seen == [[2, 3]]
    with pytest.raises(ArgumentError, match="no token"):
        sampler.sample(logits, mask=np.zeros(3, np.uint64))
    with pytest.raises(ArgumentError, match="2 words; 3 are needed"):
        sampler.sample(logits, mask=np.zeros(2, np.uint64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -math.nan])
@pytest.mark.parametrize("at", [0, 15, 16, 40])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}])
def test_not_finite(bad: float, at: int, params: dict[str, float]) -> None:
    logits = rows(4, 41)
    logits[at] = bad
    with pytest.raises(NumericError, match=f"token {at} is"):
        _core.Sampler(_core.SamplingParams(**params), 41).sample(logits)
    with pytest.raises(NumericError):
        _core.log_softmax(logits)


@pytest.mark.parametrize("extreme", [3.4e38, -3.4e38, 1e-42, 0.0])
def test_extreme_logits(extreme: float) -> None:
    """The edges of float: still a distribution, also after penalties."""
    logits = np.array([extreme, 1.0, -extreme, 2.0], np.float32)
    for params in (
        _core.SamplingParams(temperature=1e-30),
        _core.SamplingParams(repetition_penalty=1e-6, top_p=0.9),
        _core.SamplingParams(repetition_penalty=1e6, presence_penalty=1e6, min_p=0.1),
    ):
        got = _core.Sampler(params, 4).probabilities(logits, history=[0, 1, 2], num_prompt=1)
        assert math.isclose(got.sum(), 1.0)


@pytest.mark.parametrize(
    "params",
    [{"temperature": 0.8}, {"top_k": 12}, {"top_p": 0.9}, {"min_p": 0.02, "temperature": 2.0}],
    ids=str,
)
def test_distribution(params: dict[str, float]) -> None:
    """Chi-square over 20,000 positions of one seed; the bound is the 99.9 % point (Wilson and Hilferty)."""
    n, draws = 24, 20_000
    logits = rows(5, n, 1.5)
    sampler = _core.Sampler(_core.SamplingParams(seed=77, **params), n)
    counts = np.zeros(n)
    history = np.zeros(draws, np.int32)
    for i in range(draws):
        counts[sampler.sample(logits, history=history[: i % 100], choice=i // 100).token] += 1
    expected = reference(logits, **params) * draws
    used = expected > 0
    assert counts[~used].sum() == 0
    chi = float((((counts - expected) ** 2)[used] / expected[used]).sum())
    df = int(used.sum()) - 1
    assert chi < df * (1 - 2 / (9 * df) + 3.09 * math.sqrt(2 / (9 * df))) ** 3


def test_seed_choice_and_position_decide() -> None:
    logits = rows(6, 1000, 1.0)

    def draw(seed: int, choice: int, length: int) -> int:
        sampler = _core.Sampler(_core.SamplingParams(seed=seed), 1000)
        return sampler.sample(logits, history=[0] * length, choice=choice).token

    assert draw(1, 0, 5) == draw(1, 0, 5)
    assert len({draw(s, c, p) for s in (0, 1, 2**64 - 1) for c in (0, 1) for p in (0, 1, 7)}) > 14


def philox_reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10, from the paper."""
    for i in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        k = [(key[0] + i * 0x9E3779B9) % 2**32, (key[1] + i * 0xBB67AE85) % 2**32]
        counter = [(b >> 32) ^ counter[1] ^ k[0], b % 2**32, (a >> 32) ^ counter[3] ^ k[1], a % 2**32]
    return counter


def test_philox() -> None:
    # Known answers of Random123 (kat_vectors): an all-zero and an all-ones input.
    assert philox_reference([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = [0xFFFFFFFF]
    assert philox_reference(ones * 4, ones * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for seed, choice, position in [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**64 - 1), (123456789012345, 7, 99)]:
        words = philox_reference([position % 2**32, position >> 32, choice, 0], [seed % 2**32, seed >> 32])
        assert _core.random_uniform(seed, choice, position) == ((words[0] << 32 | words[1]) >> 11) * 2.0**-53


@pytest.mark.parametrize("n", [1, 3, 16, 33, 262_144])
def test_log_probabilities(n: int) -> None:
    """Of the raw logits, whatever the parameters do."""
    logits = rows(7, n)
    x = logits.astype(np.float64)
    want = x - x.max() - math.log(np.exp(x - x.max()).sum())
    np.testing.assert_allclose(_core.log_softmax(logits), want, rtol=3e-7, atol=3e-7)
    params = _core.SamplingParams(temperature=0.3, logit_bias={0: 100.0})
    got = _core.Sampler(params, n).sample(logits, top_logprobs=5)
    assert got.token == 0
    assert got.logprob == pytest.approx(want[0], abs=1e-6)
    best = order(x)[:5]
    assert [t for t, _ in got.top_logprobs] == best.tolist()
    np.testing.assert_allclose([p for _, p in got.top_logprobs], want[best], rtol=1e-6, atol=1e-6)
    assert _core.Sampler(params, n).sample(logits, top_logprobs=0).top_logprobs == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", -1.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("penalty_window", -2),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("logit_bias", {10: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {0: math.nan}),
        ("logit_bias", {0: math.inf}),
    ],
)
def test_refused_parameters(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        _core.Sampler(_core.SamplingParams(**{name: value}), 10)  # type: ignore[arg-type]

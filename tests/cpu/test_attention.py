"""Attention over the paged cache: close to float64, and the same bits for any threads, chunks, pages and company."""

from __future__ import annotations

import numpy as np
import pytest
from attention_layer import KV_TYPES, SEED, Attention, Shape, cached, run
from kernel_cases import LEVELS, Array, Floats, Net, assert_same_bits, compiled, value
from sterna.rounding import round_to_q8_0

GRID = [
    *(Shape(heads=group * 2, kv_heads=2, dim=16, value_dim=16) for group in (1, 2, 3, 4, 8)),
    *(Shape(heads=4, kv_heads=1, dim=dim, value_dim=dim) for dim in (16, 32, 64, 80, 128, 256)),
    Shape(heads=5, kv_heads=1, dim=20, value_dim=20),
    Shape(heads=6, kv_heads=2, dim=48, value_dim=33),
    Shape(heads=3, kv_heads=3, dim=8, value_dim=1),
    *(Shape(heads=4, kv_heads=2, dim=32, value_dim=32, window=window) for window in (1, 16, 64, 65, 100)),
    *(Shape(heads=4, kv_heads=2, dim=32, value_dim=32, softcap=softcap) for softcap in (0.5, 50.0)),
    Shape(heads=7, kv_heads=1, dim=64, value_dim=64, window=37, softcap=5.0),
]


@pytest.mark.parametrize("shape", GRID, ids=str)
@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_against_float64(shape: Shape, kv_dtype: str) -> None:
    """Every row of 200, which cross pages and windows; the levels agree bit for bit."""
    attention = Attention(shape, 200)
    got = [run(attention.plan(isa=level, kv_dtype=kv_dtype, threads=2), 200) for level in LEVELS if level != "scalar"]
    for other in got[1:]:
        assert_same_bits(other, got[0])
    if not got:
        got = [run(attention.plan(kv_dtype=kv_dtype), 200)]
    want = attention.expected(range(200), kv_dtype)
    error = np.linalg.norm(got[0] - want, axis=1) / np.linalg.norm(want, axis=1)
    print("largest relative error of a row:", error.max())
    # Scores of about 3 are rounded to 2^-22, a softcap of 50 takes the tanh of a fraction; weights follow their scores.
    assert error.max() <= (2e-5 if shape.softcap >= 50 else 4e-6)


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
@pytest.mark.parametrize(
    "shape", [Shape(4, 2, 16, 16), Shape(3, 1, 20, 17), Shape(2, 2, 16, 16, window=70, softcap=3.0)], ids=str
)
def test_scalar_is_the_definition(shape: Shape, kv_dtype: str) -> None:
    attention = Attention(shape, 131)
    want = run(attention.plan(isa="scalar", kv_dtype=kv_dtype), 131)
    for level in LEVELS:
        assert_same_bits(run(attention.plan(isa=level, kv_dtype=kv_dtype), 131), want, level)


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("length", [1024, 1025, 1100])
def test_spans(length: int, kv_dtype: str) -> None:
    """Lengths around the end of a span, by chunks and at once, with a page that two chunks share."""
    attention = Attention(Shape(2, 1, 16, 16), length)
    ways = ({"threads": 1}, 0), ({"threads": 2}, 257), ({"threads": 3}, 1000), *(({"isa": level}, 512) for level in LEVELS[1:])
    results = [run(attention.plan(kv_dtype=kv_dtype, **options), length, chunk) for options, chunk in ways]
    for other in results[1:]:
        assert_same_bits(other, results[0])
    rows = [0, 1022, 1023, length - 1]
    want = attention.expected(rows, kv_dtype)
    error = np.linalg.norm(results[0][rows] - want, axis=1) / np.linalg.norm(want, axis=1)
    assert error.max() <= 4e-6


INVARIANT = [Shape(6, 2, 32, 32), Shape(4, 1, 20, 17, window=70), Shape(2, 2, 16, 16, softcap=4.0)]


@pytest.mark.parametrize("shape", INVARIANT, ids=str)
@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_threads_chunks_and_page_order(shape: Shape, kv_dtype: str) -> None:
    attention = Attention(shape, 200)
    want = run(attention.plan(kv_dtype=kv_dtype), 200)
    for threads in (1, 2, 3, 4):
        plan = attention.plan(kv_dtype=kv_dtype, threads=threads)
        for chunk in (1, 7, 64, 0) if threads < 3 else (7, 64):
            assert_same_bits(run(plan, 200, chunk), want, f"{threads} threads, chunks of {chunk}")
        assert_same_bits(run(plan, 200, 64, pages=[5, 2, 7, 0]), want, "shuffled pages")


def hard_rows(length: int, dim: int) -> Array:
    """Rows of all sizes, with zeros, codes half way between two integers, and numbers next to those: [length, dim]."""
    rng = np.random.default_rng(SEED)
    x = (rng.standard_normal((length, dim)) * 10.0 ** rng.uniform(-12, 6, (length, 1))).astype(np.float32)
    x[::7, ::3] = 0
    x[1::7] = 0
    # Scales of a power of two: codes are these numbers.
    x[2::7] = (rng.integers(-253, 254, x[2::7].shape) / 2).astype(np.float32)
    x[2::7, ::32] = 127
    x[3::7] = np.nextafter(x[2::7], np.float32(0))[: len(x[3::7])]
    x[3::7, ::32] = 127
    return x


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 31, 32, 33, 48, 64, 80, 129])
def test_what_a_q8_0_cache_holds(dim: int) -> None:
    """Rows that see themselves only give their values back: GGML's rounding to Q8_0, exactly, on every level."""
    attention = Attention(Shape(2, 1, 16, dim, window=1), 140)
    attention.v = hard_rows(140, dim)
    attention.source["v.table"] = attention.v.view(np.uint8).reshape(-1).copy()
    want = cached(attention.v, 1, "q8_0").repeat(2, axis=1).reshape(140, -1)
    assert np.array_equal(round_to_q8_0(attention.v), want[:, :dim])
    for level in LEVELS:
        assert np.array_equal(run(attention.plan(isa=level, kv_dtype="q8_0"), 140), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(1e7), np.float32(-3e38)])
def test_q8_0_hides_nothing(bad: float) -> None:
    """What no scale can express, in one element of one key or value: every row that sees it is NaN, the others are not."""
    shape = Shape(2, 1, 48, 48)
    for table, element in (("k", 5), ("k", 40), ("v", 47)):
        attention = Attention(shape, 90, bad=((table, 70, element), bad))
        for level in LEVELS:
            got = run(attention.plan(isa=level, kv_dtype="q8_0"), 90).reshape(90, 2, 48)
            assert np.isfinite(got[:70]).all()
            seen = got[70:, :, 32:] if table == "v" else got[70:]
            assert np.isnan(seen).all(), (table, element, level)


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_stale_pages(kv_dtype: str) -> None:
    """What a page held before does not matter, NaN and infinity included."""
    for level in LEVELS:
        attention = Attention(Shape(3, 1, 16, 16, window=40), 100)
        fresh = run(attention.plan(kv_dtype=kv_dtype, isa=level), 100)
        plan = attention.plan(kv_dtype=kv_dtype, isa=level)
        run(plan, 100, tokens=np.arange(100, dtype=np.int32)[::-1].copy())
        assert_same_bits(run(plan, 70, 7), fresh[:70], level)
        assert_same_bits(run(plan, 100, 64, pages=[1, 0]), fresh, level)


def test_poisoned_pages() -> None:
    """Keys and values behind the last position may be NaN or infinite: another sequence left them there."""
    shape, length = Shape(2, 1, 16, 16), 100
    rng = np.random.default_rng(SEED)
    print(f"seed {SEED}")
    clean = {name: rng.standard_normal((length, heads * 16)).astype(np.float32) for name, heads in (("q", 2), ("k", 1), ("v", 1))}
    poisoned = {}
    for name, table in clean.items():
        bad = np.full_like(table, np.nan)
        bad[::3] = np.inf
        poisoned[name] = np.concatenate([table, bad])
    net = Net()
    operands = []
    for name, heads in (("q", 2), ("k", 1), ("v", 1)):
        rows = net.any_rows(poisoned[name], name)
        operands.append((name, net.node("reshape", f"{name}.heads", [("x", rows)], dims=f"{heads}, 16")[0]))
    last = net.node("attention", "y", operands, layer=0, scale=0.25, window=shape.window, softcap=shape.softcap)[0]
    program = net.finish(last)
    for kv_dtype in KV_TYPES:
        for level in LEVELS:
            plan = compiled(program, net.source, max_tokens=length, kv_dtype=kv_dtype, isa=level)
            plan.reserve_pages(2)
            fresh = run(plan, length, 9)
            assert np.isfinite(fresh).all()
            spoiled = run(plan, length, tokens=np.arange(length, 2 * length, dtype=np.int32))
            assert not np.isfinite(spoiled).any()
            assert_same_bits(run(plan, length, 9), fresh, f"{kv_dtype}, {level}")


def test_two_sequences_in_one_batch() -> None:
    attention = Attention(Shape(6, 2, 32, 32), 200)
    rng = np.random.default_rng(SEED)
    first, second = rng.permutation(200).astype(np.int32)[:150], rng.permutation(200).astype(np.int32)[:90]
    alone = [run(attention.plan(), len(tokens), tokens=tokens) for tokens in (first, second)]
    for threads in (1, 2):
        plan = attention.plan(threads=threads)
        tables = [[6, 1, 3], [2, 5]]
        got: list[list[Floats]] = [[], []]
        at = [0, 0]
        for a, b in ((100, 1), (1, 60), (1, 1), (48, 28)):
            tokens = np.concatenate([first[at[0] : at[0] + a], second[at[1] : at[1] + b]])
            positions = np.concatenate([np.arange(at[0], at[0] + a), np.arange(at[1], at[1] + b)]).astype(np.int32)
            sequences = np.repeat(np.arange(2, dtype=np.int32), [a, b])
            plan.run(tokens, positions, sequences, tables, np.zeros(0, np.int32))
            y = value(plan, "y", a + b)
            got[0].append(y[:a])
            got[1].append(y[a:])
            at = [at[0] + a, at[1] + b]
        for mine, want in zip(got, alone, strict=True):
            assert_same_bits(np.concatenate(mine), want)


def test_folded_norm_and_rope() -> None:
    """q_norm, k_norm and rope inside the attention node: the bits of the nodes one by one."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    length, heads, kv_heads, dim = 80, 4, 2, 24
    rope = {"theta": 10000.0, "rotary_dim": 16, "style": "halves"}
    net = Net()
    shaped = {}
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        table = rng.standard_normal((length, count * dim)).astype(np.float32)
        shaped[name] = net.node("reshape", f"{name}.heads", [("x", net.rows(table, name))], dims=f"{count}, {dim}")[0]
    norms = {name: net.weight(rng.standard_normal(dim)) for name in ("q", "k")}
    turned = dict(shaped)
    for name in ("q", "k"):
        normed = net.node("rms_norm", f"{name}.normed", [("x", shaped[name]), ("w", norms[name])], eps=1e-6)[0]
        turned[name] = net.node("rope", f"{name}.turned", [("x", normed), ("positions", net.positions)], **rope)[0]
    net.node("attention", "apart", list(turned.items()), layer=0, scale=0.2)
    operands = [*shaped.items(), ("q_norm", norms["q"]), ("k_norm", norms["k"]), ("positions", net.positions)]
    folded = {f"rope_{key}": attribute for key, attribute in rope.items()}
    last = net.node("attention", "folded", operands, layer=1, scale=0.2, eps=1e-6, **folded)[0]
    program = net.finish(last)
    tokens = np.arange(length, dtype=np.int32)
    for level in LEVELS:
        for kv_dtype in KV_TYPES:
            plan = compiled(program, net.source, isa=level, kv_dtype=kv_dtype, max_tokens=length, threads=2)
            plan.reserve_pages(2)
            plan.run(tokens, tokens, np.zeros(length, np.int32), [[1, 0]], np.zeros(0, np.int32))
            assert_same_bits(value(plan, "folded", length), value(plan, "apart", length), f"{level}, {kv_dtype}")


def test_large_scores() -> None:
    """Scores far apart, and far from zero: one key takes all, nothing overflows."""
    shape, length = Shape(1, 1, 16, 16), 130
    attention = Attention(shape, length)
    attention.source["q.table"] = (attention.q * 1e4).view(np.uint8).reshape(-1).copy()
    attention.source["k.table"] = (attention.k * 1e2).view(np.uint8).reshape(-1).copy()
    attention.q, attention.k = attention.q * np.float32(1e4), attention.k * np.float32(1e2)
    want = attention.expected(range(length), "f32")
    for level in LEVELS:
        got = run(attention.plan(isa=level, kv_dtype="f32"), length)
        assert np.isfinite(got).all()
        assert (np.abs(got - want) <= 1e-5).all()

"""What MLA needs: a matrix for each head, and attention whose values are the beginnings of the keys, cached once."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import LEVELS, Net, assert_same_bits, compiled, random_weights, run_rows, value
from sterna import _core

SEED = 83
HEADS = 3


@pytest.mark.parametrize(("format", "k", "n"), [("F32", 24, 40), ("BF16", 33, 17), ("Q8_0", 64, 48), ("Q4_K", 256, 20)])
@pytest.mark.parametrize("level", LEVELS)
def test_each_head_is_a_linear_of_its_own(level: str, format: str, k: int, n: int) -> None:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    net = Net()
    x = net.rows(rng.standard_normal((64, HEADS * k)))
    heads = net.node("reshape", "heads", [("x", x)], dims=f"{HEADS}, {k}")[0]
    data = random_weights(format, HEADS * n, k, rng, largest=0.1)
    y = net.node("head_linear", "y", [("x", heads), ("w", net.weight(data, format, (HEADS, n, k)))])[0]
    columns = net.node("split", "columns", [("x", x)], sizes=", ".join([str(k)] * HEADS))
    for head, (column, part) in enumerate(zip(columns, np.split(data, HEADS), strict=True)):
        net.node("linear", f"head.{head}", [("x", column), ("w", net.weight(part, format, (n, k)))])
    last = net.node("reshape", "flat", [("x", y)], dims=f"{HEADS * n}")[0]
    plan = compiled(net.finish(last), net.source, isa=level, threads=3)
    for rows in (1, 3, 5, 17, 64):
        run_rows(plan, range(rows))
        want = np.concatenate([value(plan, f"head.{head}", rows) for head in range(HEADS)], axis=1)
        assert (want != 0).any()
        assert_same_bits(value(plan, "y", rows), want, f"{level}, {rows} rows")


def latent_net(head_dim: int, latent: int, heads: int) -> tuple[Net, int]:
    """The same attention twice: values as beginnings of keys, and as values of their own."""
    rng = np.random.default_rng(SEED)
    net = Net()
    q = net.rows(rng.standard_normal((200, heads * head_dim)), "q")
    k = net.rows(rng.standard_normal((200, head_dim)), "k")
    shaped = net.node("reshape", "q.heads", [("x", q)], dims=f"{heads}, {head_dim}")[0]
    keys = net.node("reshape", "k.heads", [("x", k)], dims=f"1, {head_dim}")[0]
    net.node("attention", "y", [("q", shaped), ("k", keys)], layer=0, scale=0.2, latent=latent)
    sizes = f"{latent}, {head_dim - latent}" if latent < head_dim else f"{latent}"
    values = net.node("split", "v", [("x", keys)], sizes=sizes)[0]
    last = net.node("attention", "want", [("q", shaped), ("k", keys), ("v", values)], layer=1, scale=0.2)[0]
    return net, last


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize(("head_dim", "latent", "heads"), [(48, 32, 4), (96, 64, 40), (32, 32, 1), (20, 7, 5)])
def test_values_that_are_beginnings_of_keys(head_dim: int, latent: int, heads: int, kv_dtype: str) -> None:
    net, last = latent_net(head_dim, latent, heads)
    program = net.finish(last)
    if kv_dtype == "q8_0" and latent % 32:
        pytest.skip("the last group of a value of its own is another than the key's")
    results = []
    for level in LEVELS:
        for steps in ([200], [1, 3, 64, 70, 62]):
            plan = compiled(program, net.source, isa=level, threads=2, max_tokens=200, kv_dtype=kv_dtype)
            plan.reserve_pages(4)
            got, first = [], 0
            for count in steps:
                run_rows(plan, range(first, first + count), first)
                got.append(value(plan, "y", count))
                assert_same_bits(got[-1], value(plan, "want", count), f"{level}, {count} rows from {first}")
                first += count
            results.append(np.concatenate(got))
    for other in results[1:]:
        assert_same_bits(other, results[0])
    assert np.isfinite(results[0]).all() and len(np.unique(results[0])) > 200


def test_the_cache_holds_keys_only() -> None:
    net, last = latent_net(96, 64, 2)
    program = net.finish(last)
    assert [(slot.latent, slot.value_head_dim) for slot in program.kv_slots] == [(True, 64), (False, 64)]
    assert _core.Program.parse(program.text()).text() == program.text()
    assert "kv 0: 1 heads, 96, 64, latent\n" in program.text()
    plan = compiled(program, net.source, kv_dtype="f16")
    assert [page_bytes for _, page_bytes in plan.kv_pools] == [64 * 2 * (96 + 96 + 64)]

"""Mixtures of experts: each row gets the bits that its experts give when computed one by one, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    LEVELS,
    Bytes,
    Floats,
    Net,
    as_bytes,
    assert_same_bits,
    compiled,
    random_weights,
    run_rows,
    value,
)
from sterna import interpreter

SEED = 71
EXPERTS, USED, HIDDEN = 5, 3, 40
PLAIN = {
    "scores": "softmax",
    "normalize": True,
    "scale": 1.0,
    "groups": 1,
    "groups_used": 1,
    "group_scores": "best",
    "bias": False,
}
# Formats of gate, up and down; k and n; the rule of activations.
CASES = [
    ("F32", "F32", "F32", 64, 24, "auto"),
    ("BF16", "F16", "F32", 64, 40, "auto"),
    ("Q4_K", "Q4_K", "Q6_K", 256, 256, "auto"),
    ("Q4_0", "Q8_0", "Q5_1", 96, 32, "auto"),
    ("IQ2_XS", "Q3_K", "IQ4_NL", 256, 96, "auto"),
    ("TQ2_0", "TQ1_0", "TQ2_0", 256, 256, "int8_per_token"),
]


def parts(data: Bytes) -> list[Bytes]:
    return np.split(data, EXPERTS)


def shared_scale(data: Bytes) -> Bytes:
    """Ternary blocks of TQ2_0 under one scale, which has kernels of its own."""
    blocks = data.reshape(-1, 66).copy()
    blocks[:, 64:] = blocks[0, 64:]
    return blocks.reshape(-1)


def mixture(case: tuple[str, str, str, int, int, str], table: Floats, rng: np.random.Generator) -> tuple[Net, int]:
    """expert_glu with and without residual, and each expert on all rows by nodes of its own."""
    *formats, k, n, rule = case
    net = Net()
    x = net.rows(table)
    router = rng.standard_normal((EXPERTS, k))
    router[3] = router[1]  # ties, always
    scores = net.node("linear", "scores", [("x", x), ("w", net.weight(router))])[0]
    experts, weights = net.node("route", "route", [("x", scores)], used=USED)
    operands = [("x", x), ("experts", experts), ("weights", weights)]
    alone: dict[str, list[int]] = {}
    for role, format, shape in zip(("gate", "up", "down"), formats, ((n, k), (n, k), (HIDDEN, n)), strict=True):
        data = random_weights(format, EXPERTS * shape[0], shape[1], rng, largest=0.1)
        if format == "TQ2_0" and role == "down":
            data = np.concatenate([shared_scale(data)[: len(data) // EXPERTS], *parts(data)[1:]])
        operands.append((role, net.weight(data, format, (EXPERTS, *shape))))
        alone[role] = [net.weight(part, format, shape) for part in parts(data)]
    for expert in range(EXPERTS):
        gate, up = (
            net.node("linear", f"{role}.{expert}", [("x", x), ("w", alone[role][expert])], activation=rule)[0]
            for role in ("gate", "up")
        )
        hidden = net.node("glu", f"hidden.{expert}", [("gate", gate), ("up", up)])[0]
        down = [("x", hidden), ("w", alone["down"][expert])]
        net.node("linear", f"expert.{expert}", down, activation=rule)
    net.node("expert_glu", "y", operands, activation=rule)
    net.node("expert_glu", "y.input", operands, activation=rule, weigh_input=True)
    biases = {role: rng.standard_normal((EXPERTS, n if role != "down" else HIDDEN)) for role in ("gate", "up", "down")}
    rows = [(f"{role}_bias", net.weight(bias)) for role, bias in biases.items()]
    net.node("expert_glu", "y.biases", [*operands, *rows], activation=rule, glu="clamped_swiglu")
    for expert in range(EXPERTS):
        gate, up = (
            net.node(
                "linear",
                f"biased.{role}.{expert}",
                [("x", x), ("w", alone[role][expert]), ("bias", net.weight(biases[role][expert]))],
                activation=rule,
            )[0]
            for role in ("gate", "up")
        )
        hidden = net.node("glu", f"biased.hidden.{expert}", [("gate", gate), ("up", up)], activation="clamped_swiglu")[
            0
        ]
        down = [("x", hidden), ("w", alone["down"][expert]), ("bias", net.weight(biases["down"][expert]))]
        net.node("linear", f"biased.{expert}", down, activation=rule)
    residual = net.rows(rng.standard_normal((len(table), HIDDEN)), "residual")
    last = net.node("expert_glu", "y.residual", [*operands, ("residual", residual)], activation=rule)[0]
    return net, last


@pytest.mark.parametrize("case", CASES, ids=["-".join(case[:3]) for case in CASES])
def test_rows_get_what_their_experts_give_alone(case: tuple[str, str, str, int, int, str]) -> None:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    table = rng.standard_normal((64, case[3])).astype(np.float32)
    net, last = mixture(case, table, rng)
    program = net.finish(last)
    for level in LEVELS:
        plan = compiled(program, net.source, isa=level, threads=2)
        for rows in ([7], [3, 3, 3], [1, 2, 3, 4, 5], list(range(20)), list(range(64))):
            run_rows(plan, rows)
            count = len(rows)
            experts = value(plan, "route", count).astype(int)
            weights = value(plan, "route.1", count)
            each = np.stack([value(plan, f"expert.{expert}", count) for expert in range(EXPERTS)], axis=1)
            at = np.arange(count)
            want = weights[:, :1] * each[at, experts[:, 0]]
            biased = np.stack([value(plan, f"biased.{expert}", count) for expert in range(EXPERTS)], axis=1)
            want_biased = weights[:, :1] * biased[at, experts[:, 0]]
            for rank in range(1, USED):
                want = want + weights[:, rank : rank + 1] * each[at, experts[:, rank]]
                want_biased = want_biased + weights[:, rank : rank + 1] * biased[at, experts[:, rank]]
            what = f"{level}, {count} rows"
            assert np.isfinite(want).all() and (want != 0).any()
            assert_same_bits(value(plan, "y", count), want, what)
            assert_same_bits(value(plan, "y.biases", count), want_biased, what)
            assert_same_bits(value(plan, "y.residual", count), want + value(plan, "residual", count), what)
        assert len(np.unique(experts[:, 0])) > 2


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_weights_that_scale_what_experts_read(format: str, level: str) -> None:
    """With one expert a row: the same bits as rows that were scaled before, under weights that sum up to 1."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    net = Net()
    x = net.rows(rng.standard_normal((40, 64)))
    scores = net.node("linear", "scores", [("x", x), ("w", net.weight(rng.standard_normal((EXPERTS, 64))))])[0]
    experts, weights = net.node("route", "route", [("x", scores)], used=1, scores="sigmoid", normalize=False)
    ones = net.node("route", "ones", [("x", scores)], used=1)
    shapes = {"gate": (EXPERTS, 32, 64), "up": (EXPERTS, 32, 64), "down": (EXPERTS, HIDDEN, 32)}
    stacks = [
        (role, net.weight(random_weights(format, shape[0] * shape[1], shape[2], rng, largest=0.1), format, shape))
        for role, shape in shapes.items()
    ]
    scaled = net.node("mul", "scaled", [("a", x), ("b", weights)])[0]
    net.node("expert_glu", "before", [("x", scaled), ("experts", ones[0]), ("weights", ones[1]), *stacks])
    operands = [("x", x), ("experts", experts), ("weights", weights), *stacks]
    last = net.node("expert_glu", "y", operands, weigh_input=True)[0]
    plan = compiled(net.finish(last), net.source, isa=level, threads=2)
    for rows in ([1, 2, 3, 4, 5], list(range(40))):
        run_rows(plan, rows)
        assert (value(plan, "ones.1", len(rows)) == 1).all()
        assert_same_bits(value(plan, "y", len(rows)), value(plan, "before", len(rows)), level)


ROUTES = [
    {"normalize": True},
    {"normalize": False},
    {"scores": "sigmoid", "normalize": False, "scale": 2.5},
    {"scores": "sigmoid", "bias": True},
    {"bias": True, "normalize": False},
    {"bias": True, "scale": 0.5},
    {"groups": 4, "groups_used": 4},
    {"groups": 2, "groups_used": 2, "group_scores": "two_best", "normalize": False},
    {"scores": "sigmoid", "bias": True, "groups": 5, "groups_used": 5, "group_scores": "two_best", "scale": 2.5},
]


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("used", [1, 3, 20])
def test_routes(used: int, route: dict[str, Any]) -> None:
    rng = np.random.default_rng(SEED)
    logits = (rng.standard_normal((30, 20)) * 10.0 ** rng.integers(-2, 3, (30, 1))).astype(np.float32)
    logits[1, 3:9] = logits[1].max()
    logits[2] = 0
    logits[3] = -np.inf
    logits[4, ::2] = np.nan
    logits[5] = np.nan
    logits[6, 7] = np.inf
    attributes = {**PLAIN, **route, "used": used}
    if used < 20 and attributes["groups"] > 1:
        attributes["groups_used"] = 2
    bias = rng.standard_normal(20).astype(np.float32) if attributes.pop("bias") else None
    net = Net()
    operands = [("x", net.any_rows(logits))] + ([] if bias is None else [("bias", net.weight(bias))])
    experts = net.node("route", "route", operands, **attributes)[0]
    program = net.finish(experts)
    results = []
    for level in LEVELS:
        for rows in (30, 1):
            plan = compiled(program, net.source, isa=level, threads=2)
            run_rows(plan, range(rows))
            results.append((value(plan, "route", rows), value(plan, "route.1", rows)))
            for got, want in zip(results[-1], results[0], strict=True):
                assert_same_bits(got, want[:rows], level)
    ids, weights = results[0]
    finite = np.isfinite(logits).all(axis=1)
    want_ids, want_weights = interpreter.route(logits[finite], bias, attributes)
    if bias is not None:
        # Float64 may tell scores apart that float32 rounds to the same.
        differ = ids[finite] != want_ids
        assert differ.mean() < 0.1
        want_weights = np.where(differ, weights[finite], want_weights)
    else:
        assert np.array_equal(ids[finite], want_ids)
    np.testing.assert_allclose(weights[finite], want_weights, rtol=1e-5, atol=1e-30)
    for row in ids:
        assert len(set(row)) == used and set(row) <= set(range(20))
    # What is no number comes last, and whoever looks at it sees it.
    if bias is None and attributes["groups"] == 1:
        assert (
            ids[4, : min(used, 10)].astype(int).tolist()
            == [i for i in np.argsort(-logits[4], kind="stable") if i % 2][:used]
        )
        assert ids[6, 0] == 7
    assert np.isnan(weights[5]).all()


def test_an_expert_that_nobody_chose_is_not_looked_at() -> None:
    """Its weights hold numbers that no product may see; rows that it does not get stay what they are."""
    rng = np.random.default_rng(SEED)
    net = Net()
    x = net.rows(np.abs(rng.standard_normal((40, 32))) + np.float32(0.1))
    router = np.ones((3, 32))
    router[1] = -1
    scores = net.node("linear", "scores", [("x", x), ("w", net.weight(router))])[0]
    route = net.node("route", "route", [("x", scores)], used=2)
    stacks = [rng.standard_normal((3, *shape)).astype(np.float32) for shape in ((16, 32), (16, 32), (32, 16))]
    for stack in stacks:
        stack[1] = 3e38
    ids = [net.weight(as_bytes(stack), "F32", stack.shape) for stack in stacks]
    operands = [("x", x), ("experts", route[0]), ("weights", route[1])]
    last = net.node("expert_glu", "y", [*operands, ("gate", ids[0]), ("up", ids[1]), ("down", ids[2])])[0]
    plan = compiled(net.finish(last), net.source)
    run_rows(plan, range(40))
    assert np.isfinite(value(plan, "y", 40)).all()
    assert value(plan, "route", 40).tolist() == [[0, 2]] * 40

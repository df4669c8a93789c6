"""SAFS: operators against 50 digits, late acceptance against its definition, masks and the two stages."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from tests.exact import exp, expect_exact
from torch import nn

from workingpapers.data import images
from workingpapers.engines.masks import apply_masks, density, masks_of, weights_of
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.search._operators import OPERATORS, acon, srs, symexp, symlog, tanhsoft
from workingpapers.papers.search._sparse_search import Trial, bayesian, lahc, peaks, random_search
from workingpapers.papers.search.safs import (
    DENSE_RECIPE,
    LearnedAct,
    finetuned,
    lenet5,
    operator_space,
    pruned,
    recipe_space,
    safs,
    with_activations,
)
from workingpapers.tasks import mlp


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + exp(-x))


def logarithm(x: mpf) -> mpf:  # of 1 + e^x
    return x + mp.log1p(exp(-x)) if x > 0 else mp.log1p(exp(x))


def slope_of_tanh(x: mpf) -> mpf:
    return 4 * exp(-2 * abs(x)) / (1 + exp(-2 * abs(x))) ** 2


def test_tanhsoft_is_exact() -> None:
    expect_exact(
        tanhsoft,
        lambda x: mp.tanh(max(min(x, mpf(1000)), mpf(-1000))) * logarithm(x),
        lambda x: slope_of_tanh(x) * logarithm(x) + mp.tanh(max(min(x, mpf(1000)), mpf(-1000))) * sigmoid(x),
        every=7,
    )


def test_acon_is_exact() -> None:
    c, p2 = mpf("0.75"), mpf("0.25")
    expect_exact(
        acon,
        lambda x: c * x * sigmoid(c * x) + p2 * x,
        lambda x: c * (sigmoid(c * x) + c * x * sigmoid(c * x) * sigmoid(-c * x)) + p2,
        every=7,
    )


def test_srs_is_exact() -> None:
    def below(x: mpf) -> mpf:
        return x + exp(-x)

    expect_exact(srs, lambda x: x / below(x), lambda x: exp(-x) * (1 + x) / below(x) ** 2, every=7)


def test_symlog_is_exact() -> None:
    expect_exact(symlog, lambda x: mp.sign(x) * mp.log1p(abs(x)), lambda x: 1 / (1 + abs(x)), every=7)


def test_symexp_is_exact() -> None:
    expect_exact(
        symexp,
        lambda x: mp.sign(x) * mp.expm1(min(abs(x), mpf(80))),
        lambda x: exp(abs(x)) if abs(x) <= 80 else mpf(0),
        every=7,
    )


def test_operators_at_zero_and_inverses() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert [float(f(zero)) for f in (srs, tanhsoft, symlog, symexp, acon)] == [0.0] * 5
    torch.testing.assert_close(symlog(symexp(x)), x)
    torch.testing.assert_close(symexp(symlog(x)), x)
    torch.testing.assert_close(acon(x, 1.0, 0.0, 2.0), x * torch.sigmoid(2 * x))
    torch.testing.assert_close(srs(x, 3.0, 2.0), x / (x / 3 + torch.exp(-x / 2)))
    assert len(OPERATORS) == 14


def test_learned_activation_scales_inside_and_outside() -> None:
    x = torch.linspace(-4, 4, 41)
    for name, operator in OPERATORS.items():
        torch.testing.assert_close(LearnedAct(name, 1.5, -0.5)(x), 1.5 * operator(-0.5 * x))
    assert len(list(LearnedAct().parameters())) == 2
    assert not list(LearnedAct(trainable=False).parameters())


@pytest.mark.parametrize("length", [1, 2, 8])
def test_late_acceptance_follows_its_definition(length: int) -> None:
    space = {"a": list(range(10)), "b": list(range(10)), "c": list(range(10))}

    def rough(p: dict[str, Any]) -> float:
        return math.sin(13 * p["a"] + 7 * p["b"] ** 2 + 5 * p["c"])

    descents = 0
    for seed in range(10):
        trials = lahc(space, rough, 80, seed, history_length=length)
        present, costs = trials[0], [trials[0].value]  # costs[i]: of the present point after step i
        for step, trial in enumerate(trials[1:]):
            assert sum(trial.point[n] != present.point[n] for n in space) == 1
            late = costs[max(step - length + 1, 0)]
            if trial.value >= present.value or trial.value >= late:
                present = trial
            costs.append(present.value)
        descents += costs != sorted(costs)
    assert (descents > 0) == (length > 1)  # with 1 it is plain hill climbing


def test_failures_count_as_worst_and_equal_points_are_accepted() -> None:
    trials = lahc({"a": [0, 1], "b": [0, 1]}, lambda p: [][0], 5)
    assert [t.value for t in trials] == [-math.inf] * 5
    space, objective, best = peaks()
    start = dict.fromkeys(space, 0)
    assert lahc(space, objective, 1, start=start) == [Trial(start, objective(start))]
    assert best == 0.0


def test_surrogate_search_starts_where_told_and_stays_inside() -> None:
    space = {"x": (-2.0, 2.0), "n": (1, 5), "kind": ["a", "b"]}

    def objective(p: dict[str, Any]) -> float:
        return -float((p["x"] - 0.7) ** 2 + (p["n"] - 4) ** 2 + (p["kind"] == "a"))

    start = {"x": 0.0, "n": 2, "kind": "a"}
    trials = bayesian(space, objective, 25, 0, start=start)
    assert trials[0].point == start
    assert all(-2 <= t.point["x"] <= 2 and t.point["n"] in range(1, 6) for t in trials)
    chance = max(t.value for t in random_search(space, objective, 25, 0))
    assert max(t.value for t in trials) > max(chance, -0.5)
    assert trials == bayesian(space, objective, 25, 0, start=start, trials=trials[:9])


def test_pruning_keeps_the_largest_weights() -> None:
    model = lenet5()
    sparse = pruned(model, 0.9)
    for name, weight in weights_of(model).items():
        kept = masks_of(sparse)[name]
        assert int(kept.sum()) == round(0.1 * weight.numel())
        assert float(weight.abs()[kept].min()) >= float(weight.abs()[~kept].max())
    assert density(pruned(model, 0.9, "global")) == pytest.approx(0.1, abs=1e-3)
    assert sum(w.numel() for w in weights_of(model).values()) == 61_470


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_fine_tuning_leaves_pruned_weights_at_zero(kind: str) -> None:
    split = images("digits", train=120, test=60)
    sparse = pruned(mlp([64, 16, 12, 10]), 0.7)
    before = {n: m.clone() for n, m in masks_of(sparse).items()}
    point = {"act0": "srs", "act1": "tanh", "p1_0": 1.2, "p2_0": 0.8, "optimizer": kind}
    model, accuracy = finetuned(sparse, point, split, 3, 0)
    assert 0 < accuracy <= 1
    for name, mask in masks_of(model).items():
        assert torch.equal(mask, before[name])
        assert (weights_of(model)[name][~mask] == 0).all()
        assert not torch.equal(weights_of(model)[name], weights_of(sparse)[name])
    acts = [m for m in model.modules() if isinstance(m, LearnedAct)]
    assert [m.operator for m in acts] == ["srs", "tanh"]
    assert len(list(acts[0].parameters())) == 2
    start = torch.tensor(1.2)
    assert not torch.equal(torch.as_tensor(acts[0].p1), start)
    assert not list(acts[1].parameters())


def test_activations_take_the_places_in_order() -> None:
    model = mlp([3, 4, 5, 2])
    changed = with_activations(model, [nn.Tanh, partial(LearnedAct, "elu")])
    kinds = [type(m) for m in changed.modules() if not list(m.children())]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, LearnedAct, nn.Linear]


def test_two_stages() -> None:
    split = images("digits", train=100, test=50)
    sparse = pruned(mlp([64, 12, 10]), 0.5)
    found = safs(sparse, split, (4, 3), seed=1)
    assert len(found.log) == 7
    assert found.stage1 == max(found.log[:4], key=lambda t: t.value).point
    assert found.log[4].point == {"p1_0": 1.0, "p2_0": 1.0, **DENSE_RECIPE}
    assert found.stage2 == {**found.stage1, **max(found.log[4:], key=lambda t: t.value).point}
    assert set(recipe_space(2)) == {
        *DENSE_RECIPE,
        *(f"{p}_{i}" for p, i in itertools.product(("p1", "p2"), (0, 1))),
    }
    assert list(operator_space(2)) == ["act0", "act1"]


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="gelu"):
        LearnedAct("gel")
    with pytest.raises(WorkingPapersError, match="history"):
        lahc({"a": [0, 1]}, lambda p: 0.0, 3, history_length=0)
    with pytest.raises(WorkingPapersError, match="low, high"):
        lahc({"a": 3}, lambda p: 0.0, 3)
    with pytest.raises(WorkingPapersError, match="prune"):
        pruned(lenet5(), 1.0)
    with pytest.raises(WorkingPapersError, match="no ReLU"):
        safs(nn.Linear(2, 2), images("digits", train=20, test=10))
    sparse = apply_masks(mlp([64, 4, 10]), {})
    with pytest.raises(UnknownName, match="adamw"):
        finetuned(sparse, {"optimizer": "adamx"}, images("digits", train=20, test=10), 1, 0)

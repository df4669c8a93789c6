"""AutoReP: coefficients against quadrature, states by hand, gradients, budgets, and what training leaves fixed."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private._counts import relu_count
from workingpapers.papers.private._units import (
    Masked,
    Partial,
    Selective,
    budget_count,
    dapa,
    largest,
    units_of_kind,
)
from workingpapers.papers.private.autorep import (
    autorep,
    counts,
    objective,
    preactivations,
    randomly,
    selective,
)
from workingpapers.surgery import changes
from workingpapers.tasks import mlp, residual_cnn


def data(count: int = 60) -> Split:
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 6, 6) + y[:, None, None, None]
    return Split(x, y, x, y, 3, "example")


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("mean", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("std", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("degree", [1, 2])
def test_coefficients_are_the_least_squares_fit(mean: float, std: float, degree: int) -> None:
    ends = mean - 12 * std, mean + 12 * std

    def moment(power: int, function: Any) -> float:
        value = quad(
            lambda x: x**power * function(x) * norm.pdf(x, mean, std), *ends, points=[0.0, mean], limit=200
        )
        return float(value[0])

    size = degree + 1
    gram = [[moment(i + j, lambda x: 1.0) for j in range(size)] for i in range(size)]
    wanted = np.linalg.solve(gram, [moment(i, lambda x: max(x, 0.0)) for i in range(size)])
    found = [float(c) for c in dapa(double(mean), double(std), degree)]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_coefficients_of_the_standard_normal() -> None:
    c0, c1, c2 = (float(c) for c in dapa(double(0.0), double(1.0)))
    assert (c0, c1, c2) == pytest.approx((0.1994711, 0.5, 0.1994711), abs=1e-7)
    with pytest.raises(WorkingPapersError, match="degree 1 or 2"):
        dapa(double(0.0), double(1.0), 3)


def test_states_flip_beyond_the_threshold_only() -> None:
    unit = Selective(torch.tensor([-0.002, -0.003, -0.004, 0.002, 0.5])).train()
    x = torch.randn(4, 5)
    unit.advance(x)
    assert unit.mask.tolist() == [True, False, False, True, True]
    with torch.no_grad():
        unit.score.copy_(torch.tensor([0.0, 0.002, 0.0031, 1.0, -1.0]))
    unit.advance(x)
    assert unit.mask.tolist() == [True, False, True, True, False]
    unit.settle()
    with torch.no_grad():
        unit.score.fill_(-1.0)
    unit.advance(x)
    assert unit.kept() == 3
    assert not unit.score.requires_grad


def test_outputs_and_gradients_of_a_unit() -> None:
    unit = Selective(torch.tensor([0.3, -0.7]), damping=(5.0, 10.0)).double().eval()
    unit.mask.copy_(torch.tensor([True, False]))
    unit.mean.copy_(torch.tensor([0.4, -0.2]))
    unit.variance.copy_(torch.tensor([2.0, 0.25]))
    x = torch.randn(6, 2, dtype=torch.float64)
    c0, c1, c2 = dapa(double(-0.2), double(0.5))
    poly = c0 / 5 + c1 * x[:, 1] + c2 / 10 * x[:, 1] ** 2
    torch.testing.assert_close(unit(x), torch.stack([x[:, 0].relu(), poly], 1))
    weights = torch.randn(6, 2, dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * unit(x)).sum(), unit.score)
    gap = x.relu() - unit.polynomial(x)
    torch.testing.assert_close(slope, (weights * gap).sum(0) * F.softplus(unit.score))
    identity = Selective(torch.zeros(2), degree=None).eval()
    identity.mask.zero_()
    assert torch.equal(identity(x.float()), x.float())
    line = Selective(torch.zeros(2), degree=1, damping=(1, 1)).double().eval()
    line.mask.zero_()
    c0, c1 = dapa(double(0.0), double(1.0), 1)
    torch.testing.assert_close(line(x), c0 + c1 * x)
    for wrong in ({"degree": 3}, {"threshold": -1.0}, {"damping": (0.0, 1.0)}):
        with pytest.raises(WorkingPapersError):
            Selective(torch.zeros(2), **wrong)  # type: ignore[arg-type]


def test_statistics_are_those_of_channels() -> None:
    unit = Selective(torch.zeros(3, 4, 4))
    x = torch.randn(10, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1
    unit.fit(x)
    torch.testing.assert_close(unit.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(unit.variance, x.var((0, 2, 3), correction=0))
    unit.train()(x + 10)
    torch.testing.assert_close(unit.mean, x.mean((0, 2, 3)) + 1.0)
    tokens = Selective(torch.zeros(5, 3))
    z = torch.randn(4, 5, 3)
    tokens.fit(z)
    torch.testing.assert_close(tokens.mean, z.mean((0, 1)))


def test_fitted_sites_see_what_their_layers_give() -> None:
    model, split = residual_cnn(1, 3, (4, 6)).eval(), data()
    fitted = selective(model, split.x_train)
    assert torch.equal(fitted(split.x_test), model(split.x_test))
    z = preactivations(fitted, split.x_train)
    assert list(z) == ["2", "3.activation1", "3.activation2", "4.activation1", "4.activation2"]
    torch.testing.assert_close(z["2"], model[1](model[0](split.x_train)))
    unit: Any = units_of_kind(fitted, Selective)["2"]
    torch.testing.assert_close(unit.mean, z["2"].mean((0, 2, 3)))
    score = unit.score.detach()
    assert 0 <= float(score.min()) <= float(score.max()) <= 1
    again: Any = units_of_kind(selective(model, split.x_train, seed=1), Selective)["2"]
    assert not torch.equal(again.score, unit.score)


def test_the_penalty_ends_with_the_budget() -> None:
    units = [Selective(torch.ones(10)), Selective(torch.ones(30))]
    loss = objective(units, 20, 8.0)
    y, rows = torch.tensor([0, 1]), torch.arange(2)
    same = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    plain = float(F.cross_entropy(same, y))
    value = loss(nn.Identity(), same, y, same, rows)
    assert float(value.detach()) == pytest.approx(plain + 8.0 * (1 - 0.5))
    (slope,) = torch.autograd.grad(value, units[1].score)
    torch.testing.assert_close(slope, torch.full((30,), 8.0 / 40 * float(F.softplus(torch.tensor(1.0)))))
    units[1].mask[:20] = False
    assert float(loss(nn.Identity(), same, y, same, rows)) == pytest.approx(plain)
    assert not units[0].learning


@pytest.mark.parametrize(("budget", "kept"), [(0.1, 54), (7, 7), (1.0, 540)])
def test_the_budget_is_kept_exactly(budget: float, kept: int) -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    found = autorep(model, split, budget, 1, 1, mask_lr=1e-9)
    assert relu_count(found, split.x_train[:1]) == kept == sum(counts(found, split.x_train).values())
    assert "online" in changes(found)[-1]
    if budget == 1.0:
        assert torch.equal(found.eval()(split.x_test), model.eval()(split.x_test))


def test_scores_decide_what_stays_and_fast_ones_meet_the_budget() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    slow = autorep(model, split, 0.25, 1, 0, mask_lr=1e-9, seed=3)
    units: dict[str, Any] = units_of_kind(slow, Selective)
    scores = torch.cat([u.score.detach().flatten() for u in units.values()])
    on = torch.cat([u.mask.flatten() for u in units.values()])
    assert scores[on].min() > scores[~on].max()
    fast = autorep(model, split, 0.25, 30, 0, mask_lr=0.1, lam=10.0)
    assert relu_count(fast, split.x_train[:1]) <= 135
    random = randomly(model, split, 0.25, 1, 0)
    assert relu_count(random, split.x_train[:1]) == 135


def test_other_units_by_hand() -> None:
    x = torch.randn(5, 4)
    masked = Masked(torch.tensor([True, False, True, False]))
    assert torch.equal(masked(x), torch.where(torch.tensor([1, 0, 1, 0]).bool(), x.relu(), x))
    assert masked.kept() == 2
    mixed = Partial((4,))
    assert torch.equal(mixed(x), x.relu())
    with torch.no_grad():
        mixed.alpha.copy_(torch.tensor([1.5, 0.5, 0.25, -1.0]))
    assert mixed.kept() == 2
    share = torch.tensor([1.0, 0.5, 0.25, 0.0])
    torch.testing.assert_close(mixed(x), share * x.relu() + (1 - share) * x)


def test_choices_and_budgets() -> None:
    found = largest({"a": torch.tensor([[1.0, 5.0], [5.0, 0.0]]), "b": torch.tensor([4.0, 5.0])}, 3)
    assert found["a"].tolist() == [[False, True], [True, False]]
    assert found["b"].tolist() == [False, True]
    assert (budget_count(0.5, 9), budget_count(4, 9), budget_count(40, 9)) == (4, 4, 9)
    for wrong in (-1, 1.5, -0.1):
        with pytest.raises(WorkingPapersError, match="budget"):
            budget_count(wrong, 9)
    with pytest.raises(WorkingPapersError, match="no relu"):
        autorep(mlp([36, 3]), data(), 0.5, 1, 1)


def test_the_catalogue_builds_it() -> None:
    assert callable(make("autorep", degree=1))
    assert {c.says for c in claims("autorep").values()} == {c["says"] for c in record("autorep").claims}

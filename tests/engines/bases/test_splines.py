"""B-splines against scipy: values, slopes, sums, grids that follow samples and grids that get finer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline as Independent
from torch import Tensor

from workingpapers.engines.bases import splines
from workingpapers.errors import WorkingPapersError

ORDERS = range(6)


def uneven(features: int, grid: int, order: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = 0.2 + torch.rand(features, grid + 1, generator=generator, dtype=torch.float64)
    return splines.extended_knots(steps.cumsum(1) - 2, order)


def by_scipy(x: Tensor, knots: Tensor, order: int, derivative: int = 0) -> Tensor:
    found = []
    for column, t in zip(x.T.numpy(), knots.numpy(), strict=True):
        bases = []
        for j in range(len(t) - order - 1):
            one = Independent.basis_element(t[j : j + order + 2], extrapolate=False)
            value = one(column) if derivative == 0 else one.derivative(derivative)(column)
            bases.append(np.nan_to_num(np.where((column >= t[j]) & (column < t[j + order + 1]), value, 0.0)))
        found.append(np.stack(bases, axis=-1))
    return torch.from_numpy(np.stack(found, axis=1))


@pytest.mark.parametrize("order", ORDERS)
def test_the_bases_are_those_of_scipy_inside_and_outside_the_grid(order):
    knots = uneven(3, 4, order)
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.1, -0.2])
    assert (splines.dense_bases(x, knots, order) - by_scipy(x, knots, order)).abs().max() < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_slopes_are_those_of_scipy_and_of_autograd(order):
    knots = uneven(2, 5, order, seed=1)
    x = (torch.rand(200, 2, dtype=torch.float64) * 9 - 4).requires_grad_()
    local = splines.local_bases(x, splines.Grid.of(knots, order), slopes=True)
    whole = torch.zeros(200, 2, 5 + order, dtype=torch.float64)
    whole.scatter_(-1, torch.stack(local.columns, -1), torch.stack(local.slopes, -1).detach())
    assert (whole - by_scipy(x.detach(), knots, order, derivative=1)).abs().max() < 1e-10
    weights = torch.randn(5 + order, dtype=torch.float64)
    (slope,) = torch.autograd.grad((splines.dense_bases(x, knots, order) @ weights).sum(), x)
    assert (slope - whole @ weights).abs().max() < 1e-10


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", [1, 5, 60])
def test_inside_the_grid_the_bases_sum_to_one(order, grid):
    points = splines.uniform_points(2, grid, (-1.0, 2.0))
    x = torch.linspace(-1, 2 - 1e-6, 997)[:, None].repeat(1, 2)
    bases = splines.dense_bases(x, splines.extended_knots(points, order), order)
    assert (bases.sum(-1) - 1).abs().max() < 1e-6
    assert bases.min() >= -1e-6


@pytest.mark.parametrize("grid", [4, 60])
def test_far_away_the_bases_are_zero_and_nan_stays_nan(grid):
    knots = splines.extended_knots(splines.uniform_points(1, grid), 3)
    bases = splines.dense_bases(torch.tensor([[1e30], [-1e30], [float("inf")], [float("nan")]]), knots, 3)
    assert not bases[:3].any()
    assert bases[3].isnan().any()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("grid", [1, 5, 60])
@pytest.mark.parametrize("reach", [0.99, 4.0])
def test_even_knots_give_what_any_knots_give(order, grid, reach):
    points = torch.linspace(-1, 1, grid + 1, dtype=torch.float64).repeat(3, 1)
    knots = splines.extended_knots(points, order)
    x = (torch.rand(300, 3, dtype=torch.float64) * 2 - 1) * reach
    even = splines.Grid.of(knots, order)
    assert even.step is not None
    found, wanted = (splines.local_bases(x, g, slopes=True) for g in (even, replace(even, step=None)))
    assert torch.equal(found.cell[found.values[0] > 0], wanted.cell[found.values[0] > 0])
    for part in ("values", "slopes"):
        for a, b in zip(getattr(found, part), getattr(wanted, part), strict=True):
            assert (a - b).abs().max() < 1e-9 * grid
    assert splines.Grid.of(uneven(2, 5, order), order).step is None


def test_intervals_counted_and_searched_agree(monkeypatch):
    knots = uneven(3, 6, 3)
    x = torch.cat([torch.rand(500, 3, dtype=torch.float64) * 9 - 4, knots.T])
    counted = splines.intervals(x, knots)
    monkeypatch.setattr(splines, "COUNTED", 0)
    assert torch.equal(splines.intervals(x, knots), counted)
    inside = x[(counted > 0).all(1) & (counted < knots.shape[1] - 2).all(1)]
    at = splines.intervals(inside, knots)
    rows = torch.arange(3)
    assert (knots[rows, at] <= inside).all()
    assert (inside < knots[rows, at + 1]).all()


def test_finer_points_keep_the_old_ones_of_a_multiple_to_the_bit():
    points = splines.grid_points(uneven(3, 5, 2), 2).float()
    assert torch.equal(splines.finer_points(points, 15)[:, ::3], points)
    assert (splines.finer_points(points, 7).diff(dim=1) > 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_refining_keeps_every_spline_and_any_grid_keeps_polynomials(order):
    knots = uneven(2, 4, order, seed=3)
    points = splines.grid_points(knots, order)
    share = torch.linspace(0, 1, 99, dtype=torch.float64)[:-1, None]
    x = points[:, 0] + share * (points[:, -1] - points[:, 0])
    c = torch.randn(2, 4 + order, 3, dtype=torch.float64)
    finer = splines.extended_knots(splines.finer_points(points, 12), order)
    more = splines.refit(c, knots, finer, order)
    before = torch.einsum("nib,ibo->nio", splines.dense_bases(x, knots, order), c)
    after = torch.einsum("nib,ibo->nio", splines.dense_bases(x, finer, order), more)
    assert (before - after).abs().max() < 1e-10


def test_a_grid_follows_samples_and_keeps_what_both_grids_can_say():
    knots = splines.extended_knots(splines.uniform_points(1, 6, (-3, 3)).double(), 3)
    at = splines.sites(knots, 3)
    cubic = torch.linalg.solve(splines.dense_bases(at, knots, 3)[:, 0], at**3 - at)[None]  # x^3 - x
    samples = torch.randn(400, 1, dtype=torch.float64).clamp(-2.9, 2.9)
    new = splines.extended_knots(splines.adapted_points(samples, 6, 0.9), 3)
    found = splines.dense_bases(samples, new, 3)[:, 0] @ splines.refit(cubic, knots, new, 3, samples)[0]
    inside = (samples < samples.max()).flatten()
    assert (found - (samples**3 - samples))[inside].abs().max() < 1e-9


def test_adapted_points_are_quantiles_at_one_and_even_at_zero():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [20.0]])
    assert splines.adapted_points(x, 4, 1.0).tolist() == [[0, 1, 2, 10, 20]]
    assert splines.adapted_points(x, 4, 0.0).tolist() == [[0, 5, 10, 15, 20]]
    assert splines.adapted_points(x, 4, 0.5).tolist() == [[0, 3, 6, 12.5, 20]]
    with pytest.raises(WorkingPapersError, match="input 0 cannot follow the samples"):
        splines.adapted_points(torch.zeros(9, 1), 4, 1.0)


def test_grids_that_are_none_are_refused():
    with pytest.raises(WorkingPapersError, match="at least one interval; got 0"):
        splines.uniform_points(1, 0)
    with pytest.raises(WorkingPapersError, match="from a lower to a higher number; got 1"):
        splines.uniform_points(1, 3, (1.0, 1.0))

"""The layer: what its edges add up to, grids that move and grow, parts of it, and its refusals."""

import pytest
import torch
from torch import nn

from workingpapers.engines.bases import BasisLinear, BSpline, basis
from workingpapers.errors import WorkingPapersError


def layer(**options) -> BasisLinear:
    made = BasisLinear(3, 4, BSpline(3, 5), nn.SiLU(), bias=True, **options)
    nn.init.normal_(made.coefficients)
    nn.init.normal_(made.bias)
    made.mask.copy_(torch.rand(4, 3) > 0.3)
    return made


def test_the_output_is_the_sum_of_the_edges():
    made, x = layer(), torch.randn(20, 3)
    assert torch.allclose(made(x), made.edges(x).sum(-1) + made.bias, atol=1e-5)
    one = made.edges(x)[:, 2, 1]
    spline = made.basis(x)[:, 1] @ made.coefficients[1, :, 2]
    base = made.base_weight[2, 1] * nn.functional.silu(x[:, 1])
    assert torch.allclose(one, made.mask[2, 1] * (spline + base), atol=1e-5)


def test_leading_dimensions_stay():
    made, x = layer(), torch.randn(2, 5, 3)
    assert torch.allclose(made(x)[1], made(x[1]), atol=1e-6)


def test_a_cut_edge_learns_nothing():
    made = layer()
    made.mask.zero_()
    made.mask[0, 0] = 1
    made(torch.randn(9, 3)).sum().backward()
    assert not made.coefficients.grad[1:].any()
    assert not made.coefficients.grad[:, :, 1:].any()
    assert made.coefficients.grad[0, :, 0].any()
    assert made.base_weight.grad.count_nonzero() == 1


@pytest.mark.parametrize("finer", [(10,), (15, 30), (50,)])
def test_extending_the_grid_keeps_the_function(finer):
    made = layer()
    x = torch.rand(200, 3) * 1.99 - 1
    before = made(x)
    for grid in finer:
        made.extend_grid(grid)
        assert made.coefficients.shape == (3, grid + 3, 4)
        assert made.basis.grid == grid
        assert torch.allclose(made(x), before, atol=2e-5)


def test_updating_the_grid_keeps_a_line_and_moves_to_the_samples():
    made = BasisLinear(2, 1, BSpline(2, 8))
    knots = made.basis.knots
    with torch.no_grad():  # the knots' means are the coefficients of x itself
        averages = torch.stack([knots[:, j + 1 : j + 4].mean(1) for j in range(11)], dim=1)
        made.coefficients.copy_(averages.unsqueeze(-1))
    x = torch.rand(500, 2).square() * 1.6 - 0.8
    assert torch.allclose(made(x)[:, 0], x.sum(1), atol=1e-5)
    made.update_grid(x, adaptivity=0.9)
    assert torch.allclose(made.basis.points[:, [0, -1]].T, torch.stack([x.amin(0), x.amax(0)]), atol=1e-6)
    near = (x < x.amax(0)).all(1)
    assert torch.allclose(made(x)[near, 0], x[near].sum(1), atol=1e-4)
    gaps = made.basis.points.diff(dim=1)
    assert (gaps[:, 0] < gaps[:, -1]).all()  # squares crowd at the low end


def test_a_selection_has_the_edges_asked_for():
    made, x = layer(), torch.randn(30, 3)
    small = made.select([2, 0], [3, 1])
    wanted = made.edges(x)[:, [3, 1]][:, :, [2, 0]]
    assert torch.allclose(small.edges(x[:, [2, 0]]), wanted, atol=1e-6)
    assert torch.equal(small.bias, made.bias[[3, 1]])


def test_what_does_not_fit_is_refused():
    made = layer()
    for broken, message in (
        (lambda: BasisLinear(2, 1, basis("rbf", 3)), "basis is made for 3 inputs; the layer has 2"),
        (lambda: made(torch.randn(4, 5)), r"takes 3 features in the last dimension; got \(4, 5\)"),
        (lambda: made(torch.zeros(4, 3, dtype=torch.long)), "floating-point numbers; got torch.int64"),
        (lambda: made.extend_grid(4), "grid of 5 intervals is extended to more; got 4"),
        (lambda: made.update_grid(torch.rand(9, 3), 1.5), "adaptivity lies between 0 and 1; got 1.5"),
        (lambda: BasisLinear(2, 1, "rbf").extend_grid(9), "only a B-spline has a grid; this layer has RBF"),
    ):
        with pytest.raises(WorkingPapersError, match=message):
            broken()

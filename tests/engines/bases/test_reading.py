"""Pruning, its penalty, formulas read off edges, and the layers of pykan there and back."""

import math

import numpy as np
import pytest
import torch
from kan.KANLayer import KANLayer
from scipy.interpolate import BSpline as Independent
from torch import nn

from workingpapers.engines.bases import (
    BasisLinear,
    BSpline,
    Linear,
    edge_magnitudes,
    fit_symbolic,
    from_pykan,
    prune_edges,
    prune_nodes,
    pruning,
    read_edge,
    regularisation,
    to_pykan,
)
from workingpapers.errors import UnknownName, WorkingPapersError


def lines(weight: list[list[float]]) -> BasisLinear:
    """Edges that are w_ji x."""
    made = BasisLinear(len(weight[0]), len(weight), Linear(len(weight[0])))
    made.coefficients.data.copy_(torch.tensor(weight).T.unsqueeze(1))
    return made


def test_magnitudes_are_means_of_absolute_values_in_parts_too(monkeypatch):
    made, x = BasisLinear(3, 4, "bspline", nn.SiLU()), torch.randn(50, 3)
    wanted = made.edges(x).abs().mean(0)
    monkeypatch.setattr(pruning, "ELEMENTS", 30)
    found = edge_magnitudes(made, x)
    assert torch.allclose(found, wanted, atol=1e-6)
    weights = torch.randn(4, 3)
    right = torch.autograd.grad((wanted * weights).sum(), made.coefficients)[0]
    assert torch.allclose(
        torch.autograd.grad((found * weights).sum(), made.coefficients)[0], right, atol=1e-6
    )
    with pytest.raises(WorkingPapersError, match="on at least one example; got none"):
        edge_magnitudes(made, x[:0])


def test_the_penalty_is_the_sum_and_the_entropy_of_the_shares():
    made, x = lines([[1.0, -3.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert regularisation(made, x, 1.0, 0.0).item() == pytest.approx(8.0)
    entropy = -sum(p * math.log(p) for p in (1 / 8, 3 / 8, 4 / 8))
    assert regularisation(made, x, 0.0, 1.0).item() == pytest.approx(entropy)
    even = lines([[2.0, 2.0], [2.0, 2.0]])
    assert regularisation(even, x, 0.0, 2.0).item() == pytest.approx(2 * math.log(4))


def test_small_edges_are_cut_and_idle_nodes_removed():
    one, two = lines([[1.0, 0.001], [0.5, 2.0], [0.0, 0.0]]), lines([[1.0, 1.0, 9.0], [3.0, 0.0, 9.0]])
    x = torch.randn(200, 2)
    whole = two(one(x))
    small, kept = prune_nodes([one, two], x)
    assert kept == [[0, 1], [0, 1], [0, 1]]
    assert torch.allclose(small(x), whole, atol=1e-6)
    assert prune_edges(one, x, 0.01) == 3
    assert one.mask.tolist() == [[1, 0], [1, 1], [0, 0]]
    with pytest.raises(WorkingPapersError, match="no node behind layer 0 is as large as 100"):
        prune_nodes([one, two], x, 100.0)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sin", lambda x: 3 * torch.sin(2.5 * x - 1) + 0.3),
        ("exp", lambda x: 0.5 * torch.exp(1.3 * x) - 2),
        ("x^2", lambda x: 2 * (x - 0.4) ** 2 + 1),
        ("log", lambda x: torch.log(x + 3.0)),
        ("tanh", lambda x: -torch.tanh(2 * x + 0.5)),
    ],
)
def test_formulas_are_recognised(name, function):
    x = torch.linspace(-2, 2, 120, dtype=torch.float64)
    best = {r.name: r for r in fit_symbolic(x, function(x))}[name]
    assert best.r2 > 1 - 1e-6
    formula = {"sin": math.sin, "exp": math.exp, "x^2": lambda u: u * u, "log": math.log, "tanh": math.tanh}
    at = best.a * formula[name](best.b * 0.7 + best.c) + best.d
    assert at == pytest.approx(float(function(torch.tensor(0.7))), abs=1e-3)
    assert fit_symbolic(x, function(x))[0].r2 >= best.r2


def test_an_edge_is_read_and_noise_is_not_explained():
    made = BasisLinear(2, 1, Linear(2))
    made.coefficients.data[1] = 2.5
    best = read_edge(made, 0, 1, torch.linspace(-1, 1, 50), ["x", "abs"])[0]
    assert best.name == "x"
    assert best.a * best.b == pytest.approx(2.5, rel=1e-5)
    assert "R2 1.000000" in str(best)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert fit_symbolic(torch.linspace(-1, 1, 200), noise, ["x", "exp"])[0].r2 < 0.2
    with pytest.raises(UnknownName, match="nearest names are 'sin', 'sign'"):
        fit_symbolic(noise, noise, ["sinn"])
    with pytest.raises(WorkingPapersError, match="inputs 0 to 1; got 0 and 2"):
        read_edge(made, 0, 2, noise)
    with pytest.raises(WorkingPapersError, match="at least five points; got 3 and 3"):
        fit_symbolic(noise[:3], noise[:3])


class StandIn:
    """What a spline layer of pykan is, computed by scipy."""

    def __init__(self, inputs: int, outputs: int, intervals: int, k: int) -> None:
        steps = (0.2 + torch.rand(inputs, intervals + 1)).cumsum(1) - 2
        h = (steps[:, -1:] - steps[:, :1]) / intervals
        away = h * torch.arange(1, k + 1)
        self.grid = torch.cat([steps[:, :1] - away.flip(1), steps, steps[:, -1:] + away], dim=1)
        self.coef = torch.randn(inputs, outputs, intervals + k)
        self.scale_base, self.scale_sp = torch.randn(2, inputs, outputs)
        self.mask = (torch.rand(inputs, outputs) > 0.3).float()
        self.k, self.base_fun = k, torch.tanh

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        total = np.zeros((len(x), self.coef.shape[1]))
        for i, column in enumerate(x.double().numpy().T):
            t = self.grid[i].double().numpy()
            for j in range(total.shape[1]):
                spline = Independent(t, self.coef[i, j].double().numpy(), self.k, extrapolate=True)(column)
                base = float(self.scale_base[i, j]) * self.base_fun(torch.from_numpy(column)).numpy()
                total[:, j] += float(self.mask[i, j]) * (base + float(self.scale_sp[i, j]) * spline)
        return torch.from_numpy(total).float()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_layer_of_pykan_keeps_its_outputs_there_and_back(k):
    theirs = StandIn(3, 4, 6, k)
    inner = theirs.grid[:, k : -k or None]
    x = inner[:, 0] + torch.rand(100, 3) * (inner[:, -1] - inner[:, 0])
    ours = from_pykan(theirs)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    back = to_pykan(ours, StandIn(3, 4, 6, k))
    assert torch.allclose(back(x), theirs(x), atol=1e-5)
    assert torch.equal(back.mask, theirs.mask)


def test_pykan_itself_agrees():
    theirs = KANLayer(4, 3, num=5, k=3, sparse_init=True)
    theirs.update_grid_from_samples(torch.randn(200, 4))
    x = torch.randn(100, 4) * 2
    ours = from_pykan(theirs)
    assert torch.allclose(ours(x), theirs(x)[0], atol=1e-5)
    plain = BasisLinear(4, 3, BSpline(4, 7, 2))
    assert torch.allclose(to_pykan(plain, KANLayer(4, 3, num=7, k=2))(x)[0], plain(x), atol=1e-5)


def test_what_is_no_layer_of_pykan_is_refused():
    with pytest.raises(WorkingPapersError, match="Linear lacks grid, coef, scale_base"):
        from_pykan(nn.Linear(2, 2))
    broken = StandIn(3, 4, 6, 3)
    broken.mask = torch.ones(4, 3)
    with pytest.raises(WorkingPapersError, match=r"go with a mask of shape \(3, 4\)"):
        from_pykan(broken)
    with pytest.raises(WorkingPapersError, match="pykan has no bias"):
        to_pykan(BasisLinear(3, 4, BSpline(3, 6, 3), bias=True), StandIn(3, 4, 6, 3))
    with pytest.raises(WorkingPapersError, match=r"needs coefficients of shape \(3, 4, 8\) and order 3"):
        to_pykan(BasisLinear(3, 4), StandIn(3, 4, 6, 3))

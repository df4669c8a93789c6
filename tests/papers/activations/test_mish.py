"""Mish against mpmath, torch and its derivative's two closed forms; the landscapes against known surfaces."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.mish import (
    Mish,
    deep_net,
    deep_net_accuracy,
    hard_mish,
    loss_landscape,
    mish,
    mish_derivative,
    output_landscape,
    preconditioner,
    roughness,
    sparsity,
)

GRID = torch.linspace(-30, 30, 601, dtype=torch.float64)


def exact(x: float) -> float:
    with mpmath.workdps(40):
        return float(x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))))


def slope(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(mish(x).sum(), x)[0]


def test_equals_the_definition_in_forty_digits() -> None:
    np.testing.assert_allclose(mish(GRID).numpy(), [exact(x) for x in GRID.tolist()], rtol=2e-15)


def test_equals_torch_in_single_precision() -> None:
    x = torch.linspace(-30, 30, 6001)
    torch.testing.assert_close(mish(x), F.mish(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(mish(x[x > 20]), x[x > 20])


def test_slope_at_zero_and_the_minimum() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(mish(zero)) == 0
    assert float(slope(zero)) == pytest.approx(0.6, rel=1e-15)
    found = optimize.minimize_scalar(lambda t: float(mish(torch.tensor(t, dtype=torch.float64))), (-2, -0.5))
    assert found.x == pytest.approx(-1.192431, abs=1e-5)
    assert found.fun == pytest.approx(-0.308843, abs=1e-6)


def test_derivative_has_both_closed_forms_of_the_paper() -> None:
    x = torch.linspace(-20, 19, 391, dtype=torch.float64)
    e = torch.exp(x)
    omega = 4 * (x + 1) + 4 * e**2 + e**3 + e * (4 * x + 6)
    delta = 2 * e + e**2 + 2
    torch.testing.assert_close(mish_derivative(x), e * omega / delta**2, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(mish_derivative(x), slope(x), rtol=1e-12, atol=1e-15)


def test_preconditioner_is_the_squared_hyperbolic_secant() -> None:
    x = torch.linspace(-20, 15, 351, dtype=torch.float64)
    torch.testing.assert_close(preconditioner(x), 1 / torch.cosh(F.softplus(x)).square(), rtol=1e-10, atol=0)
    nonzero = x[x.abs() > 1e-9]
    torch.testing.assert_close(
        mish_derivative(nonzero), preconditioner(nonzero) * F.silu(nonzero) + mish(nonzero) / nonzero
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extremes_are_exact(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -200.0, 200.0, 1e4], dtype=dtype)
    assert mish(x).tolist() == [0, 0, *x[2:].tolist()]
    assert slope(x).tolist() == [0, 0, 1, 1]


def test_hard_mish_is_the_named_parabola_between_two_lines() -> None:
    x = torch.tensor([-5.0, -2.0, -1.5, -1.0, -0.5, 0.0, 3.0])
    expected = [0, 0, -0.375, -0.5, -0.375, 0, 3]
    assert hard_mish(x).tolist() == expected
    assert make("mish.hard")(x).tolist() == expected
    assert float((hard_mish(GRID) - mish(GRID)).abs().max()) == pytest.approx(-exact(-2.0), abs=1e-6)


def test_roughness_of_a_ridge() -> None:
    axis = torch.linspace(-1, 1, 41)
    ridge = axis.abs()[:, None].expand(41, 41)  # slope h along rows, 0 along columns: rms h / sqrt(2)
    assert roughness(ridge) == pytest.approx(
        {"total_variation": math.sqrt(2), "sharpest": 2 * math.sqrt(2)}, rel=1e-4
    )
    assert roughness(7 * ridge.T) == pytest.approx(roughness(ridge), rel=1e-4)


def test_landscapes_share_their_weights_and_linear_ones_are_flat() -> None:
    flat = output_landscape(nn.Identity, points=16, seed=3)
    assert roughness(flat)["sharpest"] < 1e-3
    kinked, smooth = output_landscape(nn.ReLU, seed=3), output_landscape(Mish, seed=3)
    assert torch.equal(kinked, output_landscape(nn.ReLU, seed=3))
    assert not torch.equal(kinked, output_landscape(nn.ReLU, seed=4))
    assert roughness(smooth)["sharpest"] < 0.5 * roughness(kinked)["sharpest"]


def test_loss_landscape_takes_steps_of_the_filters_norms() -> None:
    model = nn.Linear(6, 4)
    before = [p.detach().clone() for p in model.parameters()]

    def squares(m: nn.Module) -> torch.Tensor:
        return m.weight.square().sum(dim=1)[2]  # one filter alone

    surface = loss_landscape(model, squares, points=5, radius=2.0)
    norm = float(before[0][2].square().sum())
    assert float(surface[2, 2]) == pytest.approx(norm, rel=1e-5)
    for line in (surface[:, 2], surface[2]):  # |w + a u|^2 with |u| = |w|
        assert float(line[0] + line[4] - 2 * line[2]) == pytest.approx(2 * 4 * norm, rel=1e-4)
        assert float(line[1] + line[3] - 2 * line[2]) == pytest.approx(2 * 1 * norm, rel=1e-4)
    assert not torch.equal(surface, surface.T)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_sparsity_counts_outputs_near_zero() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.5, 1.0]])
    assert sparsity(nn.Sequential(nn.ReLU(), Mish()), x, (nn.ReLU,)) == {"0": 0.5}
    assert sparsity(nn.Sequential(Mish()), x) == {"0": 0.0}
    assert sparsity(nn.Sequential(Mish()), x, threshold=0.26) == {"0": 0.25}  # mish(-2) = -0.2525


def test_deep_net_is_the_papers() -> None:
    net = deep_net(Mish, 15)
    assert sum(isinstance(m, nn.Linear) for m in net) == 15
    assert sum(isinstance(m, nn.BatchNorm1d) for m in net) == sum(isinstance(m, Mish) for m in net) == 14
    assert {m.p for m in net if isinstance(m, nn.Dropout)} == {0.25}
    with pytest.raises(WorkingPapersError, match="at least 2 layers; got 1"):
        deep_net(Mish, 1)


def test_deep_net_accuracy_feels_noise_and_initialisation() -> None:
    split = images("digits", train=500, test=200)
    options = {"depth": 2, "epochs": 4, "lr": 1e-2}
    assert deep_net_accuracy(Mish, split, **options) > 0.7
    assert deep_net_accuracy(Mish, split, noise=100.0, **options) < 0.3

    def silence(model: nn.Module) -> None:
        for p in model.parameters():
            p.data.zero_().requires_grad_(p.ndim == 1)  # only biases learn: one class for all

    assert deep_net_accuracy(Mish, split, init=silence, **options) < 0.2

"""GoLU against the Gumbel law, the Lambert W function and quadrature; the helpers of its claims."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import nn

from workingpapers.catalog import make
from workingpapers.errors import UnknownName
from workingpapers.papers.activations.golu import (
    GoLU,
    gaussian_variance,
    golu,
    latent_variances,
    variance_report,
    weight_spread,
)

OMEGA = float(special.lambertw(1).real)  # 0.567143, the solution of x e^x = 1


def slope(x: torch.Tensor, **options: float) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(golu(x, **options).sum(), x)[0]


def test_gate_is_the_gumbel_distribution_function() -> None:
    x = torch.linspace(-6, 12, 181, dtype=torch.float64)
    expected = x.numpy() * stats.gumbel_r.cdf(x.numpy())
    np.testing.assert_allclose(golu(x).numpy(), expected, rtol=1e-12, atol=1e-300)


def test_parameters_shift_and_steepen_the_gate() -> None:
    x = torch.linspace(-3, 5, 81, dtype=torch.float64)
    alpha, beta, gamma = 0.7, 2.5, 1.6
    expected = alpha * x.numpy() * stats.gumbel_r.cdf(x.numpy(), loc=math.log(beta) / gamma, scale=1 / gamma)
    np.testing.assert_allclose(golu(x, alpha, beta, gamma).numpy(), expected, rtol=1e-11)


def test_value_and_slope_at_zero() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(golu(zero)) == 0.0
    assert float(slope(zero)) == pytest.approx(math.exp(-1), rel=1e-14)
    assert float(slope(zero, alpha=3.0, beta=2.0)) == pytest.approx(3 * math.exp(-2), rel=1e-14)


def test_minimum_is_at_minus_omega() -> None:
    found = optimize.minimize_scalar(
        lambda t: float(golu(torch.tensor(t, dtype=torch.float64))), (-2, -0.5), tol=1e-10
    )
    assert found.x == pytest.approx(-OMEGA, abs=1e-7)
    assert found.fun == pytest.approx(-OMEGA * math.exp(-1 / OMEGA), abs=1e-12)
    assert found.fun == pytest.approx(-0.097260, abs=1e-6)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.3, 2.0), (4.0, 0.5)])
def test_derivative_has_its_closed_form(beta: float, gamma: float) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    decay = torch.exp(-gamma * x)
    expected = torch.exp(-beta * decay) + x * beta * gamma * torch.exp(-gamma * x - beta * decay)
    torch.testing.assert_close(slope(x, beta=beta, gamma=gamma), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -100.0, -20.0, 100.0, 1e4], dtype=dtype)
    y, dy = golu(x), slope(x)
    assert y.dtype == dtype
    assert y[:3].tolist() == [0, 0, 0]
    assert y[3:].tolist() == x[3:].tolist()
    assert dy.tolist() == [0, 0, 0, 1, 1]


def test_half_precision_is_rounded_once() -> None:
    x = torch.linspace(-4, 4, 999).to(torch.bfloat16)
    assert torch.equal(golu(x), golu(x.float()).to(torch.bfloat16))


def test_trainable_parameters_get_the_analytic_gradients() -> None:
    module = GoLU(1.2, 0.8, 1.5, trainable=True).double()
    x = torch.linspace(-2, 3, 11, dtype=torch.float64)
    module(x).sum().backward()
    gate = torch.exp(-0.8 * torch.exp(-1.5 * x))
    expected = {
        "alpha": x * gate,
        "beta": -1.2 * x * torch.exp(-1.5 * x) * gate,
        "gamma": 1.2 * x * 0.8 * x * torch.exp(-1.5 * x) * gate,
    }
    for name, value in expected.items():
        assert float(getattr(module, name).grad) == pytest.approx(float(value.sum()), rel=1e-6)
    assert list(GoLU().parameters()) == []


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"golu takes a floating-point tensor; got a tensor of torch\.int64"):
        golu(torch.arange(3))
    with pytest.raises(UnknownName, match="beta"):
        make("golu", bta=2.0)


def variance_by_quadrature(f) -> float:  # type: ignore[no-untyped-def]
    def moment(k: int) -> float:
        return integrate.quad(lambda z: f(z) ** k * stats.norm.pdf(z), -12, 12, epsabs=1e-12, limit=200)[0]

    return moment(2) - moment(1) ** 2


def test_gaussian_variance_equals_adaptive_quadrature() -> None:
    assert gaussian_variance(nn.Identity()) == pytest.approx(1.0, abs=1e-9)
    assert gaussian_variance(nn.ReLU()) == pytest.approx(0.5 - 0.5 / math.pi, abs=1e-6)
    expected = variance_by_quadrature(lambda z: z * math.exp(-math.exp(-z)))
    assert gaussian_variance(GoLU()) == pytest.approx(expected, abs=1e-7)
    assert expected == pytest.approx(0.2526, abs=1e-4)


def test_reports_measure_what_comes_out() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    doubled = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        doubled.weight.copy_(2 * torch.eye(3)[:, :, None, None])
    report = variance_report(doubled, x, {"identity": nn.Identity(), "relu": nn.ReLU()})
    assert report["identity"] == pytest.approx(4 * float(x.var()), rel=1e-5)
    assert report["relu"] == pytest.approx(float((2 * x).clamp(min=0).var()), rel=1e-5)

    model = nn.Sequential(doubled, nn.ReLU(), nn.Sequential(nn.Flatten(), nn.ReLU()))
    found = latent_variances(model, x, nn.ReLU)
    assert found == pytest.approx({"1": report["relu"], "2.1": report["relu"]})
    assert not any(m._forward_hooks for m in model.modules())
    assert weight_spread(doubled) == pytest.approx(math.sqrt(4 / 3 - (2 / 3) ** 2))

"""CRReLU against 50 digits and its closed facts; the entropy calculus against closed forms and quadrature."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.exact import exp, expect_exact
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.crrelu import (
    Corrected,
    CRReLU,
    corrected_entropy,
    correction,
    crrelu,
    entropy,
    first_variation,
    moved_share,
    normal,
    sample_entropy,
    slope,
    worst_activation,
)

GRID = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
mpf = mpmath.mpf


def test_value_and_slope_in_fifty_digits() -> None:
    eps = 0.25
    expect_exact(
        lambda x: crrelu(x, eps),
        lambda x: max(x, mpf(0)) + eps * x * exp(-x * x / 2),
        lambda x: (x > 0) + eps * (1 - x * x) * exp(-x * x / 2),
    )


def test_the_bump_is_odd_with_extrema_at_one() -> None:
    x = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    bump = crrelu(x, 0.3) - x.relu()
    torch.testing.assert_close(bump, -bump.flip(0), rtol=0, atol=1e-15)
    assert float(x[bump.argmax()]) == pytest.approx(1.0, abs=1e-9)
    assert float(x[bump.argmin()]) == pytest.approx(-1.0, abs=1e-9)
    assert float(bump.max()) == pytest.approx(0.3 * math.exp(-0.5), rel=1e-12)
    assert float(bump[x.abs() > 6].abs().max()) < 1e-5 * 0.3 * 10  # 6 exp(-18) = 9e-8
    assert torch.equal(crrelu(x, 0.0), x.relu())


def test_slopes_on_both_sides_of_zero() -> None:
    x = torch.tensor([-1e-9, 1e-9], dtype=torch.float64, requires_grad=True)
    crrelu(x, 0.01).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.01, 1.01], rel=1e-12)


def test_eps_learns_by_its_derivative_for_the_layer_and_for_each_channel() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    bump = x * torch.exp(-x * x / 2)
    whole, each = CRReLU(), CRReLU(channels=3)
    for module, expected in ((whole, bump.sum()), (each, bump.sum((0, 2)))):
        module(x).sum().backward()
        assert isinstance(module.eps, nn.Parameter)
        torch.testing.assert_close(module.eps.grad, expected)
    assert whole.eps.item() == pytest.approx(0.01)  # type: ignore[union-attr]
    assert list(CRReLU(0.5, trainable=False).parameters()) == []
    assert repr(CRReLU(0.5, trainable=False)) == "CRReLU(eps=0.5, trainable=False)"


def test_channels_are_the_second_dimension() -> None:
    module = CRReLU(channels=2)
    with torch.no_grad():
        module.eps[:] = torch.tensor([0.0, 1.0])  # type: ignore[index]
    y = module(torch.full((3, 2, 4, 4), -1.0))
    assert torch.equal(y[:, 0], torch.zeros(3, 4, 4))
    torch.testing.assert_close(y[:, 1], torch.full((3, 4, 4), -math.exp(-0.5)))


def test_bad_options_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="finite eps; got nan"):
        CRReLU(math.nan)
    with pytest.raises(WorkingPapersError, match="same in all channels; got channels=3"):
        CRReLU(trainable=False, channels=3)


def test_the_worst_map_is_the_distribution_function() -> None:
    found = worst_activation(normal(), GRID)
    np.testing.assert_allclose(found.numpy(), stats.norm.cdf(GRID.numpy()), atol=1e-7)
    skew = worst_activation(lambda t: torch.exp(-t) * (t >= 0), torch.linspace(0, 40, 40_001))
    assert float(skew[1000]) == pytest.approx(1 - math.exp(-1), abs=1e-4)


def test_entropies_have_their_closed_forms() -> None:
    def line(t: Tensor) -> Tensor:
        return 3 * t + 1

    gaussian = 0.5 * math.log(2 * math.pi * math.e)
    assert entropy(line, normal(), GRID) == pytest.approx(gaussian + math.log(3), abs=1e-9)
    assert entropy(torch.exp, normal(0.5, 0.7), GRID) == pytest.approx(
        gaussian + math.log(0.7) + 0.5, abs=1e-9
    )
    # E log sigmoid'(z), independently
    expected = integrate.quad(lambda z: stats.norm.pdf(z) * (-z - 2 * math.log1p(math.exp(-z))), -12, 12)[0]
    assert entropy(torch.sigmoid, normal(), GRID) == pytest.approx(gaussian + expected, abs=1e-9)

    def cdf(t: Tensor) -> Tensor:
        return torch.special.erfc(-t * 0.5**0.5) / 2  # type: ignore[no-any-return]

    assert entropy(cdf, normal(), GRID) == pytest.approx(0.0, abs=1e-12)
    assert entropy(lambda t: cdf(t).square(), normal(), GRID) == pytest.approx(math.log(2) - 1, abs=1e-9)


@pytest.mark.parametrize("neighbour", [1, 3])
def test_estimates_from_samples_come_near(neighbour: int) -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = 5 * torch.rand(40_000, generator=generator, dtype=torch.float64)
    assert sample_entropy(uniform, neighbour) == pytest.approx(math.log(5), abs=0.02)
    z = torch.randn(40_000, generator=generator, dtype=torch.float64)
    assert sample_entropy(z, neighbour) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.02)


def test_the_neighbour_estimate_by_hand() -> None:
    # of 0, 1, 3, 7 the nearest are 1, 1, 2, 4 away; psi(4) - psi(1) = 11 / 6
    expected = 11 / 6 + math.log(2 * 1 * 2 * 1 * 2 * 2 * 2 * 4) / 4
    assert sample_entropy(torch.tensor([3.0, 0.0, 7.0, 1.0]), 1) == pytest.approx(expected, rel=1e-12)
    # the second nearest are 3, 2, 3, 6 away; psi(4) - psi(2) = 5 / 6
    expected = 5 / 6 + math.log(6 * 4 * 6 * 12) / 4
    assert sample_entropy(torch.tensor([3.0, 0.0, 7.0, 1.0]), 2) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(WorkingPapersError, match="more than 3 samples"):
        sample_entropy(torch.zeros(3))


def test_corrections_have_their_closed_forms() -> None:
    t = torch.linspace(0.1, 4, 40, dtype=torch.float64)
    p = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(correction(torch.relu, normal(), t), t * p)  # ReLU's positive half
    assert torch.equal(correction(torch.relu, normal(), -t), torch.zeros_like(t))
    # tanh: f' = 1 / cosh^2, f'' / f' = -2 tanh
    expected = p * (t - 2 * torch.tanh(t)) * torch.cosh(t).square()
    torch.testing.assert_close(correction(torch.tanh, normal(), t), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("f", [torch.tanh, F.softplus], ids=["tanh", "softplus"])
def test_the_entropy_falls_at_the_rate_of_the_first_variation(f) -> None:  # type: ignore[no-untyped-def]
    whole = entropy(f, normal(), GRID)
    assert corrected_entropy(f, normal(), GRID, 0.0) == pytest.approx(whole, abs=1e-12)
    eps = 1e-4
    rate = (corrected_entropy(f, normal(), GRID, -eps) - corrected_entropy(f, normal(), GRID, eps)) / (
        2 * eps
    )
    assert rate == pytest.approx(first_variation(f, normal(), GRID), rel=1e-4)
    with pytest.raises(WorkingPapersError, match="folds the inverse"):
        corrected_entropy(f, normal(), GRID, -50.0)


def test_the_corrected_activation_inverts_the_corrected_inverse_to_first_order() -> None:
    x = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    gaps = []
    for eps in (1e-3, 5e-4):
        module = Corrected(torch.tanh, eps).double()
        inverse = torch.atanh(x) + eps * correction(torch.tanh, normal(), torch.atanh(x))
        gaps.append((module(inverse) - x).abs().max().item())
    assert 3.8 < gaps[0] / gaps[1] < 4.2  # the rest is of second order
    assert gaps[0] < 1e-5


def test_relu_corrected_is_crrelu_up_to_the_scale_of_eps() -> None:
    t = torch.linspace(0.1, 5, 50, dtype=torch.float64)
    module = Corrected(torch.relu, eps=-0.3 * math.sqrt(2 * math.pi)).double()
    torch.testing.assert_close(module(t), crrelu(t, 0.3))
    module(t).sum().backward()
    assert module.eps.grad is not None


def test_online_correction_follows_the_inputs_in_training_alone() -> None:
    module = Corrected(torch.tanh, online=True, momentum=0.5)
    x = torch.tensor([1.0, 3.0, 5.0])
    module.eval()(x)
    assert (float(module.mean), float(module.variance)) == (0.0, 1.0)
    module.train()(x)
    assert float(module.mean) == pytest.approx(1.5)
    assert float(module.variance) == pytest.approx(0.5 + 0.5 * 8 / 3)
    still = Corrected(torch.tanh)
    still.train()(x)
    assert float(still.mean) == 0.0


def test_helpers() -> None:
    t = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(slope(lambda s: s**3, t), 3 * t**2)
    near, far = CRReLU(), CRReLU()
    with torch.no_grad():
        near.eps += 0.004  # type: ignore[operator]
        far.eps -= 0.02  # type: ignore[operator]
    assert moved_share(nn.Sequential(near, nn.ReLU()), far) == 0.5

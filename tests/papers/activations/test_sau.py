"""SAU against 50 digits, the convolution integral and its limits; smoothed functions against scipy's integrals."""

import math
from functools import partial
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy import integrate, special
from tests.exact import exp, expect_exact
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.activations.sau import SAU, PiecewiseLinear, Smoothed, sau

GRID = torch.linspace(-6, 6, 1201, dtype=torch.float64)


def slope(function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def exact_slope(alpha: mpf, n: mpf, x: mpf) -> mpf:
    z = min(max(n * x, mpf(-1000)), mpf(1000))
    return alpha + (1 - alpha) * mpmath.erfc(-z / mpmath.sqrt(2)) / 2


def exact(alpha: mpf, n: mpf, x: mpf) -> mpf:
    density = exp(-((n * x) ** 2) / 2) / mpmath.sqrt(2 * mpmath.pi)
    return x * exact_slope(alpha, n, x) + (1 - alpha) * density / n


@pytest.mark.parametrize(("alpha", "n"), [(0.25, 2.0), (0.125, 20000.0)], ids=["soft", "sharp"])
def test_equals_fifty_digits(alpha: float, n: float) -> None:
    a, s = mpf(alpha), mpf(n)
    expect_exact(partial(sau, alpha=alpha, n=n), partial(exact, a, s), partial(exact_slope, a, s), every=13)


@pytest.mark.parametrize(("alpha", "n"), [(0.15, 20000.0), (0.15, 1.0), (-0.3, 0.5), (0.6, 7.0)])
def test_is_the_formula_of_the_paper(alpha: float, n: float) -> None:
    x = GRID.numpy()
    bell = np.exp(-(n**2) * x**2 / 2) * (1 - alpha) / (n * math.sqrt(2 * math.pi))
    expected = bell + (1 + alpha) / 2 * x + (1 - alpha) / 2 * x * special.erf(n * x / math.sqrt(2))
    np.testing.assert_allclose(sau(GRID, alpha, n).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_is_the_mean_of_leaky_relu_under_noise() -> None:
    def mean(x: float) -> float:
        def weighted(t: float) -> float:
            y = x + t / 1.5
            return max(y, 0.2 * y) * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

        return integrate.quad(weighted, -12, 12, points=[-1.5 * x], epsabs=1e-13)[0]

    for x in (-2.0, -0.3, 0.0, 0.7, 3.0):
        assert float(sau(torch.tensor(x, dtype=torch.float64), 0.2, 1.5)) == pytest.approx(mean(x), abs=1e-11)


def test_value_and_slope_at_zero_and_the_largest_distance() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    for alpha, n in ((0.15, 20000.0), (0.0, 1.0), (0.5, 3.0)):
        peak = (1 - alpha) / (n * math.sqrt(2 * math.pi))
        assert float(sau(zero, alpha, n)) == pytest.approx(peak, rel=1e-14)
        assert float(slope(partial(sau, alpha=alpha, n=n), zero)) == pytest.approx((1 + alpha) / 2, rel=1e-14)
        gap = sau(GRID, alpha, n) - F.leaky_relu(GRID, alpha)
        assert float(gap.max()) == pytest.approx(peak, rel=1e-9)
        assert float(gap.min()) >= -1e-15


def test_left_tail_keeps_its_digits_where_alpha_is_zero() -> None:
    x = torch.tensor([-4.0, -9.0, -20.0], dtype=torch.float64)
    expected = [float(exact(mpf(0), mpf(1), mpf(v))) for v in x.tolist()]
    torch.testing.assert_close(sau(x, 0.0, 1.0), x.new_tensor(expected), rtol=1e-10, atol=0)
    torch.testing.assert_close(
        sau(x.float(), 0.0, 1.0), x.new_tensor(expected).float(), rtol=1e-2, atol=1e-38
    )


def test_special_cases() -> None:
    assert torch.equal(sau(GRID, 1.0, 3.0), GRID)
    bell = torch.exp(-GRID.square() / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(sau(GRID, 0.0, 1.0), F.gelu(GRID) + bell)
    single = GRID.float()
    torch.testing.assert_close(SAU()(single), F.leaky_relu(single, 0.15), rtol=1e-6, atol=2e-5)


def test_slopes_by_alpha_and_n_are_the_closed_forms() -> None:
    alpha, n = (torch.full_like(GRID, v, requires_grad=True) for v in (0.3, 1.7))
    by_alpha, by_n = torch.autograd.grad(sau(GRID, alpha, n).sum(), (alpha, n))
    x = GRID.numpy()
    bell = np.exp(-(1.7**2) * x**2 / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(
        by_alpha.numpy(), x / 2 * special.erfc(1.7 * x / math.sqrt(2)) - bell / 1.7, atol=1e-14
    )
    np.testing.assert_allclose(by_n.numpy(), -0.7 * bell / 1.7**2, atol=1e-14)


def test_what_is_learned() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert [name for name, _ in SAU().named_parameters()] == ["alpha"]
    assert not list(SAU(train_alpha=False).parameters())
    module = SAU(alpha=0.2, n=2.0, train_n=True, channels=3)
    torch.testing.assert_close(module(x), sau(x, 0.2, 2.0))
    with torch.no_grad():
        module.log_n[1] = math.log(5.0)
        module.alpha[2] = 0.7
    expected = [sau(x[:, i], a, n) for i, (a, n) in enumerate(((0.2, 2.0), (0.2, 5.0), (0.7, 2.0)))]
    torch.testing.assert_close(module(x), torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SAU(n=0.0), "SAU takes a sharpness n > 0; got 0.0"),
        (
            lambda: SAU(train_alpha=False, channels=2),
            "fixed parameters are the same in all channels; got channels=2",
        ),
        (lambda: Smoothed(torch.abs, n=-1.0), "an approximate identity takes a sharpness n > 0; got -1.0"),
        (
            lambda: Smoothed(PiecewiseLinear((0.0,), (0.0, 1.0)), kernel="poisson"),
            "the Poisson kernel has no mean, so that slopes 0 and 1 at the two ends cannot be smoothed by it",
        ),
        (lambda: PiecewiseLinear((0.0,), (1.0,)), "got 1 slopes and 1 knots"),
    ],
)
def test_errors_in_one_sentence(build, message: str) -> None:
    with pytest.raises(WorkingPapersError, match=message):
        build()


def test_an_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="gaussian"):
        Smoothed(torch.abs, kernel="gausian")


def test_piecewise_linear_values() -> None:
    f = PiecewiseLinear((-1.0, 2.0, 3.0), (0.5, -1.0, 2.0, 0.0), 4.0)
    x = torch.tensor([-3.0, -1.0, 0.0, 2.0, 2.5, 3.0, 10.0])
    torch.testing.assert_close(f(x), torch.tensor([3.0, 4.0, 3.0, 1.0, 2.0, 3.0, 3.0]))


DENSITIES = {
    "gaussian": (lambda t: math.exp(-t * t / 2) / math.sqrt(2 * math.pi), 12.0),
    "bump": (lambda t: math.exp(-1 / (1 - t * t)) / 0.443993816168079 if abs(t) < 1 else 0.0, 1.0),
    "poisson": (lambda t: 1 / (math.pi * (1 + t * t)), math.inf),
}


@pytest.mark.parametrize("kernel", DENSITIES)
@pytest.mark.parametrize("n", [0.7, 3.0])
def test_closed_forms_equal_the_integral(kernel: str, n: float) -> None:
    slopes = (0.0, 1.0, -0.5, 0.0) if kernel == "poisson" else (0.2, 1.0, -0.5, 2.0)
    f = PiecewiseLinear((-1.0, 0.5, 1.0), slopes, -1.0)
    density, reach = DENSITIES[kernel]

    def weighted(t: float, x: float) -> float:
        return float(f(torch.tensor(x - t / n, dtype=torch.float64))) * density(t)

    for x in (-2.0, -0.9, 0.1, 0.6, 2.5):
        kinks = sorted({n * (x - k) for k in f.knots if abs(n * (x - k)) < reach})
        pieces = pairwise([-reach, *kinks, reach])
        value = sum(integrate.quad(weighted, a, b, args=(x,))[0] for a, b in pieces)
        found = Smoothed(f, kernel, n)(torch.tensor([x], dtype=torch.float64))
        assert float(found) == pytest.approx(value, abs=2e-7)


@pytest.mark.parametrize("kernel", DENSITIES)
def test_quadrature_agrees_on_smooth_functions(kernel: str) -> None:
    x = torch.tensor([-1.3, 0.0, 0.8], dtype=torch.float64)
    found = Smoothed(lambda t: torch.cos(t), kernel, n=2.0)(x)
    transform = {"gaussian": math.exp(-1 / 8), "poisson": math.exp(-1 / 2)}  # of the kernel, at frequency 1/2
    transform["bump"] = integrate.quad(lambda t: math.cos(t / 2) * DENSITIES["bump"][0](t), -1, 1)[0]
    tolerance = 2e-2 if kernel == "poisson" else 1e-12  # its tail reaches beyond all nodes
    torch.testing.assert_close(found, transform[kernel] * torch.cos(x), rtol=0, atol=tolerance)


def test_smoothed_leaky_relu_is_sau_and_sharp_ones_the_function() -> None:
    f = PiecewiseLinear((0.0,), (0.3, 1.0))
    torch.testing.assert_close(
        make("sau.smoothed", f, n=1.5)(GRID), sau(GRID, 0.3, 1.5), rtol=1e-12, atol=1e-14
    )
    for kernel in ("gaussian", "bump"):
        torch.testing.assert_close(Smoothed(f, kernel, n=1e4)(GRID), f(GRID), rtol=0, atol=1e-4)
        torch.testing.assert_close(Smoothed(nn.ELU(), kernel, n=1e3)(GRID), F.elu(GRID), rtol=0, atol=1e-3)

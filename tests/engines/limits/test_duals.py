"""Expectations over Gaussian pairs: published closed forms, brute-force integrals, kinks, every activation."""

import math
from collections.abc import Iterator
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.stats import multivariate_normal
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import available, load, record
from workingpapers.engines.limits import Scalar, expectations
from workingpapers.engines.limits.duals import _FORMS, dual
from workingpapers.engines.limits.orthants import Truncated, probability
from workingpapers.engines.limits.scalars import NAMED
from workingpapers.engines.limits.series import Series
from workingpapers.errors import UnknownName, WorkingPapersError

RHO = torch.tensor([-1.0, -0.99999, -0.6, 0.0, 0.3, 0.9, 0.999, 0.9999999, 1.0], dtype=torch.float64)


def pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a = torch.tensor([0.2, 1.0, 2.3], dtype=torch.float64)[:, None, None]
    b = torch.tensor([0.2, 1.4], dtype=torch.float64)[None, :, None]
    return a, b, RHO * (a * b).sqrt()


def test_relu_gives_the_arc_cosine_kernels() -> None:
    a, b, c = pairs()
    theta = torch.acos((c / (a * b).sqrt()).clamp(-1, 1))
    k, slope = expectations("relu", a, b, c)
    wanted = (a * b).sqrt() / (2 * math.pi) * (theta.sin() + (math.pi - theta) * theta.cos())
    torch.testing.assert_close(k, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, (math.pi - theta) / (2 * math.pi), rtol=0, atol=1e-7)


def test_erf_gives_the_arcsine_kernel() -> None:
    a, b, c = pairs()
    k, slope = expectations(torch.erf, a, b, c)
    torch.testing.assert_close(k, 2 / math.pi * torch.asin(2 * c / ((1 + 2 * a) * (1 + 2 * b)).sqrt()))
    other = (c + 1e-6, c - 1e-6)
    one, two = (expectations(torch.erf, a, b, t)[0] for t in other)
    torch.testing.assert_close(slope, (one - two) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "abs", "identity", "erf", "sin", "cos", "exp", "gaussian"]
)
def test_series_equal_closed_forms(name: str) -> None:
    a, b, c = pairs()
    closed, form = expectations(name, a, b, c), Series(Scalar(name))
    order = form.order(torch.cat([a.flatten(), b.flatten()]))
    found = form.pair(form.features(a, order), form.features(b, order), c)
    for one, two in zip(found, closed, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-7)


def by_integration(phi: nn.Module, a: float, b: float, rho: float) -> tuple[float, float]:
    """Integrate over both normals, with every kink of the test functions as an end of an interval."""
    f = Scalar(phi)
    cuts = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0])
    x, w = np.polynomial.legendre.leggauss(24)

    def nodes(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = np.unique(np.clip([-9.0, *places, *np.linspace(-9, 9, 13)], -9, 9))
        edges = edges[np.r_[True, np.diff(edges) > 1e-9]]
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        t = (middle[:, None] + half[:, None] * x).ravel()
        return t, (half[:, None] * w).ravel() * np.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    root = math.sqrt(1 - rho * rho)
    outer, weight = nodes(cuts / math.sqrt(a))
    total = np.zeros(2)
    for t, u in zip(outer, weight, strict=True):
        inner, v = nodes((cuts / math.sqrt(b) - rho * t) / root)
        z = torch.from_numpy(math.sqrt(b) * (rho * t + root * inner))
        p = torch.tensor([math.sqrt(a) * t], dtype=torch.float64)
        total += u * np.array(
            [float(f(p) * (f(z).numpy() @ v)), float(f.slope(p) * (f.slope(z).numpy() @ v))]
        )
    return float(total[0]), float(total[1])


KINKED = [nn.Hardtanh(), nn.Hardswish(), nn.SELU(), nn.ELU(), nn.ReLU6(), nn.Softshrink(), nn.CELU(0.5)]
SMOOTH = [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Mish()]


@pytest.mark.parametrize("phi", KINKED + SMOOTH, ids=lambda m: type(m).__name__)
def test_any_activation_equals_a_brute_force_integral(phi: nn.Module) -> None:
    for a, b, rho in ((1.0, 1.0, 0.5), (0.7, 2.0, 0.97), (1.3, 1.2, -0.8)):
        t = [torch.tensor(v, dtype=torch.float64) for v in (a, b, rho * math.sqrt(a * b))]
        k, slope = expectations(phi, *t)
        wanted = by_integration(phi, a, b, rho)
        assert (float(k), float(slope)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("phi", KINKED + SMOOTH, ids=lambda m: type(m).__name__)
def test_equal_inputs_give_the_moments_of_one_gaussian(phi: nn.Module) -> None:
    q = torch.tensor([0.15, 1.0, 3.0], dtype=torch.float64)
    k, slope = expectations(phi, q, q, q)
    f = Scalar(phi)
    for i, v in enumerate(q.tolist()):

        def integrand(x: float, of: object, v: float = v) -> float:
            z = torch.tensor([math.sqrt(v) * x], dtype=torch.float64)
            return float(of(z)) ** 2 * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

        cuts = [c / math.sqrt(v) for c in (-3, -1, -0.5, 0, 0.5, 1, 3, 6) if abs(c) < 8.9 * math.sqrt(v)]
        for found, of in ((k, f), (slope, f.slope)):
            edges = [-9.0, *cuts, 9.0]
            wanted = sum(quad(integrand, lo, hi, args=(of,), epsabs=1e-10)[0] for lo, hi in pairwise(edges))
            assert float(found[i]) == pytest.approx(wanted, abs=1e-6)


def test_jumps_of_the_value_count_in_k_but_not_in_the_slopes() -> None:
    a, b, c = pairs()
    k, slope = expectations(torch.sign, a, b, c)
    rho = (c / (a * b).sqrt()).clamp(-1, 1)
    torch.testing.assert_close(k, 2 / math.pi * rho.asin(), rtol=0, atol=1e-7)
    assert float(slope.abs().max()) < 1e-12


def test_products_beyond_ramps_are_the_arc_cosine_kernel_of_degree_two() -> None:
    theta = torch.linspace(0, math.pi, 9).double()
    one = torch.ones(1).double()
    k, _ = expectations(lambda x: torch.relu(x) ** 2, one, one, theta.cos())
    j2 = 3 * theta.sin() * theta.cos() + (math.pi - theta) * (1 + 2 * theta.cos().square())
    torch.testing.assert_close(k, j2 / (2 * math.pi), rtol=0, atol=1e-9)


def test_zero_variance_gives_the_value_and_slope_at_zero() -> None:
    zero = torch.zeros(1).double()
    k, slope = expectations(nn.Softplus(), zero, zero, zero)
    assert float(k) == pytest.approx(math.log(2) ** 2, abs=1e-9)
    assert float(slope) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("t", [-1.3, 0.0, 0.8])
@pytest.mark.parametrize("s", [-0.4, 0.0, 2.0])
def test_truncated_moments_are_integrals(t: float, s: float) -> None:
    for rho in (-0.7, 0.2, 0.95):
        g = Truncated(*(np.array([v]) for v in (t, s, rho)))
        law = multivariate_normal(cov=[[1, rho], [rho, 1]])
        assert float(g[0, 0][0]) == pytest.approx(float(law.cdf([-t, -s])), abs=2e-5)
        for m, n in ((1, 0), (0, 1), (1, 1), (2, 1), (3, 2)):
            scale = math.sqrt(1 - rho**2)

            def inner(
                y: float, x: float, m: int = m, n: int = n, rho: float = rho, scale: float = scale
            ) -> float:
                z = (y - rho * x) / scale
                return (x - t) ** m * (y - s) ** n * math.exp(-(x * x + z * z) / 2) / (2 * math.pi * scale)

            wanted = dblquad(inner, t, 8, s, 8, epsabs=1e-8)[0] / math.factorial(m) / math.factorial(n)
            assert float(g[m, n][0]) == pytest.approx(wanted, abs=1e-6)


def test_orthants_with_zero_thresholds_are_arcsines_and_far_ones_are_empty() -> None:
    rho = np.array([-0.99, -0.2, 0.0, 0.7, 0.999999])
    np.testing.assert_allclose(
        probability(np.zeros(5), np.zeros(5), rho), 0.25 + np.arcsin(rho) / (2 * np.pi), atol=1e-12
    )
    np.testing.assert_allclose(probability(np.array([0.0]), np.array([30.0]), rho), 0, atol=1e-15)
    np.testing.assert_allclose(probability(np.array([0.0]), np.array([-30.0]), rho), 0.5, atol=1e-15)
    exact = mpmath.quad(
        lambda x: mpmath.npdf(x) * (1 - mpmath.ncdf((0.3 - 0.5 * x) / mpmath.sqrt(0.75))), [1.1, mpmath.inf]
    )
    assert float(probability(np.array([1.1]), np.array([0.3]), np.array([0.5]))[0]) == pytest.approx(
        float(exact), abs=1e-13
    )


@pytest.mark.parametrize(
    ("phi", "wanted"),
    [
        (nn.Hardswish(), {-3.0: (0, -0.5, 1 / 3), 3.0: (0, -0.5, -1 / 3)}),
        (nn.Threshold(0.3, 0.1), {0.3: (0.2, 1, 0)}),
        (nn.ReLU6(), {0.0: (0, 1, 0), 6.0: (0, -1, 0)}),
        (nn.SELU(), {0.0: (0, 1.0507009873554805 * (1 - 1.6732632423543772), -1.7580993408473766)}),
        (nn.Tanh(), {}),
        (nn.GELU(), {}),
        (lambda x: torch.tanh(5 * x), {}),
        (lambda x: x + torch.sin(3 * x) ** 2 / 3, {}),
        (lambda x: (x - 0.1234567).abs(), {0.1234567: (0, 2, 0)}),
    ],
)
def test_kinks_are_found_where_they_are(phi: nn.Module, wanted: dict[float, tuple[float, ...]]) -> None:
    found = {k.place: k.jumps[:3] for k in Scalar(phi).kinks}
    assert sorted(found) == pytest.approx(sorted(wanted), abs=1e-6)
    for (_, jumps), (_, known) in zip(sorted(found.items()), sorted(wanted.items()), strict=True):
        assert jumps == pytest.approx(known, abs=1e-5)


def catalogued() -> Iterator[tuple[str, nn.Module]]:
    """Every elementwise activation of the catalogue's family of activations, as its contract builds it."""
    for id in available():
        if record(id).family == "activations":
            for name, component in load(id).items():
                properties = component.properties
                if (
                    component.kind == "activation"
                    and properties.get("elementwise", True)
                    and "example" not in properties
                    and properties.get("deterministic", True)
                ):
                    yield name, component.build(**properties.get("options", {}))


def test_every_elementwise_activation_of_the_catalogue_has_a_limit() -> None:
    torch.manual_seed(0)
    q, rho = torch.ones(1).double(), torch.tensor([0.0, 0.5, 1.0]).double()
    z, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)).double()
    y, names = 0.5 * z + math.sqrt(0.75) * other, []
    for name, phi in catalogued():
        names.append(name)
        found = expectations(phi, q, q, rho)
        f = Scalar(phi)
        for of, values in ((f, found[0]), (f.slope, found[1])):
            fz = of(z)
            for product, value in zip((fz * of(other), fz * of(y), fz * fz), values, strict=True):
                error = float(product.std()) / math.sqrt(len(z))
                assert abs(float(value) - float(product.mean())) < 5 * error + 1e-9, name
    assert len(names) > 15


def test_known_modules_take_the_closed_forms() -> None:
    assert dual(nn.ReLU(inplace=True)).even == pytest.approx(0.25)
    assert dual(nn.PReLU(init=0.5)).odd == pytest.approx(0.5625)
    assert dual(F.relu) is dual("relu")
    assert dual(nn.LeakyReLU(0.01)).odd == pytest.approx(dual("leaky_relu").odd)
    assert set(_FORMS) >= {
        NAMED[n] for n in ("relu", "erf", "sin", "cos", "exp", "gaussian", "abs", "identity")
    }
    assert isinstance(dual("tanh"), Series)


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="'relu'"):
        Scalar("relv")
    with pytest.raises(WorkingPapersError, match="elementwise"):
        Scalar(lambda x: x - x.mean())
    with pytest.raises(WorkingPapersError, match="keeps the shape"):
        Scalar(lambda x: x.sum())

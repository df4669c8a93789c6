"""Bits of bias: the distribution against scipy and mpmath, Gaussian processes against linear algebra, refusals."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chi2, ncx2

from workingpapers.catalog import claims, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._hypotheses import KernelHypotheses, NetworkHypotheses, cosines
from workingpapers.papers.theory._noncentral import (
    Noncentral,
    by_moments,
    fit,
    log_square_sum,
)
from workingpapers.papers.theory.inductive_bias_bits import (
    bits,
    inductive_bias,
    inductive_bias_bits,
)
from workingpapers.tasks import mlp

PARAMETERS = [(0.7, 2.0), (1.9, 0.0), (3.0, 0.5), (8.0, 40.0), (45.0, 10.0), (400.0, 300.0)]


@pytest.mark.parametrize(("k", "l"), PARAMETERS)
def test_density_and_distribution_are_scipys(k: float, l: float) -> None:  # noqa: E741
    own = Noncentral(k, l, 0.3)
    other = ncx2(k, l, scale=0.3) if l else chi2(k, scale=0.3)
    x = np.linspace(0.5, 1.7, 9) * own.mean
    np.testing.assert_allclose(own.log_density(x), other.logpdf(x), rtol=1e-6, atol=1e-6)
    for value in x:
        assert own.log_cdf(float(value)) == pytest.approx(float(other.logcdf(value)), rel=1e-6)


DEEP = [(6.0, 30.0, 1e-70), (50.0, 900.0, 1e-4), (300.0, 0.0, 0.01), (40.0, 5e3, 3.0)]


@pytest.mark.parametrize(("k", "l", "z"), DEEP)
def test_probabilities_far_below_the_smallest_float(k: float, l: float, z: float) -> None:  # noqa: E741
    """Against the Poisson mixture in fifty digits."""
    with mpmath.workdps(50):
        half, total = mpmath.mpf(l) / 2, mpmath.mpf(0)
        for j in range(400 if l else 1):
            a = mpmath.mpf(k) / 2 + j
            p = mpmath.gammainc(a, 0, mpmath.mpf(z) / 2, regularized=True)
            total += mpmath.exp(-half) * half**j / mpmath.factorial(j) * p
        wanted = float(mpmath.log(total))
    assert wanted < -450
    assert Noncentral(k, l, 2.0).log_cdf(2 * z) == pytest.approx(wanted, rel=1e-9)


def test_sankaran_is_close_in_the_bulk_and_some_way_down() -> None:
    own = Noncentral(20.0, 30.0, 1.0)
    for share, tolerance in ((1.2, 0.01), (1.0, 0.01), (0.5, 0.02), (0.2, 0.1)):
        x = share * own.mean
        assert own.sankaran(x) == pytest.approx(own.log_cdf(x), rel=tolerance)
    assert own.log_cdf(0.0) == -math.inf


def test_moments_of_a_known_distribution() -> None:
    """Cumulants of scale * X: s (k + l), 2 s^2 (k + 2 l), 8 s^3 (k + 3 l), solved for the parameters."""
    x = ncx2.rvs(12, 60, scale=0.5, size=400_000, random_state=1)
    found = by_moments(x)
    assert found.mean == pytest.approx(x.mean())
    assert 2 * found.scale**2 * (found.k + 2 * found.l) == pytest.approx(x.var(), rel=1e-9)
    third = ((x - x.mean()) ** 3).mean()
    assert 8 * found.scale**3 * (found.k + 3 * found.l) == pytest.approx(third, rel=1e-6)
    skewed = np.exp(np.random.default_rng(0).normal(size=1000) * 2)
    assert by_moments(skewed).l == 0


@pytest.mark.parametrize(("k", "scale"), [(3.0, 0.2), (30.0, 5.0)])
def test_losses_from_a_chi_square(k: float, scale: float) -> None:
    losses = scale * chi2.rvs(k, size=10_000, random_state=3)
    eps = float(scale * chi2.ppf(1e-4, k))
    wanted = -float(chi2.logcdf(eps / scale, k)) / math.log(2)
    assert bits(fit(losses), eps) == pytest.approx(wanted, rel=0.05)


def test_the_fit_is_likelier_than_the_truth() -> None:
    x = ncx2.rvs(9, 25, scale=2.0, size=3000, random_state=5)
    found = fit(x)
    assert found.log_density(x).mean() >= ncx2.logpdf(x, 9, 25, scale=2.0).mean()


def test_bits_fall_in_eps_and_vanish() -> None:
    losses = np.random.default_rng(0).normal(2.0, 0.1, 2000) ** 2
    fitted = fit(losses)
    values = [bits(fitted, eps) for eps in (0.5, 1.0, 2.0, 3.5, 4.0, 5.0, 8.0)]
    assert all(a > b for a, b in pairwise(values))
    assert values[-1] == pytest.approx(0, abs=1e-9)
    assert values[0] > 100
    found = inductive_bias(losses, 3.2, resamples=8)
    assert found.low <= found.bits <= found.high
    assert found.high - found.low < found.bits


def test_the_finding_counts_too() -> None:
    losses = np.random.default_rng(1).chisquare(8, 4000)
    eps = float(np.quantile(losses, 1 / 64))
    numbers = inductive_bias_bits(losses, eps, 5).numbers
    assert numbers["counted"] == pytest.approx(6, abs=0.05)
    assert numbers["bits"] == pytest.approx(6, abs=0.4)
    assert numbers["sankaran"] == pytest.approx(numbers["bits"], rel=0.05)
    assert numbers["ks"] < 0.03


# hypotheses


def test_functions_run_through_the_training_points() -> None:
    x, y, x_test, _ = cosines(2, 0, 40, 10)
    functions = KernelHypotheses(x, y, sigma=0.4)
    drawn = functions.draw(torch.cat([x, x_test]), 20, seed=1)
    assert float((drawn[:, :40, 0] - y).abs().max()) < 1e-2  # the jitter's own deviation is 1e-3
    mean, covariance = functions.posterior(x)
    assert float((mean[:, 0] - y).abs().max()) < 1e-3
    assert float(covariance.diagonal().max()) < 2e-6
    assert float(drawn[:, 40:].std(0).max()) > 0.01


def test_the_posterior_is_that_of_linear_algebra() -> None:
    x, x_test = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [3.0]])
    y = torch.tensor([[1.0, 0.0], [-2.0, 5.0]])
    functions = KernelHypotheses(x, y, sigma=0.8)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return np.exp(-((a.numpy() - b.numpy().T) ** 2) / (2 * 0.64))

    inverse = np.linalg.inv(kernel(x, x))
    mean, covariance = functions.posterior(x_test)
    cross = kernel(x_test, x)
    np.testing.assert_allclose(mean, cross @ inverse @ y.numpy(), atol=1e-4)
    np.testing.assert_allclose(covariance, kernel(x_test, x_test) - cross @ inverse @ cross.T, atol=1e-5)


def test_losses_are_those_of_drawn_functions() -> None:
    x, y, x_test, y_test = cosines(3, 1, 30, 12)
    targets = torch.stack([y, 2 * y], 1)
    tests = torch.stack([y_test, 2 * y_test], 1)
    functions = KernelHypotheses(x, targets, sigma=0.6)
    quick = functions.losses(x_test, tests, 20_000, seed=0)
    drawn = functions.draw(x_test, 20_000, seed=7)
    slow = (drawn - tests).square().mean((1, 2)).numpy()
    assert quick.mean() == pytest.approx(slow.mean(), rel=0.02)
    assert quick.std() == pytest.approx(slow.std(), rel=0.05)
    assert np.quantile(quick, 0.05) == pytest.approx(np.quantile(slow, 0.05), rel=0.03)


def test_exact_bits_agree_with_counting_and_with_a_chi_square() -> None:
    x, y, x_test, y_test = cosines(3, 1, 30, 12)
    functions = KernelHypotheses(x, y, sigma=0.6)
    losses = functions.losses(x_test, y_test, 200_000)
    eps = float(np.quantile(losses, 2.0**-8))
    assert functions.exact_bits(x_test, y_test, eps) == pytest.approx(8, abs=0.15)
    assert functions.exact_bits(x_test, y_test, 10 * float(losses.max())) == 0
    for bound in (3.0, 1e-3, 1e-30):  # ten equal terms: 2 * non-central chi-square
        found = log_square_sum(np.full(10, 2.0), np.full(10, 1.5), bound)
        wanted = Noncentral(10, 10 * 1.5**2 / 2, 2.0).log_cdf(bound)
        assert found == pytest.approx(wanted, abs=0.05)
    assert log_square_sum(np.zeros(3), np.ones(3), 1.0) == -math.inf


def test_product_of_cosines() -> None:
    x, y, x_test, y_test = cosines(3, 4)
    assert (x.shape, y_test.shape) == ((100, 3), (100,))
    assert float(x.abs().max()) <= 1
    assert float(y[5]) == pytest.approx(float(np.prod(np.cos(np.pi * x[5].numpy()))))
    assert not torch.equal(x, x_test)


def test_networks_that_do_not_fit_are_left_out() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    nets = NetworkHypotheses(lambda: mlp([4, 16, 2]), Split(x, y, x, y, 2, "signs"), steps=40, lr=5e-2)
    errors = nets.errors(0)
    assert errors[0] == pytest.approx(errors[1])  # trained and tested on the same
    assert 0 < errors[0] < 0.1
    assert len(nets.losses(3, fits=1.0)) == 3
    assert len(nets.losses(3, fits=1e-12)) == 0
    assert nets.losses(2, seed=1, fits=1.0)[0] != nets.losses(2, seed=2, fits=1.0)[0]


def test_refusals() -> None:
    losses = np.linspace(1, 2, 50)
    for call, match in (
        (lambda: inductive_bias(losses, 0.0), "number above 0; got 0"),
        (lambda: inductive_bias(losses[:5], 1.0), "at least 10 finite losses"),
        (lambda: inductive_bias(losses - 1, 1.0), "above 0"),
        (lambda: inductive_bias(np.ones(20), 1.0), "all losses are the same"),
        (lambda: KernelHypotheses(torch.zeros(2, 1), torch.zeros(2), sigma=-1), "width is above 0"),
    ):
        with pytest.raises(WorkingPapersError, match=match):
            call()
    split = Split(*[torch.zeros(4, 1)] * 4, 0, "numbers")
    with pytest.raises(WorkingPapersError, match="has none"):
        NetworkHypotheses(lambda: mlp([1, 1]), split)


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("inductive_bias_bits").claims}
    assert {c.says for c in claims("inductive_bias_bits").values()} == said

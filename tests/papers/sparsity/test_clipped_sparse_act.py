"""Clipped thresholds in 50 digits; the maps against quadrature and sampling; nets at initialisation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.exact import expect_exact
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._variance_map import EdgeOfChaos, Thresholded, choose_clip, threshold
from workingpapers.papers.sparsity.clipped_sparse_act import (
    ClippedReLU,
    ClippedSoftThreshold,
    clipped_relu,
    clipped_soft_threshold,
    edge_of_chaos_,
    make_cnn,
    make_mlp,
    maps,
    simulate,
    sparse,
)

SHAPES = [
    Thresholded(1.0, math.inf),
    Thresholded(1.0, math.inf, soft=True),
    Thresholded(0.6, 1.3),
    Thresholded(1.2, 0.7, soft=True),
    Thresholded(0.0, math.inf),
]
each_shape = pytest.mark.parametrize("phi", SHAPES, ids=repr)


def expectation(phi: Thresholded, q: float, power: float) -> float:
    """Integrate the activation by adaptive quadrature, split at its kinks."""
    std = math.sqrt(q)
    kinks = [k / std for k in (phi.tau, phi.tau + phi.clip) if math.isfinite(k)]
    kinks += [-k for k in kinks]

    def integrand(z: float) -> float:
        size = min(max((abs(std * z) if phi.soft else std * z) - phi.tau, 0.0), phi.clip)
        return float(size**power * stats.norm.pdf(z))

    ends = sorted({-12.0, *kinks, 12.0})
    return float(sum(integrate.quad(integrand, a, b, epsabs=1e-13)[0] for a, b in pairwise(ends)))


def test_clipped_relu_in_fifty_digits() -> None:
    expect_exact(
        lambda x: clipped_relu(x, 0.75, 2.5),
        lambda x: min(max(x - 0.75, 0), 2.5),
        lambda x: 1.0 if 0.75 <= x <= 3.25 else 0.0,
    )


def test_clipped_soft_threshold_in_fifty_digits() -> None:
    expect_exact(
        lambda x: clipped_soft_threshold(x, 0.75, 2.5),
        lambda x: (1 if x > 0 else -1) * min(max(abs(x) - 0.75, 0), 2.5),
        lambda x: 1.0 if 0.75 < abs(x) <= 3.25 else 0.0,
    )


def test_without_a_clip_they_are_relu_and_soft_threshold() -> None:
    x = torch.linspace(-5, 5, 1001)
    assert torch.equal(ClippedReLU(0.0, math.inf)(x), x.relu())
    torch.testing.assert_close(ClippedSoftThreshold(1.5, math.inf)(x), nn.Softshrink(1.5)(x))
    assert repr(ClippedReLU(0.5, math.inf)) == "ClippedReLU(tau=0.5, m=inf)"


def test_thresholds_give_the_sparsity() -> None:
    assert threshold(0.85) == pytest.approx(1.03643, abs=5e-6)
    assert threshold(0.85, soft=True) == pytest.approx(1.43953, abs=5e-6)
    assert threshold(0.85, q=4.0) == pytest.approx(2 * threshold(0.85))
    assert threshold(0.5) == 0
    z = 1.5 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for soft in (False, True):
        zeros = (sparse(0.8, q=2.25, soft=soft)(z) == 0).float().mean()
        assert float(zeros) == pytest.approx(0.8, abs=0.004)


@each_shape
@pytest.mark.parametrize("q", [0.4, 1.0, 3.0])
def test_moments_equal_quadrature(phi: Thresholded, q: float) -> None:
    assert phi.square(q) == pytest.approx(expectation(phi, q, 2), rel=1e-9)
    inside = [stats.norm.cdf(k, scale=math.sqrt(q)) for k in (phi.tau, phi.tau + phi.clip)]
    assert phi.slope_square(q) == pytest.approx((2 if phi.soft else 1) * (inside[1] - inside[0]), rel=1e-9)
    step = 1e-5 * q  # d E[phi^2] / dq = E[phi'^2] + E[phi phi'']
    slope = (expectation(phi, q + step, 2) - expectation(phi, q - step, 2)) / (2 * step)
    assert phi.slope_square(q) + phi.bend(q) == pytest.approx(slope, rel=1e-5)


@each_shape
def test_the_edge_of_chaos_is_a_fixed_point(phi: Thresholded) -> None:
    for q in (0.5, 1.0):
        edge = EdgeOfChaos.at(phi, q)
        assert edge.variance(q) == pytest.approx(q, abs=1e-8)
        assert edge.chi(q) == pytest.approx(1, abs=1e-8)
        if math.isinf(phi.clip):
            assert edge.slope(q) == pytest.approx(1, abs=1e-12)


def test_relu_gives_he_and_a_threshold_bends_the_map_upwards() -> None:
    he = EdgeOfChaos.at(Thresholded(0.0))
    assert (he.sw2, he.sb2) == pytest.approx((2.0, 0.0), abs=1e-12)
    assert he.slope(5.0) == pytest.approx(1.0)
    shifted = maps(sparse(0.85, None))
    assert shifted.numbers["V''"] > 0.1
    assert "does not come back" in shifted.reading
    assert "comes back" in maps(sparse(0.85)).reading
    assert len(maps(sparse(0.85)).figure().axes) == 2  # type: ignore[misc]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("slope", [0.5, 0.7, 0.9])
def test_the_clip_gives_the_wanted_slope(slope: float, soft: bool) -> None:
    m = choose_clip(0.85, slope, soft=soft)
    edge = EdgeOfChaos.at(Thresholded(threshold(0.85, soft=soft), m, soft))
    step = 1e-5
    assert (edge.variance(1 + step) - edge.variance(1 - step)) / (2 * step) == pytest.approx(slope, rel=1e-6)
    assert choose_clip(0.85, slope, q=4.0, soft=soft) == pytest.approx(2 * m, rel=1e-9)


@each_shape
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.5, 0.95])
def test_the_correlation_map_equals_sampling(phi: Thresholded, rho: float) -> None:
    q, count = 1.3, 400_000
    edge = EdgeOfChaos.at(phi, 1.0)
    z = np.random.default_rng(0).standard_normal((2, count))
    z[1] = rho * z[0] + math.sqrt(1 - rho * rho) * z[1]
    product = np.prod(phi.values(math.sqrt(q) * z), axis=0)
    expected = (edge.sw2 * product.mean() + edge.sb2) / edge.variance(q)
    error = edge.sw2 * product.std() / math.sqrt(count) / edge.variance(q)
    assert abs(edge.correlation(rho, q) - expected) < 5 * error


@each_shape
def test_the_correlation_map_at_its_ends(phi: Thresholded) -> None:
    edge = EdgeOfChaos.at(phi)
    assert edge.correlation(1.0) == pytest.approx(1, abs=1e-9)
    mean = 0.0 if phi.soft else expectation(phi, 1.0, 1)
    assert edge.correlation(0.0) == pytest.approx(edge.sw2 * mean**2 + edge.sb2, abs=1e-9)
    slope = (1 - edge.correlation(1 - 1e-5)) / 1e-5  # chi = 1, up to a term of the order of the root
    assert slope == pytest.approx(1, abs=0.03)


def test_impossible_wishes_are_refused() -> None:
    for wish, sentence in (
        (lambda: threshold(0.4), "share of 0.5 to 1"),
        (lambda: threshold(1.0, soft=True), "share of 0 to 1"),
        (lambda: choose_clip(0.85, 1.0), "slope between 0 and 1; got 1.0"),
        (lambda: EdgeOfChaos.at(Thresholded(50.0)), "gets past a threshold of 50"),
        (lambda: ClippedReLU(-1.0), "tau=-1.0, m=1.0"),
        (lambda: ClippedSoftThreshold(1.0, 0.0), "tau=1.0, m=0.0"),
        (lambda: edge_of_chaos_(nn.Sequential(nn.Linear(2, 2))), "no clipped activation"),
        (lambda: edge_of_chaos_(nn.Sequential(sparse(0.8))), "no linear or convolution layer"),
    ):
        with pytest.raises(WorkingPapersError, match=sentence):
            wish()


@pytest.mark.parametrize("soft", [False, True])
def test_wide_nets_follow_the_map(soft: bool) -> None:
    activation = sparse(0.7, 0.9, soft=soft)
    edge = EdgeOfChaos.at(activation.theory)
    found = torch.stack([simulate(activation, depth=4, width=2000, q=1.0, seed=n) for n in range(3)]).mean(0)
    np.testing.assert_allclose(found.numpy(), np.ones(4), atol=0.12)
    # off the fixed point, two layers of the map itself
    generator = torch.Generator().manual_seed(0)
    h = math.sqrt(0.3) * torch.randn(2000, generator=generator)
    net = nn.Sequential(nn.Linear(2000, 2000), nn.Linear(2000, 2000))
    edge_of_chaos_(net, activation, input_moment=1e9, generator=generator)
    after = net[1](activation(h)).detach().square().mean().item()
    assert after == pytest.approx(edge.variance(0.3), rel=0.1)


def test_nets_start_with_unit_variance_and_the_sparsity() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 12, 12)
    perceptron = make_mlp(144, 10, lambda: sparse(0.85), depth=5, width=400)
    convolutional = make_cnn(1, 10, lambda: sparse(0.85), depth=4, width=60)
    for net in (perceptron, convolutional):
        h = x
        for module in net:
            h = module(h)
            if isinstance(module, ClippedReLU):
                assert (h == 0).float().mean().item() == pytest.approx(0.85, abs=0.05)
        assert h.shape == (8, 10)
    assert sum(isinstance(m, ClippedReLU) for m in perceptron) == 5


def test_a_soft_threshold_clipped_late_has_a_second_stable_point() -> None:
    edge = EdgeOfChaos.at(sparse(0.85, 0.9, soft=True).theory)
    excess = [edge.variance(q) - q for q in (1.1, 3.0, 6.0)]
    assert excess[0] < 0 < excess[1]
    assert excess[2] < 0

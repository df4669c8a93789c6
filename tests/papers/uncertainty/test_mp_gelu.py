"""MP-GELU: every formula in 50 digits, moments against integrals and draws, the bound against distributions."""

import math
from collections.abc import Callable

import pytest
import torch
from mpmath import erfc, mpf, pi, sqrt
from scipy.integrate import quad
from scipy.stats import norm
from tests.exact import exp, expect_exact
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.uncertainty import _moments
from workingpapers.papers.uncertainty._bayesian_runs import affine_draws, monte_carlo, wave
from workingpapers.papers.uncertainty._moments import Moments, divergence, expected_nll
from workingpapers.papers.uncertainty.mp_gelu import MPGELU, MPMLP, BayesLinear, convert
from workingpapers.surgery import changes

V = 2.25  # a variance, of standard deviation 1.5


def phi(x: mpf) -> mpf:
    return exp(-(x**2) / V / 2) / sqrt(2 * pi)


def high(x: mpf) -> mpf:
    return erfc(-x / mpf("1.5") / sqrt(2)) / 2


def low(x: mpf) -> mpf:
    return erfc(x / mpf("1.5") / sqrt(2)) / 2


def first(x: mpf) -> mpf:
    return x * high(x) + mpf("1.5") * phi(x)


S = mpf("1.5")
FORMULAS: dict[str, tuple[Callable[[mpf], mpf], Callable[[mpf], mpf]]] = {
    "gate": (high, lambda x: phi(x) / S),
    "masked_mean": (lambda x: x * high(x), lambda x: high(x) + x * phi(x) / S),
    "masked_variance": (
        lambda x: high(x) * (V + low(x) * x**2),
        lambda x: phi(x) / S * (V + (low(x) - high(x)) * x**2) + 2 * high(x) * low(x) * x,
    ),
    "relu_mean": (first, high),
    "relu_variance": (
        lambda x: (x**2 + V) * high(x) + x * S * phi(x) - first(x) ** 2,
        lambda x: 2 * first(x) * low(x),
    ),
}


@pytest.mark.parametrize("name", ["gate", "masked_mean", "masked_variance"])
def test_the_gate_and_what_follows_from_it_are_exact(name: str) -> None:
    formula = getattr(_moments, name)
    expect_exact(lambda x: formula(x, V), *FORMULAS[name], every=29)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mean", [-9.0, -3.0, -0.4, 0.0, 1.1, 5.0, 30.0])
@pytest.mark.parametrize("std", [0.1, 1.0, 2.5])
def test_exact_relu_moments_are_the_integrals(mean: float, std: float) -> None:
    def moment(power: int, centre: float = 0.0) -> float:
        zero = max(0.0, mean - 12 * std)
        inner = quad(
            lambda x: (x - centre) ** power * norm.pdf(x, mean, std), zero, max(zero, mean) + 12 * std
        )[0]
        return inner + (norm.cdf(-mean / std) * (0 - centre) ** power)

    x = Moments(torch.tensor([mean], dtype=torch.float64), torch.tensor([std**2], dtype=torch.float64))
    found = _moments.relu(x)
    expected = moment(1)
    assert float(found.mean) == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert float(found.var) == pytest.approx(moment(2, expected), rel=1e-6, abs=1e-12)


def test_relu_formulas_follow_by_autograd_in_single_precision() -> None:
    x = torch.linspace(-12, 12, 97, requires_grad=True)
    for name in ("relu_mean", "relu_variance"):
        exact, slope = FORMULAS[name]
        y = getattr(_moments, name)(x, V)
        (found,) = torch.autograd.grad(y.sum(), x)
        for points, true in ((y.detach(), exact), (found, slope)):
            expected = torch.tensor([float(true(mpf(float(v)))) for v in x.detach()])
            torch.testing.assert_close(points, expected, atol=3e-6, rtol=3e-6)


def drawn(x: Moments, draws: int = 400_000) -> Tensor:
    root = torch.linalg.cholesky(x.var)
    return x.mean + normal(draws, len(x.mean), seed=9) @ root.T


def correlated(size: int = 4) -> Moments:
    root = normal(size, size, seed=3)
    return Moments(normal(size, seed=4), root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64))


def test_masked_moments_are_those_of_an_independent_mask() -> None:
    x = correlated()
    p = torch.special.ndtr(x.mean / x.diagonal.sqrt())
    y = drawn(x)
    y = y * (torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype) < p)
    found = MPGELU()(x)
    torch.testing.assert_close(found.mean, y.mean(0), atol=8e-3, rtol=0)
    torch.testing.assert_close(found.var, y.T.cov(), atol=2e-2, rtol=0)
    torch.testing.assert_close(MPGELU()((x.mean, x.diagonal)).var, found.diagonal)


def test_scaled_moments_are_those_of_a_fixed_factor() -> None:
    x = correlated()
    p = torch.diag(torch.special.ndtr(x.mean / x.diagonal.sqrt()))
    found = MPGELU("scale")(x)
    torch.testing.assert_close(found.mean, p @ x.mean)
    torch.testing.assert_close(found.var, p @ x.var @ p)
    torch.testing.assert_close(MPGELU("scale")((x.mean, x.diagonal)).var, found.diagonal)


def test_relu_covariances_are_those_of_draws() -> None:
    x = correlated()
    y = drawn(x).clamp_min(0)
    found = MPGELU("relu")(x)
    torch.testing.assert_close(found.mean, y.mean(0), atol=6e-3, rtol=0)
    torch.testing.assert_close(found.var, y.T.cov(), atol=1.5e-2, rtol=0)


def test_relu_covariances_of_zero_means_are_the_arc_cosine_kernel() -> None:
    rho = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64)
    one = torch.ones_like(rho)
    var = torch.stack([torch.stack([one, rho]), torch.stack([rho, one])]).permute(2, 0, 1)
    found = MPGELU("relu")((torch.zeros(9, 2, dtype=torch.float64), var)).var[:, 0, 1]
    expected = ((1 - rho**2).sqrt() + rho * (math.pi - rho.arccos()) - 1) / (2 * math.pi)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_taylor_moments_come_from_the_derivatives_of_gelu() -> None:
    x = correlated()
    m = x.mean.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(m).sum(), m, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), m)
    slope = slope.detach()
    found = MPGELU("gelu_taylor")(x)
    torch.testing.assert_close(found.mean, F.gelu(x.mean) + bend * x.diagonal / 2)
    expected = slope.outer(slope) * x.var + bend.outer(bend) * x.var**2 / 2
    torch.testing.assert_close(found.var, expected)
    torch.testing.assert_close(MPGELU("gelu_taylor")((x.mean, x.diagonal)).var, expected.diagonal())


def test_without_variance_it_is_relu_and_at_a_zero_mean_half_the_variance() -> None:
    x = torch.tensor([-2.0, -0.1, 0.1, 3.0], dtype=torch.float64)
    for mode in ("mask", "scale", "relu"):
        mean, var = MPGELU(mode)(x)
        torch.testing.assert_close(mean, x.clamp_min(0))
        torch.testing.assert_close(var, torch.zeros_like(x))
    v = torch.tensor([0.3, 2.0])
    mean, var = MPGELU()((torch.zeros(2), v))
    torch.testing.assert_close(mean, torch.zeros(2))
    torch.testing.assert_close(var, v / 2)


def test_gradients_are_finite_at_every_extreme() -> None:
    mean = torch.tensor([0.0, 1e-30, -1e4, 1e4, 1e18, -1e18, 1.0]).repeat(4).requires_grad_()
    var = torch.tensor([0.0, 1e-20, 1.0, 1e8]).repeat_interleave(7).requires_grad_()
    for mode in ("mask", "scale", "relu"):
        out = MPGELU(mode)((mean, var))
        grads = torch.autograd.grad(out.mean.sum() + out.var.sum(), (mean, var))
        assert all(bool(t.isfinite().all()) for t in (*out, *grads)), mode


@pytest.mark.parametrize("full", [False, True])
def test_a_bayesian_layer_gives_the_moments_of_draws(full: bool) -> None:
    torch.manual_seed(0)
    layer, x = BayesLinear(4, 3, std=0.3).double(), correlated()
    if not full:
        x = Moments(x.mean, x.diagonal)
    z = drawn(Moments(x.mean, x.var if full else torch.diag(x.var)))
    generator = torch.Generator().manual_seed(2)
    weight = layer.weight + 0.3 * torch.randn(len(z), 3, 4, generator=generator, dtype=z.dtype)
    bias = layer.bias + 0.3 * torch.randn(len(z), 3, generator=generator, dtype=z.dtype)
    y = ((weight @ z.unsqueeze(-1)).squeeze(-1) + bias).detach()
    mean, var = (t.detach() for t in layer(x))
    torch.testing.assert_close(mean, y.mean(0), atol=1e-2, rtol=0)
    expected = y.T.cov() if full else y.var(0)
    torch.testing.assert_close(var, expected, atol=float(0.01 * y.var(0).max()), rtol=0)
    short = affine_draws(layer, z, generator).detach()
    torch.testing.assert_close(short.T.cov(), y.T.cov(), atol=float(0.02 * y.var(0).max()), rtol=0)


def test_the_expected_likelihood_is_that_of_correlated_draws() -> None:
    pair = Moments(torch.tensor([0.4, -0.7]).double(), torch.tensor([[0.8, 0.3], [0.3, 0.5]]).double())
    f, level = drawn(pair, 1_000_000).T
    y = torch.tensor(1.3, dtype=torch.float64)
    losses = 0.5 * (math.log(2 * math.pi) + level + (-level).exp() * (y - f) ** 2)
    found = expected_nll(y, (pair.mean[0], pair.var[0, 0]), (pair.mean[1], pair.var[1, 1]), pair.var[0, 1])
    assert float(found) == pytest.approx(float(losses.mean()), rel=0.01)


def test_the_divergence_is_that_of_normals_and_the_fitted_prior_makes_it_least() -> None:
    m, log_s = normal(20), 0.3 * normal(20, seed=1) - 1
    prior = Normal(torch.zeros(20).double(), torch.full((20,), 0.7).double())
    expected = kl_divergence(Normal(m, log_s.exp()), prior).sum()
    torch.testing.assert_close(divergence(m, log_s, 0.7), expected)
    least = divergence(m, log_s, None)
    best = float((m**2 + (2 * log_s).exp()).mean().sqrt())
    torch.testing.assert_close(least, divergence(m, log_s, best))
    assert all(float(divergence(m, log_s, best * c)) > float(least) for c in (0.9, 1.1))


@pytest.mark.parametrize("noise", ["learned", "heteroscedastic"])
@pytest.mark.parametrize("full", [False, True])
def test_the_bound_adds_likelihood_and_divergence(noise: str, full: bool) -> None:
    torch.manual_seed(0)
    net = MPMLP((3, 5, 2), full_cov=full, noise=noise, std=0.2).double()
    x, y = normal(7, 3), normal(7, 2, seed=1)
    out = net.moments(x)
    mean, var = net(x)
    assert (mean.shape, out.mean.shape[-1]) == ((7, 2), 2 if noise == "learned" else 4)
    if noise == "learned":
        net.log_noise.data.fill_(-0.5)
        level, spread, cov = net.log_noise, torch.zeros_like(y), torch.zeros_like(y)
        noisy = var + math.exp(-0.5)
    else:
        level, spread = out.mean[:, 2:], out.diagonal[:, 2:]
        cov = torch.stack([out.var[:, i, 2 + i] for i in range(2)], 1) if full else torch.zeros_like(y)
        noisy = var + (level + spread / 2).exp()
    expected = expected_nll(y, (mean, var), (level, spread), cov).sum(1).mean()
    for layer in (net.layers[0], net.layers[2]):
        expected = expected + divergence(layer.weight, layer.weight_log_std, 1.0) / 50
        expected = expected + divergence(layer.bias, layer.bias_log_std, 1.0) / 50
    torch.testing.assert_close(net.loss(x, y, 50), expected)
    torch.testing.assert_close(net.predict(x)[1], noisy)


def test_propagated_covariances_agree_with_draws_through_the_whole_network() -> None:
    torch.manual_seed(0)
    mean, var = monte_carlo(MPMLP((10, 8, 8, 2), std=0.1), True, 100_000, 0)
    assert mean < 0.02
    assert var < 0.06


def test_a_certain_network_is_the_relu_network_that_it_was() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 2)).double()
    net, x = convert(plain, std=1e-9), normal(4, 2, 3)
    mean, var = net(x)
    torch.testing.assert_close(mean, plain.eval()(x))
    assert float(var.detach().max()) < 1e-12
    assert changes(net) == ["Its 4 layers pass means and variances on."]


def test_the_wave_is_noisier_where_it_is_told_to_be() -> None:
    split = wave(0, 20_000, 10)
    x, y = split.x_train, split.y_train * split.y_std + split.y_mean
    outer, inner = x.abs() > 0.9, x.abs() < 0.1
    assert float((y - torch.sin(3 * x))[outer].std()) == pytest.approx(0.95, abs=0.05)
    assert float((y - torch.sin(3 * x))[inner].std()) == pytest.approx(0.058, abs=0.01)


def test_wrong_words_and_shapes_are_answered() -> None:
    with pytest.raises(WorkingPapersError, match="no mode of MP-GELU is named 'masc'; the nearest name"):
        MPGELU("masc")
    with pytest.raises(WorkingPapersError, match="no noise is named 'fixed'"):
        MPMLP((2, 1), noise="fixed")
    with pytest.raises(WorkingPapersError, match=r"an input and an output size; got \[3\]"):
        MPMLP((3,))
    with pytest.raises(WorkingPapersError, match=r"the means' shape \(2, 3\), .* got \(2, 4\)"):
        MPGELU()((torch.zeros(2, 3), torch.zeros(2, 4)))
    with pytest.raises(WorkingPapersError, match="module '0' is a Tanh, which passes no moments on"):
        convert(nn.Sequential(nn.Tanh()))
    with pytest.raises(WorkingPapersError, match="only an nn.Sequential can be converted; got a Linear"):
        convert(nn.Linear(2, 2))


def test_the_claims_are_those_of_the_record() -> None:
    assert {c.says for c in claims("mp_gelu").values()} == {c["says"] for c in record("mp_gelu").claims}
    assert record("mp_gelu").fidelity == "reconstructed"
    assert isinstance(make("mp_gelu.linear", 2, 3), BayesLinear)

"""The tangent kernel: layers in its parametrisation, exact kernels, gradient flow against its equations."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from workingpapers.engines.limits import empirical_ntk
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._kernel_regression import NTKRegression, fitted_rate
from workingpapers.papers.theory.ntk import (
    NTKMLP,
    NTKLinear,
    alignment,
    analytic_ntk,
    descend,
    linearise,
    ntk,
    targets_of,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(n: int) -> torch.Tensor:
    root = drawn(n, n, seed=9)
    return root @ root.T / n + 0.1 * torch.eye(n)


def test_layers_are_in_the_ntk_parametrisation() -> None:
    torch.manual_seed(0)
    layer, x = NTKLinear(300, 200), torch.randn(4, 300)
    wanted = x @ layer.weight.T / math.sqrt(300) + 0.1 * layer.bias
    torch.testing.assert_close(layer(x), wanted)
    assert float(layer.weight.std().detach()) == pytest.approx(1, abs=0.02)
    assert float(layer.bias.std().detach()) == pytest.approx(1, abs=0.15)
    with pytest.raises(WorkingPapersError, match="at least two sizes"):
        NTKMLP([3])


def test_the_kernel_of_relu_adds_one_share_a_layer() -> None:
    x = drawn(5, 6)
    first, _ = analytic_ntk(x, depth=1)
    torch.testing.assert_close(first, 2 / 6 * x @ x.T)
    for depth in (2, 5):
        nngp, tangent = analytic_ntk(x, depth=depth)
        torch.testing.assert_close(nngp.diag(), first.diag())
        torch.testing.assert_close(tangent.diag(), depth * first.diag(), rtol=1e-6, atol=0)


def test_two_linear_layers_have_on_average_twice_the_input_kernel() -> None:
    torch.manual_seed(0)
    x, draws = drawn(3, 4), 3000
    total = torch.zeros(3, 3).double()
    for _ in range(draws):
        total += empirical_ntk(
            NTKMLP([4, 5, 1], nn.Identity, sigma_w=1.0),
            x,
            dtype=torch.float64,
            names=["1.weight", "3.weight"],
        )
    wanted = 2 * x @ x.T / 4
    assert float((total / draws - wanted).norm() / wanted.norm()) < 0.04
    _, limit = analytic_ntk(x, depth=2, phi="identity", sigma_w=1.0)
    torch.testing.assert_close(limit, wanted)


def test_a_wide_network_has_the_kernel_with_biases_too() -> None:
    torch.manual_seed(0)
    x = drawn(4, 5)
    _, limit = analytic_ntk(x, sigma_w=1.0, sigma_b=0.5)
    nets = [NTKMLP([5, 500, 500, 1], sigma_w=1.0, sigma_b=0.5) for _ in range(6)]
    mean = torch.stack([empirical_ntk(net, x, dtype=torch.float64) for net in nets]).mean(0)
    assert float((mean - limit).norm() / limit.norm()) < 0.05


def test_the_linearised_network_is_the_network_with_its_gradient_at_the_start() -> None:
    torch.manual_seed(0)
    model, x = NTKMLP([3, 6, 2]).double(), drawn(4, 3)
    function = linearise(model)
    zero = {n: torch.zeros_like(p, requires_grad=True) for n, p in model.named_parameters()}
    torch.testing.assert_close(function(zero, x), model(x))
    own = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    linear = torch.autograd.grad(function(zero, x).square().sum(), list(zero.values()))
    for a, b in zip(own, linear, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_gradient_flow_is_the_solution_of_its_equation(ridge: float) -> None:
    whole, y, start = positive(8), drawn(6, 2), drawn(8, 2, seed=1)
    kernel, cross, lr = whole[:6, :6], whole[6:, :6], 0.7
    fit = NTKRegression(kernel, y, start[:6], ridge)

    def flow(_: float, flat):  # alpha with f = f_0 + Theta alpha
        alpha = torch.from_numpy(flat).view(6, 2)
        return (lr * (y - start[:6] - kernel @ alpha - ridge * alpha)).flatten().numpy()

    for time in (0.5, 3.0):
        alpha = solve_ivp(flow, (0, time), torch.zeros(12).double().numpy(), rtol=1e-10, atol=1e-12).y[:, -1]
        alpha = torch.from_numpy(alpha).view(6, 2)
        torch.testing.assert_close(
            fit.predict(cross, time, lr, start[6:]), start[6:] + cross @ alpha, rtol=1e-6, atol=1e-8
        )
        modes = fit.modes([time], lr)[0]
        torch.testing.assert_close(fit.vectors @ modes, y - start[:6] - kernel @ alpha, rtol=1e-6, atol=1e-8)
    end = start[6:] + cross @ torch.linalg.solve(kernel + ridge * torch.eye(6), y - start[:6])
    torch.testing.assert_close(fit.predict(cross, start=start[6:]), end)
    torch.testing.assert_close(fit.predict(cross, 1e6, lr, start[6:]), end)


def test_each_component_decays_at_its_own_rate_and_early_stopping_finds_the_best_time() -> None:
    fit = NTKRegression(positive(5), drawn(5))
    one, two = fit.modes([1.0, 3.0], lr=0.2)
    torch.testing.assert_close(two / one, torch.exp(-0.4 * fit.values)[:, None])
    assert bool((fit.values[:-1] >= fit.values[1:]).all())
    # signal along the first component, noise along the last: stop between them
    kernel = torch.diag(torch.tensor([10.0, 0.1]).double())
    noisy = NTKRegression(kernel, torch.tensor([1.0, 1.0]).double())
    time, errors = noisy.early_stopping(kernel, torch.tensor([1.0, 0.0]).double(), [0.0, 0.5, 1000.0])
    assert time == 0.5
    assert errors == pytest.approx([0.5, (math.exp(-10) + (1 - math.exp(-0.05)) ** 2) / 2, 0.5])


def test_the_posterior_is_that_of_a_gaussian_process() -> None:
    whole, y = positive(7), drawn(5)
    fit = NTKRegression(whole[:5, :5], y)
    mean, variance = fit.posterior(whole[5:, :5], whole.diag()[5:], 0.2)
    inverse = torch.linalg.inv(whole[:5, :5] + 0.2 * torch.eye(5))
    torch.testing.assert_close(mean, whole[5:, :5] @ inverse @ y)
    torch.testing.assert_close(variance, (whole[5:, 5:] - whole[5:, :5] @ inverse @ whole[:5, 5:]).diag())


def test_descent_in_small_steps_follows_the_linear_equation_of_a_linear_model() -> None:
    torch.manual_seed(0)
    model, x, y = NTKMLP([4, 1], sigma_w=1.0, sigma_b=0.3).double(), drawn(6, 4), drawn(6, seed=2)
    kernel, start = empirical_ntk(model, x), model(x)[:, 0].detach()
    torch.testing.assert_close(kernel, x @ x.T / 4 + 0.09)
    path = descend(model, x, y, 1e-4, 1000)
    fit = NTKRegression(kernel, y, start)
    torch.testing.assert_close(path[0], start)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x)[:, 0], fit.predict(kernel, 1000, 1e-4, start), rtol=1e-3, atol=1e-4
        )
    rate = fitted_rate((y - path) @ fit.vectors[:, 0])
    assert rate == pytest.approx(1e-4 * float(fit.values[0]), rel=1e-3)


def test_rates_are_fitted_down_to_the_floor() -> None:
    t = torch.arange(100).double()
    clean = 3 * torch.exp(-0.05 * t)
    assert fitted_rate(clean) == pytest.approx(0.05)
    assert fitted_rate(torch.where(t < 40, clean, clean[40])) == pytest.approx(0.05, rel=1e-3)


def test_findings_of_known_kernels() -> None:
    y = torch.arange(12) % 3
    targets = targets_of(y)
    torch.testing.assert_close(targets.sum(1), torch.zeros(12).double())
    assert targets_of(torch.ones(4)).shape == (4, 1)
    assert alignment(targets @ targets.T, targets) == pytest.approx(1)
    assert abs(alignment(torch.ones(12, 12), targets)) < 1e-9

    # a linear model of orthogonal inputs: the kernel is |x_i|^2 on the diagonal
    sizes = torch.tensor([4.0, 2.0, 1.0])
    found = ntk(nn.Linear(3, 1, bias=False), torch.diag(sizes), torch.tensor([0.0, 0.0, 1.0])).numbers
    assert found["trace"] == pytest.approx(21 / 3)
    assert found["top"] == pytest.approx(16 / 3)
    assert found["stable_lr"] == pytest.approx(6 / 16)
    assert found["effective_rank"] == pytest.approx(21**2 / (256 + 16 + 1))
    assert found["condition"] == pytest.approx(4)
    assert found["slowdown"] == pytest.approx(16)
    with pytest.raises(WorkingPapersError, match="two or more inputs"):
        ntk(nn.Linear(3, 1), torch.ones(1, 3), torch.ones(1))
    with pytest.raises(WorkingPapersError, match="kernel is zero"):
        ntk(nn.Linear(3, 1, bias=False), torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(WorkingPapersError, match=r"kernel \(4, 4\)"):
        NTKRegression(torch.eye(3), torch.ones(4))


def test_the_stable_rate_is_where_a_linear_models_descent_diverges() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randn(8)
    limit = ntk(nn.Linear(3, 1), x, y).numbers["stable_lr"] / 8  # of the sum, not the mean
    for factor, stable in ((0.98, True), (1.02, False)):
        path = descend(nn.Linear(3, 1), x, y, limit * factor, 3000)
        assert bool((path[-1].abs() < 100).all()) == stable


def test_a_sketch_is_near_the_kernel() -> None:
    torch.manual_seed(0)
    model, x, y = NTKMLP([4, 64, 2]), torch.randn(10, 4), torch.arange(10) % 2
    whole, part = ntk(model, x, y).numbers, ntk(model, x, y, sketch=600).numbers
    assert part["top"] == pytest.approx(whole["top"], rel=0.2)
    assert part["trace"] == pytest.approx(whole["trace"], rel=0.2)

"""Snake against its definition, its symmetries and quadrature; rays, the bench and the initialisation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import nn

from workingpapers.catalog import make
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.snake import (
    Snake,
    along_ray,
    carbon_dioxide,
    extrapolation_bench,
    snake,
    snake_gain,
    snake_init_,
    snake_moments,
)
from workingpapers.tasks import initialise, mlp

X = torch.linspace(-8, 8, 641, dtype=torch.float64)


@pytest.mark.parametrize("a", [0.1, 1.0, 5.0, 50.0])
def test_equals_both_forms_of_the_definition(a: float) -> None:
    x = X.numpy()
    np.testing.assert_allclose(snake(X, a).numpy(), x + np.sin(a * x) ** 2 / a, rtol=0, atol=1e-14)
    np.testing.assert_allclose(snake(X, a).numpy(), x + (1 - np.cos(2 * a * x)) / (2 * a), rtol=0, atol=1e-14)


def test_small_frequencies_go_over_into_the_identity() -> None:
    assert torch.equal(snake(X, 0.0), X)
    for a in (1e-3, 1e-6, 1e-12):
        z2 = (a * X).square()
        series = X + a * X**2 * (1 - z2 / 3 + 2 * z2**2 / 45)
        torch.testing.assert_close(snake(X, a), series, rtol=1e-15, atol=1e-15)
    assert torch.equal(Snake(0.0)(X), X)


@pytest.mark.parametrize("a", [0.3, 1.0, 7.0])
def test_derivatives(a: float) -> None:
    x, frequency = X.clone().requires_grad_(), torch.full_like(X, a).requires_grad_()
    by_x, by_a = torch.autograd.grad(snake(x, frequency).sum(), (x, frequency))
    torch.testing.assert_close(by_x, 1 + torch.sin(2 * a * X), rtol=0, atol=1e-12)
    expected = X * torch.sin(2 * a * X) / a - torch.sin(a * X).square() / a**2
    torch.testing.assert_close(by_a, expected, rtol=1e-9, atol=1e-10)
    assert float(by_x[320]) == pytest.approx(1.0, abs=1e-12)  # at 0
    assert float(by_x.min()) >= -1e-12


def test_derivative_by_the_frequency_at_zero_is_the_square() -> None:
    a = torch.zeros_like(X).requires_grad_()
    (by_a,) = torch.autograd.grad(snake(X, a).sum(), a)
    torch.testing.assert_close(by_a, X.square())


@pytest.mark.parametrize("a", [0.7, 3.0])
def test_moves_along_its_diagonal_by_a_period(a: float) -> None:
    torch.testing.assert_close(snake(X + math.pi / a, a), snake(X, a) + math.pi / a, rtol=0, atol=1e-13)


def test_relatives_are_moved_snakes() -> None:
    half_pi = math.pi / 2
    torch.testing.assert_close(make("snake.x_plus_sin")(X), snake(X + half_pi, 0.5) - 1 - half_pi)
    torch.testing.assert_close(make("snake.x_plus_cos")(X), snake(X + math.pi, 0.5) - 1 - math.pi)
    torch.testing.assert_close(make("snake.sin")(X), torch.sin(X))


def test_a_learned_per_channel_stays_positive_and_in_its_channel() -> None:
    module = Snake(2.0, trainable=True, channels=3)
    assert module.log_a.exp().tolist() == pytest.approx([2.0, 2.0, 2.0])
    with torch.no_grad():
        module.log_a.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    for shape in ((4, 3), (4, 3, 5), (2, 3, 5, 6)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for channel, log_a in enumerate((-1.0, 0.0, 2.0)):
            torch.testing.assert_close(module(x)[:, channel], snake(x[:, channel], math.exp(log_a)))
    assert Snake(0.5, trainable=True).a.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "options", [{"a": -1.0}, {"a": 0.0, "trainable": True}, {"a": math.nan}, {"a": math.inf}]
)
def test_frequencies_that_are_none(options: dict[str, float]) -> None:
    with pytest.raises(WorkingPapersError, match="Snake takes a frequency a > 0"):
        Snake(**options)
    with pytest.raises(WorkingPapersError, match="a fixed a is the same in all channels; got channels=3"):
        Snake(channels=3)


@pytest.mark.parametrize("a", [0.2, 1.0, 3.0])
def test_moments_by_quadrature(a: float) -> None:
    def moment(k: int) -> float:
        def integrand(z: float) -> float:
            return (z + math.sin(a * z) ** 2 / a) ** k * stats.norm.pdf(z)

        return integrate.quad(integrand, -12, 12, limit=300, epsabs=1e-12)[0]

    mean, variance = snake_moments(a)
    assert mean == pytest.approx(moment(1), abs=1e-9)
    assert variance == pytest.approx(moment(2) - moment(1) ** 2, abs=1e-9)
    assert snake_gain(a) == pytest.approx(moment(2) ** -0.5, abs=1e-9)


def test_moments_of_the_paper() -> None:
    assert snake_moments(1.0)[1] == pytest.approx(1 + (1 + math.exp(-8) - 2 * math.exp(-4)) / 8, rel=1e-12)
    assert snake_moments(1.0)[1] == pytest.approx(1.12046, abs=5e-6)
    found = optimize.minimize_scalar(lambda a: -snake_moments(a)[1], (0.3, 0.9))
    assert found.x == pytest.approx(0.56045, abs=1e-4)
    assert snake_moments(0.0) == (0.0, 1.0)
    assert snake_moments(1e-9) == pytest.approx((1e-9, 1.0))


def test_initialisation_follows_the_snake_before_each_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 200, 3), Snake(5.0), nn.Conv2d(200, 100, 3), nn.ReLU(), nn.Linear(300, 200)
    )
    assert snake_init_(model, torch.Generator().manual_seed(0)) is model
    moment = snake_gain(5.0) ** -2
    for layer, variance in ((model[0], 1 / 27), (model[2], 1 / 1800 / moment), (model[4], 1 / 300 / moment)):
        assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.06)
        assert not layer.bias.any()
    again = [p.detach().clone() for p in snake_init_(model, torch.Generator().manual_seed(0)).parameters()]
    snake_init_(model, torch.Generator().manual_seed(1))
    assert not torch.equal(again[0], model[0].weight)


def test_far_out_relu_nets_are_affine_and_tanh_nets_constant() -> None:
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)
    far = torch.linspace(1e4, 1e4 + 20, 50, dtype=torch.float64)
    found = {
        name: along_ray(initialise(lambda a=a: mlp([2, 32, 32, 1], a), 0).double(), direction, far)
        for name, a in {"relu": nn.ReLU, "tanh": nn.Tanh, "snake": Snake}.items()
    }
    assert found["relu"]["from_affine"] < 1e-9 < 1e-2 < found["relu"]["from_constant"]
    assert found["tanh"]["from_constant"] < 1e-9
    assert found["snake"]["from_affine"] > 1e-2
    near = torch.linspace(0, 20, 50, dtype=torch.float64)
    assert (
        along_ray(initialise(lambda: mlp([2, 32, 32, 1]), 0).double(), direction, near)["from_affine"] > 1e-2
    )


def test_ray_measures_distances() -> None:
    square = along_ray(_Square(), torch.tensor([2.0]), torch.tensor([1.0, 2.0, 3.0]))  # values 4, 16, 36
    assert square == pytest.approx({"from_constant": 36 - 56 / 3, "from_affine": 4.0})


class _Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square()


class _Nothing(nn.Module):
    """Says 0 whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * self.weight * x


def test_bench_fits_the_left_and_measures_the_right_in_the_units_of_y() -> None:
    x = torch.arange(20.0)[:, None]
    y = 300 + x.square()
    found = extrapolation_bench(_Nothing, x, y, 10.0, steps=1)
    mean = float(y[:10].mean())  # what 0 means once y is standardised by the left part
    expected = [float((part - mean).square().mean().sqrt()) for part in (y[:10], y[10:])]
    assert [found["inside"], found["outside"]] == pytest.approx(expected, rel=1e-5)
    line = extrapolation_bench(lambda: nn.Linear(1, 1), x / 10, 300 - 50 * x, 1.0, steps=300, lr=0.1)
    assert max(line.values()) < 0.5
    with pytest.raises(WorkingPapersError, match="the cut 20 leaves no points on one side"):
        extrapolation_bench(_Nothing, x, y, 20.0)


def test_carbon_dioxide_is_the_series_of_mauna_loa() -> None:
    years, ppm = carbon_dioxide()
    assert years.shape == ppm.shape == (526, 1)
    assert years[0].item() == pytest.approx(1958 + 2.5 / 12)
    assert years[-1].item() == pytest.approx(2001 + 11.5 / 12)
    assert bool(ppm.isfinite().all())
    by_year = ppm[10:].view(43, 12)  # from January 1959
    assert bool((by_year.mean(1).diff() > 0).all())
    assert set(by_year.argmax(1).tolist()) <= {3, 4, 5}  # highest in late spring

"""APTx against 50 digits, its derivative in closed form, Swish, ReLU and Mish; operations counted."""

from functools import partial

import mpmath
import pytest
import torch
from mpmath import mpf
from tests.exact import exp, expect_exact
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.aptx import APTx, aptx, aptx_mish, naive_mish, op_count

GRID = torch.linspace(-30, 30, 2001, dtype=torch.float64)


def slope(function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def gate(x: mpf, rate: float) -> tuple[mpf, mpf]:
    """Return 1 / (1 + exp(-rate x)) and x times its slope."""
    e = exp(-rate * abs(x))
    return (1 if x > 0 else e) / (1 + e), rate * x * e / (1 + e) ** 2


def test_equals_fifty_digits() -> None:
    expect_exact(aptx, lambda x: x * gate(x, 2)[0], lambda x: sum(gate(x, 2)), every=3)


def test_approximation_of_mish_equals_fifty_digits() -> None:
    def half(x: mpf) -> tuple[mpf, mpf]:
        return gate(x, 1 if x < 0 else 2)

    expect_exact(aptx_mish, lambda x: x * half(x)[0], lambda x: sum(half(x)), every=7)


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(1.0, 1.0, 0.5), (0.7, 2.0, 0.3), (1.4, 0.25, 1.0)])
def test_definition_and_derivative_by_the_tangent(alpha: float, beta: float, gamma: float) -> None:
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    tangent = torch.tanh(beta * x)
    function = partial(aptx, alpha=alpha, beta=beta, gamma=gamma)
    torch.testing.assert_close(function(x), (alpha + tangent) * gamma * x, rtol=0, atol=1e-14)
    derivative = gamma * (alpha + tangent + beta * x * (1 - tangent.square()))
    torch.testing.assert_close(slope(function, x), derivative, rtol=0, atol=1e-14)


def test_slopes_by_the_three_parameters() -> None:
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.9, 1.3, 0.4)]
    found = torch.autograd.grad(aptx(x, *values).sum(), values)
    tangent = torch.tanh(1.3 * x)
    expected = (0.4 * x, 0.4 * x * x * (1 - tangent.square()), x * (0.9 + tangent))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.sum())


def test_is_swish_at_its_constants_and_relu_in_the_limit() -> None:
    torch.testing.assert_close(aptx(GRID, beta=0.5), F.silu(GRID), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(aptx(GRID), GRID * torch.sigmoid(2 * GRID), rtol=1e-12, atol=1e-300)
    single = GRID.float()
    torch.testing.assert_close(aptx(single, beta=0.5), F.silu(single), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(aptx(GRID, beta=1e6), torch.relu(GRID), rtol=0, atol=1e-12)


def test_value_and_slope_at_zero() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert (aptx(zero).item(), slope(aptx, zero).item()) == (0, 0.5)
    assert (aptx_mish(zero).item(), slope(aptx_mish, zero).item()) == (0, 0.5)


def test_distances_from_mish_on_the_middle() -> None:
    def distance(beta: float, x: float) -> float:
        mish = x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))
        return abs(float((1 + mpmath.tanh(beta * x)) * x / 2 - mish))

    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    expected = [distance(0.5 if v < 0 else 1.0, v) for v in x.tolist()]
    gap = (make("aptx.mish")(x) - F.mish(x)).abs()
    torch.testing.assert_close(gap, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert max(expected) == pytest.approx(0.0359, abs=1e-4)
    assert sum(expected) / len(expected) == pytest.approx(0.0109, abs=1e-4)
    assert max(distance(1.0, v) for v in x.tolist()) == pytest.approx(0.228, abs=1e-3)


def test_channels_have_parameters_of_their_own() -> None:
    module = APTx(trainable=True, channels=3)
    with torch.no_grad():
        module.beta.copy_(torch.tensor([0.5, 1.0, 2.0]))
        module.gamma[2] = 0.25
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = [
        F.silu(x[:, 0]),
        x[:, 1] * torch.sigmoid(2 * x[:, 1]),
        0.5 * x[:, 2] * torch.sigmoid(4 * x[:, 2]),
    ]
    torch.testing.assert_close(module(x), torch.stack(expected, dim=1))
    assert len(list(APTx(trainable=True).parameters())) == 3
    assert not list(APTx().parameters())
    with pytest.raises(
        WorkingPapersError, match="^fixed parameters are the same in all channels; got channels=3$"
    ):
        APTx(channels=3)


def test_operations_counted_by_what_runs() -> None:
    assert op_count(aptx) == {"forward": 1, "backward": 0}
    assert op_count(aptx_mish) == {"forward": 1, "backward": 0}
    assert op_count(naive_mish) == {"forward": 3, "backward": 1}
    assert op_count(nn.Mish())["forward"] == 3
    assert op_count(torch.relu) == {"forward": 0, "backward": 0}


def test_naive_mish_is_mish() -> None:
    torch.testing.assert_close(naive_mish(GRID), F.mish(GRID), rtol=1e-9, atol=1e-300)

"""VeLU against 50 digits and an independent reading of the authors' formula; its penalty counted by hand."""

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from tests.exact import exp, expect_exact
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.activations.velu import (
    VeLU,
    channel_gain,
    output_deviation,
    velu,
    w2_to_normal,
    with_penalties,
)


def reference(
    x: np.ndarray, alpha: float, beta1: float, beta2: float, gain: np.ndarray | float
) -> np.ndarray:
    angle = np.arctan(beta1 * x) + np.arcsin(np.clip(beta2 * x, -1, 1))
    return gain * x / (1 + np.exp(-alpha * angle))


def parts(x: mpf) -> tuple[mpf, mpf]:
    """Return the sigmoid and its slope for alpha = beta2 = 1/2, beta1 = 1."""
    t = min(max(x / 2, mpf(-1)), mpf(1))
    gate = 1 / (1 + exp(-(mpmath.atan(x) + mpmath.asin(t)) / 2))
    steep = 1 / (1 + x * x) + (1 / (2 * mpmath.sqrt((1 - t) * (1 + t))) if abs(t) < 1 else 0)
    return gate, steep * gate * (1 - gate) / 2


def test_equals_fifty_digits() -> None:
    expect_exact(
        partial(velu, scale=1.5, alpha=0.5, beta1=1.0, beta2=0.5),
        lambda x: 3 * x * parts(x)[0] / 2,
        lambda x: 3 * (parts(x)[0] + x * parts(x)[1]) / 2,
        every=13,
    )


def test_slopes_are_finite_where_those_of_arcsine_are_not() -> None:
    x = torch.tensor([-10.0, -9.999999, 9.999999, 10.0, 10.000001], requires_grad=True)
    (slope,) = torch.autograd.grad(velu(x).sum(), x)
    assert slope.isfinite().all()
    gate, reach = 1 / (1 + math.exp(-0.1 * (math.pi / 4 + math.pi / 2))), 0.1 * 0.1 / 2
    assert float(slope[3]) == pytest.approx(gate + 10 * gate * (1 - gate) * reach, rel=1e-5)


@pytest.mark.parametrize("spread", ["reciprocal", "deviation"])
def test_module_is_the_formula_with_the_spread_of_the_channels(spread: str) -> None:
    x = 3 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = VeLU(alpha=0.8, beta1=0.6, beta2=0.4, gamma=0.7, mu=0.3, spread=spread).double()
    with torch.no_grad():
        module.scale.fill_(1.7)
    square = (x.numpy() ** 2).mean(1, keepdims=True)
    s = (
        1 / np.sqrt(square + 1e-6)
        if spread == "reciprocal"
        else np.sqrt(x.numpy().var(1, keepdims=True) + 1e-6)
    )
    expected = 1.7 * reference(x.numpy(), 0.8, 0.6, 0.4, 1 + 0.7 * np.tanh(0.3 * s))
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12)


def test_defaults_are_those_of_the_authors_code() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gain = 1 + 0.1 * np.tanh(0.9 / np.sqrt((x.numpy() ** 2).mean(1, keepdims=True) + 1e-6))
    np.testing.assert_allclose(
        VeLU().double()(x).detach().numpy(), reference(x.numpy(), 0.1, 0.1, 0.1, gain), rtol=1e-12
    )
    assert VeLU().penalty == 0.1


def test_gain_counted_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = channel_gain(x, 0.5, 2.0).item(), channel_gain(x, 0.5, 2.0, "deviation").item()
    expected = 1 + 0.5 * math.tanh(2 / math.sqrt(12.5)), 1 + 0.5 * math.tanh(2 * 0.5)
    assert found == pytest.approx(expected, rel=1e-5)
    assert channel_gain(torch.zeros(1, 3), 0.1, 0.9).item() == pytest.approx(1.1)
    half = channel_gain(torch.full((1, 4), 3e4, dtype=torch.float16), 0.1, 0.9)
    assert half.item() == pytest.approx(1 + 0.1 * 0.9 / 3e4, rel=1e-6)


def test_limits_on_both_sides_and_zero() -> None:
    x = torch.tensor([[1e7, 0.0, -1e7]], dtype=torch.float64)
    y = VeLU(alpha=2.0, gamma=0.0).double()(x)[0].detach()
    gates = y[[0, 2]] / x[0, [0, 2]]
    limit = 1 / (1 + math.exp(-2 * math.pi))  # both angles reach pi / 2
    assert gates.tolist() == pytest.approx([limit, 1 - limit], rel=1e-5)
    assert float(y[1]) == 0


def test_channels_matter_only_through_the_gain() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[:, 1:] += 1
    flat, usual = VeLU(gamma=0.0), VeLU()
    assert torch.equal(flat(x)[:, 0], flat(other)[:, 0])
    assert not torch.equal(usual(x)[:, 0], usual(other)[:, 0])
    torch.testing.assert_close(usual(x)[:, :, 2], usual(x[:, :, 2]))
    torch.testing.assert_close(VeLU(dim=-1)(x.transpose(1, 2)).transpose(1, 2), usual(x))


def test_distance_of_gaussians() -> None:
    y = torch.tensor([0.3 - 2, 0.3 + 2], dtype=torch.float64)  # mean 0.3, deviation 2
    assert float(w2_to_normal(y)) == pytest.approx(1.09)
    assert float(w2_to_normal(torch.tensor([-1.0, 1.0]))) == 0


def test_loss_adds_the_penalties_of_training_passes_once() -> None:
    model = nn.Sequential(
        nn.Linear(3, 8), VeLU(penalty=0.5), nn.Linear(8, 8), VeLU(penalty=0.25), nn.Linear(8, 2)
    )
    with torch.no_grad():
        model[1].scale.fill_(3.0)
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 0, 1, 1, 0])
    loss = with_penalties(model)
    h = model[1](model[0](x))
    expected = 0.5 * w2_to_normal(h / 3) + 0.25 * w2_to_normal(model[3](model[2](h)))
    assert loss(torch.zeros(6, 2), y) > math.log(2)  # the passes above count, and are gone now
    outputs = model(x)
    torch.testing.assert_close(loss(outputs, y), F.cross_entropy(outputs, y) + expected)
    torch.testing.assert_close(loss(outputs, y), F.cross_entropy(outputs, y))
    model.eval()(x)
    torch.testing.assert_close(loss(outputs, y), F.cross_entropy(outputs, y))


def test_penalty_moves_the_weights_towards_a_gaussian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), VeLU(penalty=1.0))
    loss = with_penalties(model, lambda outputs, targets: outputs.sum() * 0)
    x = torch.randn(200, 3)
    optimizer = torch.optim.Adam(model[0].parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(model(x), x)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_deviation_of_the_last_module_of_a_kind() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    nn.init.eye_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    x = torch.tensor([[1.0, 2.0], [-4.0, 5.0]])
    assert output_deviation(model, x, nn.ReLU) == pytest.approx(float(torch.tensor([1.0, 2, 0, 5]).std()))


def test_errors_in_one_sentence() -> None:
    with pytest.raises(UnknownName, match="deviation"):
        VeLU(spread="deviaton")
    with pytest.raises(WorkingPapersError, match="^VeLU's penalty is a weight of at least 0; got -1$"):
        VeLU(penalty=-1)

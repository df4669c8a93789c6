"""SmeLU against 50 digits, the box convolution and its limits; RESCU's joints; disagreement counted by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy import integrate
from tests.exact import expect_exact
from torch import nn

from workingpapers.catalog import make
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations._agreement import disagreement
from workingpapers.papers.activations.smelu import RESCU, GSmeLU, SmeLU, gsmelu, reproducibility, smelu
from workingpapers.tasks import mlp

GRID = torch.linspace(-5, 5, 1001, dtype=torch.float64)


def slope(function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


A, B, LOW, HIGH, T = map(mpf, ("0.5", "0.75", "0.125", "0.875", "-0.0625"))  # exact in every float


def exact_smelu(x: mpf) -> mpf:
    return mpf(0) if x <= -B else x if x >= B else (x + B) ** 2 / (4 * B)


def exact_smelu_slope(x: mpf) -> mpf:
    return mpf(0) if x <= -B else mpf(1) if x >= B else (x + B) / (2 * B)


def test_equals_fifty_digits() -> None:
    expect_exact(partial(smelu, beta=0.75), exact_smelu, exact_smelu_slope)


def exact_gsmelu(x: mpf) -> mpf:
    if x >= B:
        return T + (LOW + HIGH) * (A + B) / 2 + HIGH * (x - B)
    return T + LOW * (x + A) + ((HIGH - LOW) * (x + A) ** 2 / (2 * (A + B)) if x > -A else 0)


def exact_gsmelu_slope(x: mpf) -> mpf:
    return HIGH if x >= B else LOW + ((HIGH - LOW) * (x + A) / (A + B) if x > -A else 0)


def test_generalised_form_equals_fifty_digits() -> None:
    function = partial(gsmelu, alpha=0.5, beta=0.75, negative_slope=0.125, positive_slope=0.875, t=-0.0625)
    expect_exact(function, exact_gsmelu, exact_gsmelu_slope, every=7)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_values_and_slopes_at_the_joints_and_between(beta: float) -> None:
    x = torch.tensor([-beta, 0.0, beta], dtype=torch.float64)
    torch.testing.assert_close(smelu(x, beta), x.new_tensor([0, beta / 4, beta]), rtol=1e-15, atol=0)
    torch.testing.assert_close(slope(partial(smelu, beta=beta), x), x.new_tensor([0, 0.5, 1]))


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_is_relu_convolved_with_a_box(beta: float) -> None:
    for x in (-1.3, -0.2, 0.0, 0.1, 0.9, 3.0):
        box, _ = integrate.quad(lambda t: max(t, 0) / (2 * beta), x - beta, x + beta, points=[0])
        assert float(smelu(torch.tensor(x, dtype=torch.float64), beta)) == pytest.approx(box, abs=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.1, 1e-3])
def test_distance_to_relu_is_a_quarter_of_beta(beta: float) -> None:
    distance = smelu(GRID, beta) - torch.relu(GRID)
    assert float(distance.max()) == pytest.approx(beta / 4, rel=1e-12)
    assert float(distance.min()) == 0


def test_generalised_form_contains_smelu_and_leaky_lines() -> None:
    for beta in (0.3, 1.0):
        torch.testing.assert_close(gsmelu(GRID, beta, beta), smelu(GRID, beta), rtol=1e-12, atol=1e-15)
    assert torch.equal(make("smelu.generalized")(GRID), smelu(GRID))
    leaky = make("smelu.generalized", alpha=1e-9, beta=1e-9, negative_slope=0.2, t=-0.2e-9)
    torch.testing.assert_close(leaky(GRID), nn.functional.leaky_relu(GRID, 0.2), rtol=0, atol=1e-8)


def test_slope_by_beta_is_the_closed_form_and_zero_on_the_lines() -> None:
    x = torch.tensor([-3e38, -2.0, -0.7, 0.0, 0.4, 2.0, 3e38])
    beta = torch.full_like(x, 1.5, requires_grad=True)
    inside = x.abs() < 1.5
    expected = torch.where(inside, (1.5**2 - torch.where(inside, x, 0).square()) / (4 * 1.5**2), 0)
    torch.testing.assert_close(torch.autograd.grad(smelu(x, beta).sum(), beta)[0], expected)


def test_learned_beta_starts_where_told_and_differs_by_channel() -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for beta in (0.05, 1.0, 30.0):
        torch.testing.assert_close(SmeLU(beta, trainable=True)(x), smelu(x, beta))
    module = SmeLU(trainable=True, channels=3)
    with torch.no_grad():
        module.raw[1] = 0.0  # softplus(0) = log 2
    expected = torch.stack([smelu(x[:, i], (1.0, np.log(2), 1.0)[i]) for i in range(3)], dim=1)
    torch.testing.assert_close(module(x), expected)
    assert repr(module) == "SmeLU(beta=1, trainable=True, channels=3)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmeLU(0.0), "beta is positive; got 0.0"),
        (lambda: SmeLU(channels=3), "a fixed beta is the same in all channels; got channels=3"),
        (lambda: GSmeLU(alpha=-2.0), "alpha + beta is positive; got -1.0"),
        (
            lambda: RESCU(torch.sin, slopes=(0, 1)),
            "a middle of slope 0.540302 at both ends cannot be bent to slopes 0 and 1",
        ),
    ],
)
def test_errors_in_one_sentence(build, message: str) -> None:
    with pytest.raises(WorkingPapersError, match="^" + message.replace("+", r"\+") + "$"):
        build()


def test_rescu_of_a_parabola_is_the_generalised_form() -> None:
    module = RESCU(torch.square, alpha=0.4, beta=1.1, slopes=(0.1, 1.3), t=0.2)
    expected = gsmelu(GRID, 0.4, 1.1, 0.1, 1.3, 0.2)
    torch.testing.assert_close(module(GRID), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        slope(module, GRID),
        slope(partial(gsmelu, alpha=0.4, beta=1.1, negative_slope=0.1, positive_slope=1.3, t=0.2), GRID),
    )


def test_rescu_meets_its_middle_in_value_and_slope() -> None:
    module = RESCU(torch.exp, alpha=2.0, beta=1.0)
    x = torch.tensor([-5.0, -2.0, -1.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    low, high, e = np.exp(-2.0), np.exp(1.0), np.exp
    values = [low - 3 * low, low, e(-1.0), e(0.5), high, high + 3 * high]
    torch.testing.assert_close(module(x), x.new_tensor(values))
    torch.testing.assert_close(slope(module, x), x.new_tensor([low, low, e(-1.0), e(0.5), high, high]))
    rectified = RESCU(torch.exp, alpha=2.0, beta=1.0, slopes=(0.0, 1.0), t=0.0)
    assert rectified(x[:2]).tolist() == pytest.approx([0, 0], abs=1e-15)
    torch.testing.assert_close(slope(rectified, x[[0, 1, 4, 5]]), x.new_tensor([0, 0, 1, 1]))


def test_disagreement_of_three_models_counted_by_hand() -> None:
    p = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.6, 0.4]], [[0.8, 0.2], [0.3, 0.7]]])
    found = disagreement(p, torch.tensor([0, 1]))
    distance = (0.4 + 0.6) / 2 * 2 / 3  # pairs 1-2 and 2-3 differ, 1-3 does not
    true = (0.8 + 0.7 + 0.6 + 0.4 + 0.8 + 0.7) / 6
    expected = {"pd": distance, "relative_pd": distance / true, "churn": 1 / 3, "accuracy": 5 / 6}
    assert found == pytest.approx(expected, rel=1e-6)
    assert disagreement(p[[0, 2]], torch.tensor([0, 1]))["pd"] == 0
    with pytest.raises(WorkingPapersError, match=r"two models or more; got shape \(1, 2, 2\)"):
        disagreement(p[:1], torch.tensor([0, 1]))


def test_retraining_depends_on_the_seed_and_on_nothing_else() -> None:
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    split = Split(x[:60], (x[:60, 0] > 0).long(), x[60:], (x[60:, 0] > 0).long(), 2, "halves")
    build = partial(mlp, [3, 8, 2], SmeLU)
    found = reproducibility(build, split, repeats=2, seed=1, lr=0.05)
    torch.manual_seed(99)
    assert reproducibility(build, split, repeats=2, seed=1, lr=0.05).numbers == found.numbers
    assert reproducibility(build, split, repeats=2, seed=2, lr=0.05).numbers != found.numbers
    assert found.numbers["pd"] > 0
    assert found.numbers["accuracy"] > 0.7

"""The effective theory: classes of activations, recursions against random networks, exact linear nets."""

import math

import pytest
import torch
from torch import nn

from workingpapers.engines.limits import criticality, empirical_ntk, variance_flow
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._effective_theory import (
    draw_layers,
    equivalent_rates,
    four_point,
    ntk_flow,
    pair_flow,
    power_of_layer,
    scaled_mlp,
    squares_covariance,
)
from workingpapers.papers.theory.ntk import NTKMLP
from workingpapers.papers.theory.pdlt import (
    critical_init_,
    depth_to_width,
    growth,
    model_criticality,
    optimal_ratio,
    pdlt,
    residual_init,
)
from workingpapers.tasks import mlp


def test_relu_and_tanh_are_critical_at_two_and_one() -> None:
    relu, tanh = pdlt("relu", 12, 40, 0.8).numbers, pdlt("tanh").numbers
    assert (relu["weight_var"], relu["bias_var"]) == (pytest.approx(2), 0)
    assert (relu["chi_par"], relu["chi_perp"]) == (pytest.approx(1), pytest.approx(1))
    assert relu["last_variance"] == pytest.approx(0.8)
    assert relu["fluctuation"] == pytest.approx(5 * 11 / 40)
    assert (tanh["weight_var"], tanh["bias_var"]) == (pytest.approx(1), 0)
    with pytest.raises(WorkingPapersError, match="no critical"):
        pdlt("sigmoid")
    with pytest.raises(WorkingPapersError, match="depth and width"):
        pdlt("relu", depth=0)


def test_the_growth_of_fluctuations_is_known() -> None:
    # (E phi^4 - (E phi^2)^2) / (E phi^2)^2: ReLU 6 - 1, linear 3 - 1; tanh 2/3 (the book)
    assert growth("relu") == pytest.approx(5)
    assert growth("identity") == pytest.approx(2)
    a, b = 1.0, 0.3
    assert growth(nn.LeakyReLU(b)) == pytest.approx(6 * (a**4 + b**4) / (a**2 + b**2) ** 2 - 1)
    assert growth("tanh") == pytest.approx(2 / 3, rel=0.01)
    assert growth("sin") == pytest.approx(2 / 3, rel=0.01)
    assert optimal_ratio("relu", 10) == pytest.approx(4 / 50 / 5)


def test_linear_networks_of_equal_widths_have_the_exact_covariance() -> None:
    n, depth = 30, 8
    layers = draw_layers("identity", [n] * depth, 60_000, 1.0, seed=1)
    flow = four_point("identity", [n] * (depth - 1), 1.0)
    assert flow == pytest.approx([2 * i / n for i in range(depth)])
    for i in (0, 1, 4, 7):
        wanted = (1 + 2 / n) ** i - 1
        assert squares_covariance(layers[i]) == pytest.approx(wanted, abs=0.04 * (wanted + 0.1))


def test_layers_of_unequal_width_add_by_the_one_before() -> None:
    assert four_point("relu", [10, 40, 20], 2.0) == pytest.approx(
        [0, 5 / 10, 5 / 10 + 5 / 40, 5 / 10 + 5 / 40 + 5 / 20]
    )
    with pytest.raises(WorkingPapersError, match="at least one neuron"):
        four_point("relu", [0], 2.0)


def test_drawn_layers_have_the_law_of_networks_with_weights() -> None:
    torch.manual_seed(0)
    n, draws, weight, bias = 12, 6000, 1.7, 0.3
    drawn = draw_layers("tanh", [n] * 3, draws, weight, bias, start=1.5)
    x = torch.ones(draws, n, 1).double() * math.sqrt((1.5 - bias) / weight)
    for i, layer in enumerate(drawn):
        w = torch.randn(draws, n, n).double() * math.sqrt(weight / n)
        z = (w @ x)[..., 0] + math.sqrt(bias) * torch.randn(draws, n).double()
        x = z.tanh()[..., None]
        assert float(layer.square().mean()) == pytest.approx(float(z.square().mean()), rel=0.03)
        assert squares_covariance(layer) == pytest.approx(squares_covariance(z), abs=0.02), i
    flow = variance_flow("tanh", 3, weight, bias, 1.5)
    assert float(drawn[2].square().mean()) == pytest.approx(flow[2], rel=0.05)
    # to leading order in the width
    wide = draw_layers("tanh", [150] * 4, 20_000, weight, bias, start=1.5, seed=3)
    theory = four_point("tanh", [150] * 3, weight, bias, 1.5)
    assert squares_covariance(wide[3]) == pytest.approx(theory[3], rel=0.15)


def test_skips_keep_their_share() -> None:
    weight, bias = residual_init("gelu", 0.6)
    plain = criticality("gelu")
    assert (weight, bias) == (pytest.approx(0.64 * plain.weight_var), pytest.approx(0.64 * plain.bias_var))
    layers = draw_layers("gelu", [300] * 12, 800, weight, bias, plain.fixed_point, skip=0.6)
    assert float(layers[-1].square().mean()) == pytest.approx(plain.fixed_point, rel=0.05)
    with pytest.raises(WorkingPapersError, match="skip weight"):
        residual_init("relu", 1.0)


def test_two_relu_inputs_come_together_and_two_linear_ones_do_not() -> None:
    relu = pair_flow("relu", 30, 2.0, 0.0, (1.0, 2.0, 0.2))
    assert relu[0] == (pytest.approx(0.2 / math.sqrt(2)), pytest.approx(2.6))
    angles = [math.acos(c) for c, _ in relu]
    assert angles == sorted(angles, reverse=True)
    # near zero the angle falls as 3 pi / layer
    long = pair_flow("relu", 3000, 2.0, 0.0, (1.0, 1.0, 0.0))
    assert math.acos(long[-1][0]) * 3000 == pytest.approx(3 * math.pi, rel=0.02)
    assert pair_flow("identity", 9, 1.0, 0.0, (1.0, 2.0, 0.2))[-1] == pytest.approx(relu[0])


def test_the_mean_kernel_is_that_of_wide_networks() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 4).double()
    weight, bias = 1.5, 0.2
    flow = ntk_flow("tanh", 3, weight, bias, start=weight + bias)
    # sigma_w^2 and sigma_b^2 are the rates in the NTK parametrisation
    rates = [(bias, weight)] * 3
    scaled = ntk_flow("tanh", 3, weight, bias, rates, weight + bias)
    nets = [NTKMLP([4, 500, 500, 1], nn.Tanh, weight**0.5, bias**0.5) for _ in range(8)]
    mean = torch.stack([empirical_ntk(net, x, dtype=torch.float64) for net in nets]).mean()
    assert scaled[-1] == pytest.approx(float(mean), rel=0.05)
    assert flow[0] == pytest.approx(2.0)


@pytest.mark.parametrize(("activation", "weight"), [("relu", 2.0), ("tanh", 1.0)])
def test_equivalent_rates_make_all_layers_add_the_same(activation: str, weight: float) -> None:
    rates = equivalent_rates(activation, 20, weight, start=0.6)
    assert ntk_flow(activation, 20, weight, 0.0, rates, 0.6)[-1] == pytest.approx(2.0)
    for layer in (0, 7, 19):
        alone = [r if i == layer else (0.0, 0.0) for i, r in enumerate(rates)]
        assert ntk_flow(activation, 20, weight, 0.0, alone, 0.6)[-1] == pytest.approx(2 / 20)
    if activation == "relu":
        assert max(b for b, _ in rates) == pytest.approx(min(b for b, _ in rates))
    else:
        long = [b for b, _ in equivalent_rates(activation, 400, weight, start=0.6)]
        assert power_of_layer(long, 100) == pytest.approx(-1, abs=0.1)


def test_a_model_is_initialised_for_its_own_activation() -> None:
    model = critical_init_(
        mlp([50, 400, 400, 5], activation=nn.SiLU), generator=torch.Generator().manual_seed(0)
    )
    found = criticality("silu")
    for layer in (m for m in model if isinstance(m, nn.Linear)):
        assert float(layer.weight.detach().square().mean()) * layer.in_features == pytest.approx(
            found.weight_var, rel=0.08
        )
    assert float(model[3].bias.detach().square().mean()) == pytest.approx(found.bias_var, rel=0.25)
    with pytest.raises(WorkingPapersError, match="0 kinds of activation"):
        critical_init_(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(WorkingPapersError, match="2 kinds of activation"):
        critical_init_(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Tanh()))
    conv = critical_init_(nn.Sequential(nn.Conv2d(8, 64, 3, bias=False)), "relu")
    assert float(conv[0].weight.detach().square().mean()) * 72 == pytest.approx(2, rel=0.1)


def test_a_models_own_layers_are_judged() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 64)
    good, bad = (model_criticality(scaled_mlp(nn.ReLU, 9, 200, c), x).numbers for c in (2.0, 1.0))
    assert good["gradients"] == pytest.approx(1, rel=0.6)
    assert bad["gradients"] == pytest.approx(0.5**8, rel=0.6)
    assert bad["worst"] < 0.6
    assert good["depth_over_width"] == pytest.approx(8 / 200)
    assert depth_to_width(mlp([4, 10, 20, 3])) == pytest.approx(0.15)
    with pytest.raises(WorkingPapersError, match="no linear"):
        depth_to_width(nn.ReLU())


def test_powers_of_layers_are_recovered() -> None:
    assert power_of_layer([3 * layer**-0.8 for layer in range(1, 40)], 7) == pytest.approx(-0.8)

"""Kumar's scales against their closed forms, the recursion by hand, and activations found behind layers."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.golu import GoLU
from workingpapers.papers.training.kumar_init import (
    fan_in_of,
    gaussian_second_moment,
    homogeneous_gain,
    kumar_init_,
    kumar_std,
    measured_variances,
    predicted_variances,
    value_and_slope,
    variance_recursion,
)

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        (torch.tanh, 1.0),
        (nn.Tanh(), 1.0),
        (torch.sigmoid, 16 / 1.25),
        (nn.Identity(), 1.0),
        (nn.GELU(), 4.0),
        (nn.SiLU(), 4.0),
        (F.softplus, 4 / (1 + LN2**2)),
        (nn.Softplus(beta=2.0), 4 / (1 + LN2**2 / 4)),
        (nn.ELU(), 1.0),
        (lambda y: 3 * y, 1 / 9),
        (torch.exp, 0.5),
        (nn.ReLU(inplace=True), 2.0),
        (nn.LeakyReLU(0.5), 1.6),
        (nn.PReLU(init=0.25), 2 / 1.0625),
        (torch.abs, 1.0),
        (nn.Hardtanh(), 1.0),
        (GoLU(), math.e**2),
    ],
    ids=lambda value: None if isinstance(value, float) else type(value).__name__,
)
def test_scales_have_their_closed_forms(activation: object, variance: float) -> None:
    for fan_in in (1, 7, 1000):
        assert kumar_std(activation, fan_in) == pytest.approx((variance / fan_in) ** 0.5, rel=1e-6)  # type: ignore[arg-type]


def test_the_papers_constant_for_logistic() -> None:
    assert kumar_std(torch.sigmoid, 1) == pytest.approx(3.5777, abs=1e-4)


def test_the_relu_scale_is_hes() -> None:
    weight = torch.empty(400, 300)
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=torch.Generator().manual_seed(0))
    layer = nn.Sequential(nn.Linear(300, 400), nn.ReLU())
    kumar_init_(layer, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer[0].weight.detach(), weight)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.SELU(), lambda y: torch.relu(y) + 0.1 * y * y])
def test_a_kink_at_zero_is_refused(activation: nn.Module) -> None:
    with pytest.raises(WorkingPapersError, match="has no slope at 0, where it rises by"):
        kumar_std(activation, 5)


def test_other_activations_without_a_scale_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="cos is flat at 0"):
        kumar_std(torch.cos, 5)
    with pytest.raises(WorkingPapersError, match="sign has no slope at 0"):
        kumar_std(torch.sign, 5)
    with pytest.raises(WorkingPapersError, match="Doubling is no function of single numbers"):
        kumar_std(Doubling(), 5)
    with pytest.raises(WorkingPapersError, match="a positive number of inputs; got fan_in=0"):
        kumar_std(torch.tanh, 0)


class Doubling(nn.Module):
    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y, y])


def test_value_slope_and_homogeneity() -> None:
    assert value_and_slope(torch.sigmoid) == (0.5, 0.25)
    assert homogeneous_gain(torch.relu) == 0.5
    assert homogeneous_gain(nn.LeakyReLU(0.1)) == pytest.approx(0.505)
    assert homogeneous_gain(torch.tanh) is None
    assert homogeneous_gain(nn.Softplus()) is None


def test_second_moments() -> None:
    assert gaussian_second_moment(torch.relu) == pytest.approx(0.5, abs=1e-8)
    assert gaussian_second_moment(nn.Identity(), 3.0) == pytest.approx(3.0, abs=1e-8)
    assert gaussian_second_moment(torch.exp, 0.5) == pytest.approx(
        math.e, rel=1e-8
    )  # E exp(2y) = exp(2 * 0.5)


def test_the_recursion_by_hand() -> None:
    q1 = 12.8
    q2 = 12.8 * (q1 / 16 + 0.25)
    q3 = 12.8 * (q2 / 16 + 0.25)
    assert predicted_variances(torch.sigmoid, 12.8, 3) == pytest.approx([q1, q2, q3])
    assert predicted_variances(torch.tanh, 1.0, 4, 0.1) == pytest.approx([0.1] * 4)
    assert predicted_variances(torch.relu, 1.0, 4) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert predicted_variances(torch.relu, 2.0, 4) == pytest.approx([2.0] * 4)


def test_theory_and_random_nets_agree() -> None:
    for scale in (1.0, 2.0):
        found = measured_variances(torch.relu, scale, 4, width=800)
        assert found == pytest.approx(predicted_variances(torch.relu, scale, 4), rel=0.15)
    small = measured_variances(torch.tanh, 1.0, 5, width=800, variance=1e-4)
    assert small == pytest.approx([1e-4] * 5, rel=0.1)
    # beyond first order the map q -> scale E[g(y)^2] is exact for wide nets
    exact, q = [], 12.8
    for _ in range(3):
        exact.append(q)
        q = 12.8 * gaussian_second_moment(torch.sigmoid, q)
    assert measured_variances(torch.sigmoid, 12.8, 3, width=800) == pytest.approx(exact, rel=0.1)


def test_xavier_lets_relu_die_and_he_does_not() -> None:
    numbers = variance_recursion(torch.relu, 8, 300).numbers
    assert numbers["xavier first order"] == pytest.approx(2**-7)
    assert [numbers["he first order"], numbers["kumar first order"]] == pytest.approx([1, 1])
    assert numbers["kumar measured"] == pytest.approx(numbers["he measured"])
    assert numbers["second_moment first order"] == pytest.approx(1, abs=1e-6)


def test_fan_in_counts_the_inputs_of_one_unit() -> None:
    assert fan_in_of(nn.Linear(7, 3)) == 7
    assert fan_in_of(nn.Conv2d(6, 4, (3, 2), groups=2)) == 18
    assert fan_in_of(nn.ConvTranspose1d(6, 4, 4, stride=2, groups=2)) == 6


def test_transposed_convolutions_keep_the_variance() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, stride=2))
    kumar_init_(model, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 64, 12, 12, generator=torch.Generator().manual_seed(1))
    assert float(model(x)[..., 4:-4, 4:-4].detach().square().mean()) == pytest.approx(1.0, rel=0.1)


class Branching(nn.Module):
    """Functions, methods, modules, a norm, a residual sum, a custom activation, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f, self.unused = (nn.Linear(50, 50) for _ in range(7))
        self.norm, self.drop, self.golu = nn.BatchNorm1d(50), nn.Dropout(), GoLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.norm(self.a(x)), 0.5, inplace=True)
        x = self.drop(self.b(x)).sigmoid()
        x = F.softplus(self.c(x) + x, beta=2.0)
        x = self.golu(self.d(x))
        return torch.relu(self.e(x)).view(-1, 50) + self.f(x)


def test_activations_are_found_in_the_graph() -> None:
    model = Branching()
    assert kumar_init_(model, generator=torch.Generator().manual_seed(0)) is model
    wanted = {"a": 1.6, "b": 12.8, "c": 4 / (1 + LN2**2 / 4), "d": math.e**2, "e": 2, "f": 1, "unused": 1}
    for name, variance in wanted.items():
        layer = model.get_submodule(name)
        assert float(layer.weight.detach().var()) * 50 == pytest.approx(variance, rel=0.12), name
        assert not layer.bias.any()
    assert model.norm.weight.eq(1).all()


def test_one_activation_for_all_layers() -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200, bias=False))
    kumar_init_(model, torch.sigmoid, torch.Generator().manual_seed(0))
    for layer in (model[0], model[2]):
        assert float(layer.weight.detach().var()) * 200 == pytest.approx(12.8, rel=0.03)
    kumar_init_(layer := nn.Linear(200, 200), generator=torch.Generator().manual_seed(0))
    assert float(layer.weight.detach().var()) * 200 == pytest.approx(1.0, rel=0.03)


def test_the_generator_decides_the_weights() -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        return kumar_init_(model, generator=torch.Generator().manual_seed(seed))[0].weight.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


class Untraceable(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_what_cannot_be_traced_is_said_before_weights_change() -> None:
    model = Branches()
    before = model.layer.weight.detach().clone()
    with pytest.raises(WorkingPapersError, match=r"torch.fx cannot trace Branches \(.*; give the activation"):
        kumar_init_(model)
    refused = nn.Sequential(model.layer, nn.Tanh(), nn.Linear(3, 3), nn.ReLU6())
    with pytest.raises(WorkingPapersError, match="ReLU6 has no slope at 0"):
        kumar_init_(refused)
    assert torch.equal(model.layer.weight, before)
    kumar_init_(model, partial(torch.mul, other=2.0))
    assert not torch.equal(model.layer.weight, before)

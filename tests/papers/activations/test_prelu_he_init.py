"""PReLU against torch's; the initialisation against torch's, its own derivation and measured variances."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.activations.prelu_he_init import (
    PReLU,
    he_init_,
    he_normal_,
    he_std,
    he_uniform_,
    layer_variances,
    parameter_groups,
    plain_cnn,
    prelu,
    slopes,
    squared_slope,
    xavier_init_,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], channels: int) -> None:
    ours, torchs = PReLU(channels, init=0.3), nn.PReLU(channels)
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(-0.5, 1.5, channels))
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=seeded(0))
    x.view(-1)[0] = 0.0
    weights = torch.randn(shape, generator=seeded(1))
    found = []
    for module in (ours, torchs):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        found.append([y, *torch.autograd.grad((weights * y).sum(), [inputs, module.weight])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    at_negatives = weights * x.clamp(max=0)
    dims = [d for d in range(x.ndim) if channels == 1 or d != 1]
    torch.testing.assert_close(found[0][2].view(-1), at_negatives.sum(dims).view(-1))


def test_special_slopes() -> None:
    x = torch.linspace(-3, 3, 61)
    assert torch.equal(prelu(x, 0.0), F.relu(x))
    assert torch.equal(prelu(x, 1.0), x)
    assert torch.equal(prelu(x, -1.0), x.abs())
    assert PReLU(4).weight.tolist() == [0.25] * 4


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match=r"a slope for each of 3 channels; got an input of \(2, 4\)"):
        PReLU(3)(torch.zeros(2, 4))
    with pytest.raises(WorkingPapersError, match=r"got an input of \(3,\)"):
        PReLU(3)(torch.zeros(3))
    with pytest.raises(WorkingPapersError, match="at least one slope; got num_parameters=0"):
        PReLU(0)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("a", [0.0, 0.25, 1.0])
def test_weights_are_those_of_torchs_kaiming(a: float, mode: str) -> None:
    for layer in (nn.Linear(30, 50), nn.Conv2d(6, 20, (3, 5))):
        for ours, torchs in ((he_normal_, nn.init.kaiming_normal_), (he_uniform_, nn.init.kaiming_uniform_)):
            expected = torchs(torch.empty_like(layer.weight), a, mode, "leaky_relu", generator=seeded(7))
            assert ours(layer, a, mode, generator=seeded(7)) is layer
            torch.testing.assert_close(layer.weight, expected, rtol=1e-5, atol=1e-7, check_stride=False)
            assert not layer.bias.any()
        fan = nn.init._calculate_correct_fan(layer.weight, mode)
        assert he_std(layer, a, mode) == pytest.approx(math.sqrt(2 / ((1 + a * a) * fan)), rel=1e-12)


def test_slopes_are_read_from_the_neighbours() -> None:
    model = nn.Sequential(
        nn.Linear(100, 200), nn.LeakyReLU(0.5), nn.Linear(200, 300), PReLU(init=0.8), nn.Linear(300, 400)
    )
    for mode, chosen in (("fan_in", (0.5, 0.5, 0.8)), ("fan_out", (0.5, 0.8, 0.8))):
        for distribution in ("normal", "uniform"):
            assert he_init_(model, mode, distribution, seeded(0)) is model
            for layer, a in zip(model[::2], chosen, strict=True):
                assert layer.weight.detach().std().item() == pytest.approx(he_std(layer, a, mode), rel=0.02)
            largest = model[4].weight.detach().abs().max().item() / he_std(model[4], 0.8, mode)
            assert (largest <= math.sqrt(3) * 1.0001) == (distribution == "uniform")
    assert squared_slope(None) == squared_slope(nn.ReLU()) == 0
    assert squared_slope(nn.LeakyReLU(-0.5)) == 0.25
    mixed = PReLU(2)
    with torch.no_grad():
        mixed.weight.copy_(torch.tensor([0.0, 1.0]))
    assert squared_slope(mixed) == 0.5


def test_names_of_modes_and_distributions() -> None:
    with pytest.raises(UnknownName, match="no mode of initialisation is named 'fan_on'; the nearest"):
        he_init_(nn.Linear(2, 2), "fan_on")
    with pytest.raises(UnknownName, match="no distribution of weights is named 'gaussian'"):
        he_init_(nn.Linear(2, 2), distribution="gaussian")


def deep(widths: list[int], a: float) -> nn.Sequential:
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), PReLU(init=a))]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("a", [0.0, 0.25, 0.7])
def test_variance_follows_the_recursion(a: float) -> None:
    model = deep([512] * 21, a)
    x = torch.randn(100, 512, generator=seeded(1))

    def growth() -> float:
        variances = [v for v, _ in layer_variances(model, x, torch.sum).values()]
        return math.log(variances[19] / variances[0])

    he_init_(model, generator=seeded(2))
    assert abs(growth()) < math.log(2)
    torch.manual_seed(3)
    xavier_init_(model)  # 1 / n in place of 2 / ((1 + a^2) n)
    assert growth() == pytest.approx(19 * math.log((1 + a * a) / 2), abs=math.log(2))


def test_each_mode_keeps_what_it_promises() -> None:
    model = deep([200, 800] * 5 + [200], 0.25)
    x = torch.randn(300, 200, generator=seeded(4))
    weights = torch.randn(300, 200, generator=seeded(6))

    def changes(mode: str, which: int) -> list[float]:
        he_init_(model, mode, generator=seeded(5))
        found = [v[which] for v in layer_variances(model, x, lambda y: (weights * y).sum()).values()]
        return [abs(math.log(b / a)) for a, b in pairwise(found)]

    assert max(changes("fan_in", 0)) < 0.4
    assert max(changes("fan_out", 1)) < 0.4
    assert min(changes("fan_in", 1)) > 1.0  # widths change by 4, so the other variance moves by 4
    assert min(changes("fan_out", 0)) > 1.0


def test_report_is_of_responses_and_of_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(6, 4, generator=seeded(0))
    found = layer_variances(model, x, lambda y: y.square().sum())
    y = model(x).detach()
    assert found["2"] == pytest.approx((y.var().item(), (2 * y).var().item()), rel=1e-5)
    hidden = model[0](x).detach()
    by_hidden = (2 * y @ model[2].weight.detach()) * (hidden > 0)
    assert found["0"] == pytest.approx((hidden.var().item(), by_hidden.var().item()), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_slopes_learn_without_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), PReLU(3), nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.0, 2.0, 0.0]))
    assert slopes(model) == pytest.approx({"1": 1.0, "3": 0.25})
    groups = parameter_groups(model, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(groups, lr=0.5).step()
    for name, p in model.named_parameters():
        factor = 1.0 if name in ("1.weight", "3.weight") else 0.95
        torch.testing.assert_close(p.detach(), factor * before[name])


def test_plain_cnn_has_the_layers_that_it_names() -> None:
    model = plain_cnn(1, [16] * 29, (1, 9), lambda width: nn.ReLU())
    weighted = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 30
    assert [i for i, m in enumerate(weighted[:-1]) if m.stride == (2, 2)] == [1, 9]
    assert model(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    channels = [m.num_parameters for m in plain_cnn(3, (4, 6), (), PReLU) if isinstance(m, PReLU)]
    assert channels == [4, 6]


def test_xavier_is_what_it_is_compared_with() -> None:
    layer = nn.Linear(300, 500)
    torch.manual_seed(0)
    xavier_init_(layer)
    torch.manual_seed(0)
    torch.testing.assert_close(
        layer.weight, nn.init.xavier_normal_(torch.empty(500, 300)), check_stride=False
    )
    assert not layer.bias.any()

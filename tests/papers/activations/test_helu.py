"""HeLU: ReLU forward to the bit, the shifted gradient at every side of its threshold, dead units, recovery."""

import pytest
import torch
from torch import nn

from workingpapers.catalog import make
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.helu import (
    HeLU,
    biased_mlp,
    dead_share,
    dead_units,
    helu,
    set_alpha,
    silent_layer,
)
from workingpapers.surgery import changes
from workingpapers.tasks import fit


def passed(function, x: torch.Tensor) -> list[float]:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x), x, torch.full_like(x, 3.0))[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_is_relu_to_the_bit(dtype: torch.dtype) -> None:
    x = torch.cat(
        [
            torch.randn(500, generator=torch.Generator().manual_seed(0)) * 0.1,
            torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 6e4]),
        ]
    ).to(dtype)
    for module in (HeLU(), HeLU(0.0), HeLU(1.0, relative=True)):
        found, expected = (f(x) for f in (module, torch.relu))
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())
    assert HeLU()(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_on_both_sides_of_the_threshold_and_on_it(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.0, -0.06, -0.05, -0.049, -0.03, -0.0, 0.0, 0.1, 7.0], dtype=dtype)
    assert passed(helu, x) == [0, 0, 0, 3, 3, 3, 3, 3, 3]
    assert passed(lambda t: helu(t, 0.5), x) == [0, 3, 3, 3, 3, 3, 3, 3, 3]


def test_alpha_zero_is_relu_away_from_zero() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(1))
    assert passed(HeLU(0.0), x) == passed(torch.relu, x)


def test_threshold_in_deviations_of_the_input() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    deviation = float(x.std())  # the square root of 5
    assert passed(HeLU(1.01 / deviation, relative=True), x) == [0, 3, 3, 3, 3]
    assert passed(HeLU(0.99 / deviation, relative=True), x) == [0, 0, 3, 3, 3]
    assert passed(HeLU(0.05, relative=True), 100 * x) == [0, 0, 3, 3, 3]
    assert passed(HeLU(0.05, relative=True), torch.tensor([-0.01])) == [3]


def test_a_byte_an_element_is_kept() -> None:
    kept: list[torch.Tensor] = []
    x = torch.randn(100, requires_grad=True)

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = helu(x)
    y.sum().backward()
    assert [t.dtype for t in kept] == [torch.bool]


def test_gradient_of_the_gradient_treats_the_band_as_fixed() -> None:
    x = torch.tensor([-0.06, -0.03, 0.5], requires_grad=True)
    (first,) = torch.autograd.grad((helu(x) * x.square()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    # first = mask x^2 + 2 x relu(x), where relu passes its gradient on by the mask again
    torch.testing.assert_close(second, torch.tensor([0.0, 4 * -0.03, 2 * 0.5 + 2 * 0.5 + 2 * 0.5]))


def test_alpha_is_set_in_all_places_of_a_model() -> None:
    model = biased_mlp(HeLU, None)
    set_alpha(model, 0.2)
    assert [m.alpha for m in model if isinstance(m, HeLU)] == [0.2] * 4
    for wrong in (lambda: set_alpha(model, -0.1), lambda: HeLU(-0.1)):
        with pytest.raises(
            WorkingPapersError, match=r"^HeLU's gradient reaches alpha >= 0 below zero; got -0.1$"
        ):
            wrong()


def test_export_leaves_plain_relus_and_the_same_bits() -> None:
    model = biased_mlp(HeLU, -0.02).eval()
    plain = make("helu.export")(model)
    x = torch.randn(50, 784, generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain(x), model(x))
    assert [type(m) for m in plain if not list(m.parameters())][1:] == [nn.ReLU] * 4
    assert changes(plain)[0] == "2 is ReLU now, in place of HeLU."
    assert isinstance(model[2], HeLU)


def test_biases_at_first() -> None:
    model = biased_mlp(nn.ReLU, -0.02)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    assert [m.out_features for m in layers] == [256, 256, 256, 256, 10]
    assert all(bool((m.bias == -0.02).all()) for m in layers)
    assert bool((biased_mlp(nn.ReLU, None)[1].bias != -0.02).all())


def test_dead_units_of_known_layers() -> None:
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1]]))
        layer.bias.copy_(torch.tensor([0.0, -5, 0, 0]))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model = nn.Sequential(layer, nn.ReLU())
    assert dead_units(model, x, nn.ReLU)["1"].tolist() == [False, True, False, True]
    assert dead_share(model, x, nn.ReLU) == 0.5
    assert dead_share(model, -x, nn.ReLU) == 0.75


def test_a_channel_is_dead_where_it_is_silent_at_all_places() -> None:
    x = torch.full((2, 3, 2, 2), -1.0)
    x[1, 2, 0, 1] = 1.0
    assert dead_units(nn.Sequential(HeLU()), x, HeLU)["0"].tolist() == [True, True, False]


@pytest.mark.parametrize(("low", "high"), [(-0.04, 0.0), (-0.5, -0.2)])
def test_silent_layer_lies_in_its_band(low: float, high: float) -> None:
    model, split = silent_layer(nn.ReLU, low, high, units=50, seed=3)
    z = model[1](split.x_train)
    assert low < float(z.detach().min()) < float(z.detach().max()) < high
    torch.testing.assert_close(split.y_train[:, 0], split.x_train[:, 0].abs() + split.x_train[:, 1].abs())
    with pytest.raises(WorkingPapersError, match="low < high; got 1.0 and 0.0"):
        silent_layer(nn.ReLU, 1.0, 0.0)


def test_only_units_in_the_band_come_back() -> None:
    shares = {}
    for kind in (HeLU, nn.ReLU):
        for low, high in ((-0.04, 0.0), (-0.5, -0.2)):
            model, split = silent_layer(kind, low, high, units=40, seed=1)
            before = model[1].weight.detach().clone()
            fit(model, split, steps=40, lr=0.1, optimizer="sgd")
            shares[kind, low] = 1 - dead_share(model, split.x_train, kind)
            assert torch.equal(before, model[1].weight) == (kind is nn.ReLU or low == -0.5)
    assert shares[HeLU, -0.04] > 0.1
    assert [shares[nn.ReLU, -0.04], shares[HeLU, -0.5], shares[nn.ReLU, -0.5]] == [0, 0, 0]

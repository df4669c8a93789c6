"""GmP: coordinates of the sphere against loops and Jacobians, round trips, the bound on turns, the mean norm."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers import _parameterisations as bench
from workingpapers.papers.layers._spherical import angle_between, angles, unit_vectors
from workingpapers.papers.layers.gmp import (
    GmPConv2d,
    GmPLinear,
    MeanNorm,
    angular_change,
    boundary_directions,
    characteristic_points,
    geometric,
    noise_turns,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_loop(theta: np.ndarray) -> np.ndarray:
    u, product = np.empty(len(theta) + 1), 1.0
    for k, t in enumerate(theta):
        u[k] = product * math.cos(t)
        product *= math.sin(t)
    u[-1] = product
    return u


def test_unit_vectors_follow_the_formula() -> None:
    theta = 3 * normal(5, 6)
    expected = np.stack([by_loop(row) for row in theta.numpy()])
    np.testing.assert_allclose(unit_vectors(theta).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 64, 4608])
def test_directions_have_norm_one_and_angles_undo_them(n: int) -> None:
    w = normal(20, n, dtype=torch.float32)
    u = unit_vectors(angles(w))
    assert float((u.norm(dim=1) - 1).abs().max()) < 1e-6 * max(1, n / 500)
    torch.testing.assert_close(u, F.normalize(w, dim=1), atol=1e-6, rtol=1e-5)
    theta = angles(w)
    assert bool((theta[:, :-1] >= 0).all())
    assert bool((theta[:, :-1] <= math.pi).all())
    assert bool((theta[:, -1] < 0).any())
    assert bool((theta[:, -1].abs() <= math.pi + 1e-6).all())


def test_angles_survive_extreme_norms() -> None:
    w = normal(10, 5, dtype=torch.float32)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(angles(scale * w), angles(w), atol=1e-6, rtol=1e-6)


def test_the_metric_is_diagonal_with_products_of_squared_sines() -> None:
    theta = 2 * normal(5)
    jacobian = torch.autograd.functional.jacobian(unit_vectors, theta)
    expected = torch.cumprod(torch.cat([torch.ones(1, dtype=theta.dtype), theta.sin()[:-1] ** 2]), 0)
    torch.testing.assert_close(jacobian.T @ jacobian, torch.diag(expected), atol=1e-14, rtol=0)


def test_two_inputs_are_a_circle_and_a_full_turn_changes_nothing() -> None:
    layer = GmPLinear(2, 4).double()
    theta = layer.theta
    torch.testing.assert_close(layer.direction(), torch.cat([theta.cos(), theta.sin()], dim=1))
    x = normal(7, 2)
    before = layer(x)
    with torch.no_grad():
        theta.add_(2 * math.pi)
    torch.testing.assert_close(layer(x), before, atol=1e-13, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [1, 2, 40])
def test_linear_round_trip(features: int, bias: bool) -> None:
    linear, x = nn.Linear(features, 6, bias=bias), normal(9, features, dtype=torch.float32)
    layer = GmPLinear.from_linear(linear)
    torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        GmPLinear.from_linear(linear, relu=True)(x), linear(x).relu(), atol=1e-5, rtol=0
    )
    back = layer.to_linear()
    torch.testing.assert_close(back.weight, linear.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.weight, linear.weight, atol=1e-5, rtol=0)
    assert (back.bias is None) == (layer.bias is None) == (not bias)
    if bias:
        torch.testing.assert_close(back.bias, linear.bias, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.bias, linear.bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (1, 2), "groups": 2},
        {"padding": "same", "dilation": 2, "padding_mode": "circular", "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_convolution_round_trip(options: dict) -> None:
    conv, x = nn.Conv2d(4, 6, 3, **options).double(), normal(2, 4, 9, 8)
    layer = GmPConv2d.from_conv2d(conv)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(GmPConv2d.from_conv2d(conv, relu=True)(x), conv(x).relu())
    torch.testing.assert_close(layer.to_conv2d()(x), conv(x))
    assert layer.direction().shape == conv.weight.shape
    torch.testing.assert_close(layer.direction().flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_one_by_one_convolution_of_one_channel_keeps_its_signs() -> None:
    conv, x = nn.Conv2d(1, 5, 1), normal(2, 1, 3, 3, dtype=torch.float32)
    layer = GmPConv2d.from_conv2d(conv)
    torch.testing.assert_close(layer(x), conv(x))
    assert sorted(name for name, _ in layer.named_parameters()) == ["lam", "r"]


def test_a_neuron_is_r_times_relu_of_its_distance_from_the_boundary() -> None:
    layer, x = GmPLinear(3, 2, relu=True).double(), normal(50, 3)
    with torch.no_grad():
        layer.r.copy_(torch.tensor([2.0, -0.5], dtype=torch.float64))
        layer.lam.copy_(torch.tensor([0.3, -0.2], dtype=torch.float64))
    u = np.stack([by_loop(row) for row in layer.theta.detach().numpy()])
    distance = np.maximum(x.numpy() @ u.T + [0.3, -0.2], 0)
    np.testing.assert_allclose(layer(x).detach().numpy(), distance * [2.0, -0.5], atol=1e-14)
    assert bool((layer(x)[:, 1] < 0).any())
    with pytest.raises(WorkingPapersError, match=r"neuron 1 has a negative radius r"):
        layer.to_linear()


def test_weights_start_glorot_uniform_over_inputs_and_units_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    layer = GmPConv2d(8, 200, 5)
    bound = math.sqrt(6 / (8 * 25 + 200))
    weight = layer.weight.detach()
    assert 0.99 * bound < float(weight.abs().max()) <= bound * (1 + 1e-5)
    assert float(weight.var()) == pytest.approx(bound**2 / 3, rel=0.03)
    assert not layer.lam.any()
    assert bool((layer.r > 0).all())


def test_neurons_without_weight() -> None:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight[1] = 0
    with pytest.raises(WorkingPapersError, match="neuron 1 has zero weight and a bias"):
        GmPLinear.from_linear(linear)
    with torch.no_grad():
        linear.bias[1] = 0
    x = normal(4, 3, dtype=torch.float32)
    torch.testing.assert_close(GmPLinear.from_linear(linear)(x), linear(x))
    with pytest.raises(WorkingPapersError, match="at least one input"):
        GmPLinear(0, 3)


def test_noise_on_the_angles_turns_a_boundary_by_at_most_its_length() -> None:
    for n in (2, 3, 10, 64):
        w, noise = normal(200, n), 0.3 * normal(200, n - 1, seed=1)
        turn = angle_between(unit_vectors(angles(w)), unit_vectors(angles(w) + noise))
        assert bool((turn <= noise.norm(dim=1) * (1 + 1e-9)).all())
        first = torch.zeros_like(noise)
        first[:, 0] = 0.3  # along the first angle the bound is reached
        turn = angle_between(unit_vectors(angles(w)), unit_vectors(angles(w) + first))
        torch.testing.assert_close(turn, torch.full_like(turn, 0.3))


def test_angles_between_vectors_are_exact_when_small() -> None:
    t = torch.tensor([0.0, 1e-9, 1e-3, 1.0, 3.1], dtype=torch.float64)
    u, v = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.stack([t.cos(), t.sin()], dim=1)
    torch.testing.assert_close(angle_between(u.expand_as(v), v), t, rtol=1e-7, atol=0)


def test_the_same_noise_in_four_parameterisations() -> None:
    weight = torch.tensor([[1e-2, 0.0], [1.0, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[-3e-2, 0.0, -2e-2], [0.0, 0.1, 0.0]], dtype=torch.float64)
    turns = noise_turns(weight, noise)
    expected = {"sp": [math.pi, math.atan(0.1)], "bn": [math.pi, math.atan(0.1)]}
    expected |= {"wn": [0.0, math.atan(0.1)], "gmp": [3e-2, 0.0]}  # wn: weight and length both turn
    for name, values in expected.items():
        torch.testing.assert_close(turns[name], torch.tensor(values, dtype=torch.float64), atol=1e-12, rtol=0)
    flipped = noise_turns(weight[1:], torch.tensor([[0.0, 0.0, -1.5]], dtype=torch.float64))
    assert {name: round(float(t[0]), 6) for name, t in flipped.items()} == {
        "sp": 0.0, "wn": 3.141593, "bn": 3.141593, "gmp": 0.0
    }  # fmt: skip


def test_characteristic_points_lie_on_the_boundary_nearest_to_the_origin() -> None:
    linear = nn.Linear(4, 3).double()
    layer = GmPLinear.from_linear(linear)
    points = characteristic_points(layer)
    torch.testing.assert_close(points, characteristic_points(linear))
    torch.testing.assert_close(torch.diagonal(linear(points)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(points.norm(dim=1), linear.bias.abs() / linear.weight.norm(dim=1))
    assert not characteristic_points(nn.Linear(4, 3, bias=False)).any()


def test_angular_change_is_the_turn_of_the_boundary() -> None:
    before = GmPLinear(5, 3).double()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.theta[:, 0] += torch.tensor([0.0, 0.2, -0.1])
        after.r.mul_(7)
        after.lam.add_(1)
    torch.testing.assert_close(
        angular_change(before, after), torch.tensor([0, 0.2, 0.1]).double(), atol=1e-8, rtol=0
    )
    linear = before.to_linear()
    torch.testing.assert_close(boundary_directions(linear), boundary_directions(before))


def test_mean_norm_subtracts_the_batch_mean_then_the_running_one() -> None:
    norm, x = MeanNorm(3, momentum=0.25).double(), 2 * normal(8, 3, 4, 5) + 1
    mean = x.numpy().mean((0, 2, 3))
    y = norm.train()(x)
    np.testing.assert_allclose(y.numpy(), x.numpy() - mean[:, None, None], atol=1e-14)
    norm(2 * x)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.75 * 0.25 * mean + 0.25 * 2 * mean, atol=1e-14)
    torch.testing.assert_close(norm.eval()(x[:, :, 0, 0]), x[:, :, 0, 0] - norm.running_mean)
    with pytest.raises(WorkingPapersError, match=r"MeanNorm\(3\) takes \(B, 3, \.\.\.\); got \(8, 4\)"):
        norm(normal(8, 4))


def test_the_claim_starts_all_parameterisations_from_the_same_function() -> None:
    x, images = normal(6, 5, dtype=torch.float32), normal(6, 3, 16, 16, dtype=torch.float32)
    forms = {**bench.BASELINES, "ours": geometric}
    vectors = {name: bench.perceptron(5, form, seed=3)(x) for name, form in forms.items()}
    torch.testing.assert_close(vectors["wn"], vectors["sp"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vectors["ours"], vectors["sp"], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(vectors["bn"], vectors["sp"])
    convs = {name: bench.convolutional(3, form, seed=3).eval()(images) for name, form in forms.items()}
    torch.testing.assert_close(convs["wn"], convs["sp"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(convs["ours"], convs["sp"], atol=1e-5, rtol=1e-4)


def test_the_levy_function_against_known_values() -> None:
    x = torch.tensor([1.0, -7.0, 5.0, 3.0])  # w = 1, -1, 2, 1.5
    torch.testing.assert_close(bench.levy(x), torch.tensor([0.0, 4.0, 1.0, 1.25]), atol=1e-5, rtol=0)
    split = bench.levy_split(0, train=500)
    noise = split.y_train * split.y_std + split.y_mean - bench.levy(split.x_train)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    torch.testing.assert_close(
        split.y_test * split.y_std + split.y_mean, bench.levy(split.x_test), atol=1e-4, rtol=0
    )


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("gmp", 3, 4, relu=True), GmPLinear)
    assert isinstance(make("gmp.conv2d", 3, 4, 3), GmPConv2d)
    assert [c.says for c in claims("gmp").values()] == [c["says"] for c in record("gmp").claims]

"""BiPer: both waves in 50 digits, the slopes by hand, packed equals float, the error's closed forms, the stages."""

import math

import mpmath
import numpy as np
import pytest
import torch
from tests.exact import expect_exact
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._lowbit_bench import SignConv2d, binary_input, sign
from workingpapers.papers.layers._waves import LIMIT, law_error, quantisation_error, sine, square
from workingpapers.papers.layers.biper import (
    BiPerConv2d,
    BiPerLinear,
    PackedBiPer,
    binarize,
    fit_in_stages,
    pack,
    penalty,
    set_stage,
)

OMEGA = 16  # a power of two: 16 x is exact in floats, so that the test is of the formula alone


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slope(x: mpmath.mpf) -> mpmath.mpf:
    return OMEGA * mpmath.cos(OMEGA * x)


def test_the_sine_is_exact() -> None:
    expect_exact(lambda x: sine(x, OMEGA), lambda x: mpmath.sin(OMEGA * x), slope, every=3)


def test_the_square_wave_is_exact_and_has_the_slope_of_the_sine() -> None:
    def exact(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.mpf(-1 if mpmath.sin(OMEGA * x) < 0 else 1)

    expect_exact(lambda x: square(x, OMEGA), exact, slope, every=3)


def test_the_sign_of_inputs_is_exact_and_has_the_quadratic_slope() -> None:
    expect_exact(
        sign,
        lambda x: mpmath.mpf(-1 if x < 0 else 1),
        lambda x: max(mpmath.mpf(0), 2 - 2 * abs(x)),
        every=3,
    )


@pytest.mark.parametrize("omega", [1.0, 5.0, 20.0])
def test_the_square_wave_is_odd_and_periodic(omega: float) -> None:
    w = normal(500)
    period = 2 * math.pi / omega
    assert torch.equal(square(-w, omega), -square(w, omega))
    assert torch.equal(square(w + period, omega), square(w, omega))
    assert torch.equal(square(w + period / 2, omega), -square(w, omega))


@pytest.mark.parametrize("stage", [1, 2])
def test_layers_follow_the_formula_with_its_gradients(stage: int) -> None:
    torch.manual_seed(0)
    layer = BiPerLinear(5, 3, omega=7.0, stage=stage).double().eval()
    x, upstream = (0.7 * normal(4, 5)).requires_grad_(), normal(4, 3, seed=1)
    w, alpha = layer.weight.detach(), layer.alpha.detach()
    b = torch.sin(7 * w) if stage == 1 else torch.sin(7 * w).sign()
    y = layer(x)
    torch.testing.assert_close(y, alpha * (x.detach().sign() @ b.T) + layer.bias)
    y.backward(upstream)
    found = [t.grad for t in (layer.weight, layer.alpha, layer.bias, x)]
    scaled = upstream * alpha
    expected = [
        (scaled.T @ x.detach().sign()) * 7 * torch.cos(7 * w),
        (upstream * (x.detach().sign() @ b.T)).sum(0),
        upstream.sum(0),
        (scaled @ b) * (2 - 2 * x.detach().abs()).clamp(min=0),
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_training_normalises_each_sample_without_changing_the_outputs() -> None:
    x = (3 * normal(2, 3, 4, 4)).requires_grad_()
    upstream = normal(2, 3, 4, 4, seed=1)
    assert torch.equal(binary_input(x, True), binary_input(x, False))
    (found,) = torch.autograd.grad((binary_input(x, True) * upstream).sum(), x)
    for i in range(2):
        one = x[i].detach().clone().requires_grad_()
        z = one / torch.sqrt(((one - one.mean()) ** 2).sum() / 47 + 1e-5)
        into_z = upstream[i] * (2 - 2 * z.detach().abs()).clamp(min=0)
        (expected,) = torch.autograd.grad((z * into_z).sum(), one)
        torch.testing.assert_close(found[i], expected)
    assert binary_input(torch.zeros(3, 1), True).tolist() == [[1.0]] * 3


def test_convolutions_scale_each_output_channel() -> None:
    conv = BiPerConv2d(2, 3, 3, padding=1, stage=2).double().eval()
    x = normal(2, 2, 5, 5)
    w = torch.sin(20 * conv.weight).sign()
    expected = F.conv2d(x.sign(), w, padding=1) * conv.alpha + conv.bias[:, None, None]
    torch.testing.assert_close(conv(x), expected)
    assert conv.alpha.shape == (3, 1, 1)
    alpha = BiPerLinear(2, 4000).alpha.detach()
    assert 0 <= float(alpha.min()) < 0.01
    assert 0.99 < float(alpha.max()) < 1


LAYOUTS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 1), "groups": 2, "dilation": (1, 2)},
    {"bias": False},
]


def test_packed_layers_equal_the_layers() -> None:
    torch.manual_seed(0)
    linear = BiPerLinear(131, 6, stage=2).double().eval()
    x = normal(3, 2, 131)
    torch.testing.assert_close(pack(linear)(x), linear(x).detach(), rtol=1e-13, atol=1e-13)
    for layout in LAYOUTS:
        conv = BiPerConv2d(4, 6, 3, stage=2, **layout).double().eval()
        image = normal(2, 4, 9, 8)
        image[0, 0, 0] = 0
        torch.testing.assert_close(pack(conv)(image), conv(image).detach(), rtol=1e-13, atol=1e-13)


def test_the_error_is_the_least_square_distance() -> None:
    w = 0.1 * normal(2000)
    wave = torch.sin(20 * w)
    scales = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    least = float((wave - scales * wave.sign()).square().mean(1).min())
    assert quantisation_error(w, 20) == pytest.approx(least, abs=1e-6)
    assert quantisation_error(torch.tensor([0.3, -0.3]), 2.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("omega", [1.0, 10.0, 20.0, 200.0])
def test_the_error_of_a_law_is_that_of_its_samples(omega: float) -> None:
    generator = np.random.default_rng(0)
    for law, sample in (("laplace", generator.laplace), ("gaussian", generator.normal)):
        weights = torch.from_numpy(sample(0, 0.05, 400_000))
        assert quantisation_error(weights, omega) == pytest.approx(law_error(law, 0.05, omega), abs=7e-4)


def test_the_error_tends_to_that_of_a_uniform_phase() -> None:
    phase = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)[:-1]
    assert quantisation_error(phase, 1.0) == pytest.approx(LIMIT, abs=1e-9)
    assert pytest.approx(0.0947, abs=5e-5) == LIMIT
    assert law_error("gaussian", 1.0, 50.0) == pytest.approx(LIMIT, abs=1e-9)
    assert law_error("laplace", 0.05, 1.0) == pytest.approx(0.05**2, rel=0.05)  # for small phases Var|w|


def test_conversion_and_stages() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)
    )
    found = binarize(net, omega=10.0, seed=3)
    assert [type(m).__name__ for m in found] == ["Conv2d", "BiPerConv2d", "Flatten", "BiPerLinear", "Linear"]
    assert torch.equal(found[1].weight, net[1].weight)
    assert found[1].omega == 10.0
    assert torch.equal(found[3].alpha, binarize(net, seed=3)[3].alpha)
    assert not torch.equal(found[3].alpha, binarize(net, seed=4)[3].alpha)
    expected = sum(torch.sin(10 * found[i].weight).square().mean() for i in (1, 3))
    torch.testing.assert_close(penalty(found), expected)
    assert set_stage(found, 2) is found
    assert [found[i].stage for i in (1, 3)] == [2, 2]
    assert sum(isinstance(m, PackedBiPer) for m in pack(found)) == 2
    assert float(penalty(net)) == 0


def test_stages_follow_one_another() -> None:
    x, y = normal(64, 6, dtype=torch.float32), torch.arange(64) % 2
    split = Split(x, y, x, y, 2, "toy")
    net = binarize(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)))
    before = net[1].weight.detach().clone()
    result = fit_in_stages(net, split, (1, 0), (0.1, 0.0), seed=1)
    assert net[1].stage == 2
    middle = net[1].weight.detach().clone()
    assert not torch.equal(middle, before)
    fit_in_stages(net, split, (0, 1), (0.0, 0.1), seed=1)
    assert not torch.equal(net[1].weight, middle)
    assert set(result.metrics) >= {"loss", "accuracy"}
    with pytest.raises(WorkingPapersError, match="at least one epoch; got 0 in both"):
        fit_in_stages(net, split, (0, 0))


def test_the_baseline_is_the_clipped_straight_through_sign() -> None:
    conv = SignConv2d(2, 3, 2, bias=False).double().eval()
    conv.weight.data.mul_(4)
    x = normal(2, 2, 4, 4)
    w = conv.weight.detach()
    size = w.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(conv(x), F.conv2d(x.sign(), w.sign() * size))
    (found,) = torch.autograd.grad(conv(x).sum(), conv.weight)
    into = F.unfold(x.sign(), 2).sum((0, 2)).view(1, 2, 2, 2) * size * (w.abs() <= 1)
    torch.testing.assert_close(found, into)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(WorkingPapersError, match="omega is a frequency above 0; got 0"):
        BiPerLinear(2, 3, omega=0)
    with pytest.raises(WorkingPapersError, match="training has the stages 1 and 2; got 3"):
        BiPerConv2d(2, 3, 3, stage=3)
    with pytest.raises(WorkingPapersError, match="weights can be packed in stage 2"):
        pack(BiPerLinear(2, 3))
    with pytest.raises(WorkingPapersError, match="no law of weights is named 'laplacian'; the nearest"):
        law_error("laplacian", 1.0, 1.0)


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("biper", 3, 4, 3), BiPerConv2d)
    assert isinstance(make("biper.linear", 3, 4, omega=5.0), BiPerLinear)
    assert [c.says for c in claims("biper").values()] == [c["says"] for c in record("biper").claims]

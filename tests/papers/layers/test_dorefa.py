"""DoReFa-Net: the quantisers by hand and in 50 digits, their gradients, unbiased noise, packed equals float."""

import mpmath
import numpy as np
import pytest
import torch
from tests.exact import expect_exact
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers import _lowbit_bench as bench
from workingpapers.papers.layers._packed import Window
from workingpapers.papers.layers._rounding import (
    biases,
    quantize,
    quantize_activation,
    quantize_gradient,
    quantize_weight,
)
from workingpapers.papers.layers.dorefa import (
    DoReFaConv2d,
    DoReFaLinear,
    PackedDoReFa,
    convert,
    pack,
)
from workingpapers.surgery import changes


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_values_of_the_paper() -> None:
    x = torch.tensor([0.4, 0.0, 1.0, 0.5, 0.51], dtype=torch.float64)
    torch.testing.assert_close(quantize(x[:3], 2), torch.tensor([1 / 3, 0.0, 1.0], dtype=torch.float64))
    assert quantize(x, 1).tolist() == [0, 0, 1, 0, 1]  # a half goes to the even number
    assert quantize_activation(torch.tensor([-3.0, 0.2, 0.8, 7.0]), 1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_rounding_is_exact(k: int) -> None:
    steps = 2**k - 1

    def exact(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.nint(steps * min(max(x, 0), 1)) / steps

    expect_exact(lambda x: quantize_activation(x, k), exact, lambda x: mpmath.mpf(0 <= x <= 1), every=3)


def test_weights_of_one_bit_are_the_scaled_signs() -> None:
    w = torch.tensor([[1.0, -2.0], [0.0, -5.0]], requires_grad=True)
    found = quantize_weight(w, 1)
    assert found.tolist() == [[2, -2], [2, -2]]
    (3 * found).sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, torch.full((2, 2), 3.0))
    assert quantize_weight(w, 32) is w


@pytest.mark.parametrize("k", [2, 3, 8])
def test_weights_of_several_bits_follow_the_formula(k: int) -> None:
    w, steps = normal(5, 7, dtype=torch.float64), 2**k - 1
    t = np.tanh(w.numpy())
    u = t / (2 * np.abs(t).max()) + 0.5
    np.testing.assert_allclose(quantize_weight(w, k).numpy(), 2 * np.round(steps * u) / steps - 1, atol=1e-15)
    assert float(quantize_weight(w, k).abs().max()) == 1.0
    assert len(quantize_weight(normal(1000), k).unique()) <= 2**k
    assert torch.isfinite(quantize_weight(torch.zeros(3), k)).all()


def test_gradients_flow_through_tanh_and_the_scaling() -> None:
    w, weights = normal(9, dtype=torch.float64).requires_grad_(), normal(9, seed=1, dtype=torch.float64)
    found = torch.autograd.grad((quantize_weight(w, 3) * weights).sum(), w)[0]
    smooth = torch.tanh(w) / torch.tanh(w).abs().max()  # the rounding left out: 2 u - 1
    torch.testing.assert_close(found, torch.autograd.grad((smooth * weights).sum(), w)[0])
    x = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    quantize_activation(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0]


def test_gradients_are_quantised_by_sample_without_bias() -> None:
    gradient = normal(4, 6, dtype=torch.float64) * torch.tensor([[1.0], [1e-3], [100.0], [0.0]])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([quantize_gradient(gradient, 3, generator=generator) for _ in range(20_000)])
    error = (draws.mean(0) - gradient).abs()
    assert bool((error <= 4.5 * draws.std(0) / 20_000**0.5 + 1e-12).all())
    largest = gradient.abs().amax(1, keepdim=True)
    assert bool((draws.abs() <= largest).all())
    levels = (draws[:, :3] / largest[:3] + 1) * 7 / 2
    torch.testing.assert_close(levels, levels.round(), atol=1e-9, rtol=0)
    assert bool((draws.std(0)[:3] > 0).any(1).all())
    extreme = gradient.abs() == largest
    assert torch.equal(draws[7][extreme], gradient[extreme])


def test_gradients_without_noise_are_rounded() -> None:
    gradient = torch.tensor([[4.0, 0.9, -1.4, 0.0]])
    # u * 7 = 7, 4.2875, 2.275, 3.5; the last is rounded to the even 4
    expected = 8 * (torch.tensor([[7.0, 4.0, 2.0, 4.0]]) / 7 - 0.5)
    torch.testing.assert_close(quantize_gradient(gradient, 3, noise=False), expected)
    assert quantize_gradient(gradient, 32) is gradient
    images = normal(2, 3, 4, 4)
    whole = quantize_gradient(images, 2, noise=False).flatten(1)
    torch.testing.assert_close(whole, quantize_gradient(images.flatten(1), 2, noise=False))


def test_layers_quantise_weight_input_and_the_gradient_of_the_output() -> None:
    torch.manual_seed(0)
    layer, x = DoReFaLinear(5, 3, w_bits=2, a_bits=3, g_bits=2, noise=False), normal(4, 5).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(
        y, F.linear(quantize_activation(x, 3), quantize_weight(layer.weight, 2), layer.bias)
    )
    upstream = normal(4, 3, seed=1)
    y.backward(upstream)
    arrived = quantize_gradient(upstream, 2, noise=False)
    assert layer.bias.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(layer.bias.grad, arrived.sum(0))
    inside = ((x > 0) & (x < 1)).float()
    torch.testing.assert_close(x.grad, inside * (arrived @ quantize_weight(layer.weight, 2)))


def test_full_precision_is_the_plain_layer() -> None:
    layer, conv = DoReFaLinear(4, 3, True, 32, 32, 32), DoReFaConv2d(2, 3, 3, w_bits=32, a_bits=32, g_bits=32)
    x, image = normal(2, 4), normal(2, 2, 5, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(conv(image), F.conv2d(image, conv.weight, conv.bias))


LAYOUTS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": (2, 1), "padding_mode": "circular", "groups": 2},
    {"padding": 1, "stride": (1, 3), "bias": False},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=[str(i) for i in range(len(LAYOUTS))])
def test_rows_and_images_are_the_convolution(layout: dict) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), **layout).double()
    window, x = Window.of(conv), normal(2, 4, 9, 8, dtype=torch.float64)
    kernels = conv.weight.flatten(1).unflatten(0, (window.groups, -1))
    y = window.image(window.rows(x) @ kernels.transpose(1, 2), x)
    torch.testing.assert_close(y + (0 if conv.bias is None else conv.bias[:, None, None]), conv(x))


@pytest.mark.parametrize(("w", "a"), [(1, 1), (1, 2), (2, 1), (3, 4), (4, 2)])
def test_packed_layers_equal_the_simulation(w: int, a: int) -> None:
    torch.manual_seed(0)
    linear = DoReFaLinear(70, 5, w_bits=w, a_bits=a).double()
    x = 2 * normal(3, 2, 70, dtype=torch.float64)
    torch.testing.assert_close(pack(linear)(x), linear(x).detach(), rtol=1e-12, atol=1e-12)
    for layout in LAYOUTS:
        conv = DoReFaConv2d(4, 6, (3, 2), w_bits=w, a_bits=a, **layout).double()
        image = 2 * normal(2, 4, 9, 8, dtype=torch.float64)
        torch.testing.assert_close(pack(conv)(image), conv(image).detach(), rtol=1e-12, atol=1e-12)


def test_conversion_leaves_the_ends_and_keeps_the_weights() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)
    )
    state = torch.get_rng_state()
    found = convert(net, 2, 3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m).__name__ for m in found] == [
        "Conv2d",
        "DoReFaConv2d",
        "Flatten",
        "DoReFaLinear",
        "Linear",
    ]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), found.parameters(), strict=True))
    assert found[3].weight is not net[3].weight
    assert (found[1].w_bits, found[1].a_bits, found[1].g_bits) == (2, 3, 4)
    assert len(changes(found)) == 2
    everything = convert(net, skip_first_last=False)
    assert sum(isinstance(m, DoReFaConv2d | DoReFaLinear) for m in everything) == 4
    small = convert(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    assert not any(isinstance(m, DoReFaLinear) for m in small)
    packed = pack(found)
    assert [isinstance(m, PackedDoReFa) for m in packed] == [False, True, False, True, False]


def test_bad_arguments_are_told() -> None:
    with pytest.raises(WorkingPapersError, match="w_bits is 1 to 16, or 32 for full precision; got 0"):
        DoReFaLinear(3, 2, w_bits=0)
    with pytest.raises(
        WorkingPapersError, match="only weights and activations of 1 to 16 bits can be packed"
    ):
        pack(DoReFaLinear(3, 2, a_bits=32))
    packed = pack(DoReFaConv2d(2, 3, 3)), pack(DoReFaLinear(3, 2))
    with pytest.raises(WorkingPapersError, match=r"does not fit the layer; got \(1, 3, 5, 5\)"):
        packed[0](torch.zeros(1, 3, 5, 5))
    with pytest.raises(WorkingPapersError, match=r"the layer takes 3 features; got \(1, 4\)"):
        packed[1](torch.zeros(1, 4))


def test_the_bench_finds_gradients_and_biases() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = normal(5, 3), torch.tensor([0, 1, 0, 1, 1])
    found = bench.output_gradients(net, nn.Linear, x, y)
    assert [m for m, _ in found] == [net[0], net[2]]
    probabilities = net(x).softmax(1) - F.one_hot(y)
    torch.testing.assert_close(found[1][1], probabilities / 5)
    torch.testing.assert_close(
        found[0][1], (probabilities / 5 @ net[2].weight) * (1 - net[1](net[0](x)) ** 2)
    )
    plain, noisy = biases(torch.tensor([[1.0, 0.0, 0.0]]), 4, 500, torch.Generator().manual_seed(0))
    assert plain == pytest.approx((2 / 3) ** 0.5 / 15)  # zeros are rounded up by half a step
    assert 0 < noisy < 0.2 * plain
    assert bench.packed_against_float(0, 8, 100, 8)["difference"] == 0


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("dorefa", 3, 4, g_bits=2), DoReFaLinear)
    assert isinstance(make("dorefa.conv2d", 3, 4, 3), DoReFaConv2d)
    assert [c.says for c in claims("dorefa").values()] == [c["says"] for c in record("dorefa").claims]

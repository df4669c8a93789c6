"""AF-KAN: its features, attention that sums to one, scopes of the norm, and the networks it is compared with."""

import numpy as np
import pytest
import torch

from workingpapers.engines.bases import ReLUPower
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.layers.af_kan import (
    ACTIVATIONS,
    COMBINATIONS,
    AFKANLayer,
    af_kan_network,
    count,
    matched_width,
    mlp_network,
    relu_kan_network,
    scaled,
)


def test_with_relu_the_features_are_relu_kans_up_to_their_constant():
    layer, basis = AFKANLayer(4, 2, act="relu", norm="none", norm_scope="none"), ReLUPower(4, 5, 3)
    x = torch.rand(30, 4) * 2 - 0.5
    r = 4 * 5**2 / (3 + 1) ** 2
    assert torch.allclose(r**2 * layer.features(x), basis(x), atol=1e-6)


@pytest.mark.parametrize(
    ("func", "by_hand"),
    [
        ("quad1", lambda u, v: u * u * v * v),
        ("quad2", lambda u, v: u * v + u * u + v * v),
        ("sum", lambda u, v: u + v),
        ("prod", lambda u, v: u * v),
        ("sum_prod", lambda u, v: u + v + u * v),
        ("cubic1", lambda u, v: u**3 + u * v * v + v * u * u + v**3),
        ("cubic2", lambda u, v: u**3 * v**3),
    ],
)
def test_combinations_are_those_of_the_paper(func, by_hand):
    layer = AFKANLayer(1, 1, grid=2, order=1, act="tanh", func=func)
    u, v = np.tanh(0.3 - np.array([-0.5, 0.0, 0.5])), np.tanh(np.array([0.5, 1.0, 1.5]) - 0.3)
    found = layer.features(torch.tensor([[0.3]])).detach().numpy()[0, 0]
    assert found == pytest.approx(by_hand(u, v), rel=1e-5)
    assert set(COMBINATIONS) >= {func}


def test_an_output_by_hand():
    layer = AFKANLayer(3, 2, grid=3, order=1).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.temperature.fill_(2.0)
        f = layer.features(x).numpy()
        f = (f - f.min((1, 2), keepdims=True)) / (f.max((1, 2), keepdims=True) - f.min((1, 2), keepdims=True))
        score = f @ layer.score.weight.numpy()[0]
        weight = np.exp(score / 2) / np.exp(score / 2).sum(1, keepdims=True)
        r = (f * weight[..., None]).sum(-1)
        r = (r - r.mean(1, keepdims=True)) / np.sqrt(r.var(1, keepdims=True) + 1e-5)
        wanted = (r / (1 + np.exp(-r))) @ layer.weight.numpy().T
        assert layer(x).numpy() == pytest.approx(wanted)
        layer.temperature.fill_(0.1)  # no sharper than 1
        sharp = layer.attention(torch.from_numpy(f)).squeeze(-1).numpy()
        assert sharp == pytest.approx(np.exp(score) / np.exp(score).sum(1, keepdims=True))


def test_attention_sums_to_one_over_inputs_or_over_intervals():
    f = torch.rand(7, 4, 8)
    for method, axis in (("global_attn", -2), ("spatial_attn", -1)):
        sums = AFKANLayer(4, 2, method=method).attention(f).sum(axis)
        assert torch.allclose(sums, torch.ones_like(sums))


@pytest.mark.parametrize("method", ["global_attn", "spatial_attn", "multistep"])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_only_the_scope_of_the_batch_mixes_examples(method, scope):
    torch.manual_seed(0)  # for some weights and inputs the first example has both ends of the batch's range
    layer = AFKANLayer(4, 3, method=method, norm="none", norm_scope=scope)
    x, other = torch.randn(2, 6, 4)
    other[0] = x[0]
    gap = (layer(x)[0] - layer(5 * other - 4 * torch.cat([x[:1], 0 * x[1:]]))[0]).abs().max()
    assert (gap < 1e-6) == (scope == "sample")
    assert layer(x.view(2, 3, 4)).shape == (2, 3, 3)


def test_scaling_fills_zero_to_one_and_leaves_constants_finite():
    f = torch.randn(3, 4, 5) * 7
    found = scaled(f, "sample")
    assert found.amin((1, 2)).tolist() == [0, 0, 0]
    assert found.amax((1, 2)).tolist() == [1, 1, 1]
    assert (scaled(f, "batch").min(), scaled(f, "batch").max()) == (0, 1)
    assert not scaled(torch.ones(2, 3, 3), "sample").any()
    assert torch.allclose(scaled(f / f.norm(), "batch"), scaled(f, "batch"), atol=1e-6)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_trains_with_every_norm(act):
    for norm in ("layer", "batch", "none"):
        layer = AFKANLayer(5, 2, act=act, norm=norm)
        layer(torch.randn(9, 5)).square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_parameters_are_an_mlps_and_a_few():
    ours = count(af_kan_network([784, 64, 10]))
    edges = 784 * 64 + 64 * 10
    extra = sum(2 * 8 + 8 + 1 + 2 * d for d in (784, 64))  # intervals, score, temperature, norm
    assert ours == edges + extra
    assert count(mlp_network([784, 64, 10])) == edges + 2 * (784 + 64)
    full = count(relu_kan_network([784, 64, 10]))
    assert full == 8 * edges + 2 * 8 * (784 + 64) + 74
    assert full / ours > 6
    hidden = matched_width(784, 10, ours)
    gaps = [abs(count(relu_kan_network([784, hidden + d, 10])) - ours) for d in (-1, 0, 1)]
    assert gaps[1] == min(gaps)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnknownName, match="'quad2', 'quad1'"):
        AFKANLayer(2, 2, func="quad3")
    with pytest.raises(WorkingPapersError, match="grid is 1 or more and the order 0 or more; got 0 and 3"):
        AFKANLayer(2, 2, grid=0)
    with pytest.raises(WorkingPapersError, match=r"takes 2 features in the last dimension; got \(4, 3\)"):
        AFKANLayer(2, 2)(torch.randn(4, 3))

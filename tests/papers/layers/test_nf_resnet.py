"""Standardised weights, counted variances, conversion block by block, and the net without its branches."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.layers._nf_convert import control, convert
from workingpapers.papers.layers._normfree import (
    NFBlock,
    ScaledWSConv2d,
    ScaledWSLinear,
    gamma_of,
    standardise,
)
from workingpapers.papers.layers._signal import signal_propagation
from workingpapers.papers.layers.nf_resnet import NFResNet, expected_variances
from workingpapers.surgery import changes
from workingpapers.tasks import residual_cnn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(**options: object) -> NFResNet:
    torch.manual_seed(0)
    return NFResNet(((2, 8), (3, 16)), 5, bottleneck=False, stem="cifar", **options)  # type: ignore[arg-type]


def test_gamma_has_its_closed_forms() -> None:
    assert gamma_of(nn.ReLU()) == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), abs=1e-6)
    assert gamma_of(nn.ReLU()) == pytest.approx(1.712859, abs=1e-6)
    assert gamma_of(nn.Identity()) == pytest.approx(1, abs=1e-6)
    assert gamma_of(torch.abs) == pytest.approx(1 / math.sqrt(1 - 2 / math.pi), abs=1e-6)
    # Monte-Carlo constants of the authors' code, for the tanh form of GELU there
    assert gamma_of(nn.SiLU()) == pytest.approx(1.7881, abs=0.002)
    assert gamma_of(nn.GELU("tanh")) == pytest.approx(1.7015, abs=0.002)
    assert gamma_of(nn.PReLU(init=0.0)) == pytest.approx(1.712859, abs=1e-5)
    with pytest.raises(WorkingPapersError, match="Threshold has the variance 0"):
        gamma_of(nn.Threshold(100.0, 1.0))


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 20), (2, 3, 1, 1)])
def test_rows_have_mean_zero_and_norm_gain_times_gamma(shape: tuple[int, ...]) -> None:
    weight, gain = 3 * normal(*shape).double() + 1, normal(shape[0], seed=1).double()
    rows = standardise(weight, gain, 1.7).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(shape[0], dtype=torch.float64))
    torch.testing.assert_close(rows.square().sum(1), (1.7 * gain) ** 2)
    torch.testing.assert_close(standardise(5 * weight - 2, gain, 1.7).flatten(1), rows)


def test_weights_without_spread_stay_finite() -> None:
    weight = torch.ones(2, 4, requires_grad=True)
    rows = standardise(weight, torch.ones(2))
    assert not rows.detach().any()
    rows.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    tiny = standardise(1e-6 * normal(2, 4), torch.ones(2))
    wanted = 1e-6 * normal(2, 4)
    torch.testing.assert_close(tiny, (wanted - wanted.mean(1, keepdim=True)) / 1e-2)  # sqrt(eps)


def test_layers_are_torchs_with_other_weights() -> None:
    x, conv = normal(2, 4, 9, 8), ScaledWSConv2d(4, 6, (3, 2), (2, 1), (1, 0), 1, 2, gamma=1.3)
    conv.gain.data = normal(6)
    w = conv.weight.detach().flatten(1)
    w = (w - w.mean(1, keepdim=True)) / (w.std(1, correction=0, keepdim=True) * w.shape[1] ** 0.5)
    w = (1.3 * conv.gain.detach()[:, None] * w).view_as(conv.weight)
    torch.testing.assert_close(conv(x), F.conv2d(x, w, conv.bias, (2, 1), (1, 0), 1, 2))
    linear = ScaledWSLinear(7, 3, gamma=2.0)
    linear.bias.data = normal(3)
    w = linear.weight.detach()
    w = 2 * (w - w.mean(1, keepdim=True)) / (w.std(1, correction=0, keepdim=True) * 7**0.5)
    torch.testing.assert_close(linear(normal(5, 7)), F.linear(normal(5, 7), w, linear.bias))


def test_the_layer_behind_an_activation_gives_mean_zero_and_variance_one() -> None:
    torch.manual_seed(0)
    x = normal(4000, 256, seed=5)
    for activation in (nn.ReLU(), nn.SiLU(), nn.Tanh()):
        y = ScaledWSLinear(256, 128, gamma=gamma_of(activation))(activation(x)).detach()
        assert float(y.var(0).mean()) == pytest.approx(1, abs=0.02)
        assert float(y.mean(0).square().mean()) < 1e-3


def test_variances_are_counted_within_each_stage() -> None:
    assert expected_variances((3, 2)) == pytest.approx([1.04, 1.08, 1.12, 1.04, 1.08])
    assert expected_variances((2,), alpha=0.5) == pytest.approx([1.25, 1.5])
    betas = [block.beta for block in small().blocks]
    assert [beta**2 for beta in betas] == pytest.approx([1, 1.04, 1.08, 1.04, 1.08])


def test_the_block_is_its_formula() -> None:
    torch.manual_seed(0)
    convs, shortcut = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)], nn.Conv2d(3, 4, 1, 2)
    block, x = NFBlock(convs, shortcut, nn.SiLU, alpha=0.3, beta=1.7), normal(2, 3, 8, 8)
    assert block.gain is not None
    block.gain.data.fill_(0.6)
    first = F.silu(x / 1.7)
    wanted = shortcut(first) + 0.3 * 0.6 * convs[1](F.silu(convs[0](first)))
    torch.testing.assert_close(block(x), wanted)
    plain = NFBlock(convs[1:], None, nn.ReLU, alpha=0.3, beta=2.0, skipinit=False)
    y = normal(2, 4, 5, 5)
    torch.testing.assert_close(plain(y), y + 0.3 * convs[1](torch.relu(y / 2)))


def test_stochastic_depth_drops_whole_branches_and_only_in_training() -> None:
    torch.manual_seed(0)
    block = NFBlock([nn.Conv2d(2, 2, 1)], None, nn.ReLU, 1.0, skipinit=False, stochastic_depth=0.3)
    x = normal(4000, 2, 1, 1)
    branch = block.eval()(x) - x
    found = (block.train()(x) - x) / branch
    kept = found.flatten(1).round().detach()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.03)
    rates = [b.stochastic_depth for b in small(stochastic_depth=0.5).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_at_the_start_blocks_are_the_identity_but_for_transitions() -> None:
    net, x = small(), normal(2, 3, 8, 8)
    h = net.stem(x)
    torch.testing.assert_close(net.blocks[:2](h), h)
    transition = net.blocks[2]
    wanted = transition.shortcut(torch.relu(h / transition.beta))
    torch.testing.assert_close(net.blocks(h), wanted)
    torch.testing.assert_close(net(x), net.head(torch.relu(wanted).mean((2, 3))))


def test_examples_do_not_mix_in_training_mode() -> None:
    net, x = small(skipinit=False).train(), normal(6, 3, 8, 8)
    torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-6)
    mixed = control(net, norm=True).train()
    assert float((mixed(x)[:1] - mixed(x[:1])).detach().abs().max()) > 1e-3


def test_the_control_is_a_preactivation_resnet() -> None:
    net, x = small(skipinit=False), normal(4, 3, 8, 8)
    plain = control(net, norm=False)
    first = plain.blocks[0]
    h = plain.stem(x)
    torch.testing.assert_close(first(h), h + first.convs[1](torch.relu(first.convs[0](torch.relu(h)))))
    assert not any(isinstance(m, ScaledWSConv2d) for m in plain.modules())
    normed = control(net, norm=True)
    convs = sum(isinstance(m, nn.Conv2d) for m in normed.modules())
    assert (
        sum(isinstance(m, nn.BatchNorm2d) for m in normed.modules()) == convs - 1
    )  # shortcut shares, stem none
    assert isinstance(net.blocks[0].convs[0], ScaledWSConv2d)


def test_signal_propagation_measures_channels() -> None:
    net, x = small(skipinit=False), normal(5, 3, 8, 8)
    h = net.stem(x)
    y = net.blocks[0](h).detach()
    numbers = signal_propagation(net, x, NFBlock, ["blocks.0.convs.1"]).numbers
    assert len(numbers) == 11
    assert numbers["blocks.0 squared mean"] == pytest.approx(
        float(y.mean((0, 2, 3)).square().mean()), rel=1e-4
    )
    assert numbers["blocks.0 variance"] == pytest.approx(
        float(y.var((0, 2, 3), correction=0).mean()), rel=1e-4
    )
    branch = (y - h.detach()) / 0.2
    variance = float(branch.var((0, 2, 3), correction=0).mean())
    assert numbers["blocks.0.convs.1 branch variance"] == pytest.approx(variance, rel=1e-3)


def test_in_training_batch_statistics_count_and_stay() -> None:
    net, x = nn.Sequential(nn.BatchNorm2d(3)).train(), 3 + 2 * normal(50, 3, 4, 4)
    numbers = signal_propagation(net, x, nn.BatchNorm2d, training=True).numbers
    assert numbers["0 variance"] == pytest.approx(1, abs=1e-3)
    assert numbers["0 squared mean"] < 1e-8
    assert signal_propagation(net, x, nn.BatchNorm2d).numbers["0 squared mean"] > 5
    assert not net[0].running_mean.any()


class TorchvisionBlock(nn.Module):
    """A block with the attributes of torchvision's Bottleneck, shortcut by pooling and convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))


def test_conversion_of_torchvisions_blocks() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, TorchvisionBlock())
    found, x = convert(model, alpha=0.5, skipinit=False), normal(2, 3, 8, 8)
    block = model[3]

    def ws(conv: nn.Conv2d, y: torch.Tensor, gamma: float = gamma_of(nn.ReLU())) -> torch.Tensor:
        weight = standardise(conv.weight, torch.ones(conv.out_channels), gamma)
        return F.conv2d(y, weight, conv.bias, conv.stride, conv.padding)

    a = torch.relu(ws(model[0], x, 1.0))
    branch = ws(block.conv3, torch.relu(ws(block.conv2, torch.relu(ws(block.conv1, a)))))
    wanted = ws(block.downsample[1], F.avg_pool2d(a, 2)) + 0.5 * branch
    torch.testing.assert_close(found(x), torch.relu(wanted))
    assert len(changes(found)) == 1


def test_conversion_counts_variances_and_leaves_no_norm() -> None:
    torch.manual_seed(0)
    model = residual_cnn(3, 5, (8, 16), blocks_per_stage=3, activation=nn.SiLU)
    found = convert(model)
    blocks = [m for m in found.modules() if isinstance(m, NFBlock)]
    assert [b.beta**2 for b in blocks] == pytest.approx([1, 1.04, 1.08, 1.12, 1.04, 1.08])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())
    assert blocks[0].convs[0].gamma == pytest.approx(gamma_of(nn.SiLU()))
    assert all(isinstance(m, ScaledWSConv2d) for m in found.modules() if isinstance(m, nn.Conv2d))
    # a norm behind the last block tells a pre-activation net, which has its activation there already
    preactivated = nn.Sequential(*model[:9], nn.BatchNorm2d(16), nn.SiLU(), *model[9:])
    again, x = convert(preactivated), normal(2, 3, 8, 8)
    torch.testing.assert_close(again(x), found(x))


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(WorkingPapersError, match="Linear has no residual block that holds its convolutions"):
        convert(nn.Linear(2, 2))
    with pytest.raises(UnknownName, match="no stem is named 'cifar100'; the nearest name is 'cifar'"):
        NFResNet(((1, 8),), stem="cifar100")
    with pytest.raises(WorkingPapersError, match="each stage has at least one block"):
        NFResNet(((0, 8),))


def test_bottlenecks_and_the_large_stem() -> None:
    net = NFResNet(((1, 16), (1, 32)), 7)
    assert net.stem(normal(1, 3, 32, 32)).shape == (1, 4, 8, 8)
    assert [c.out_channels for c in net.blocks[1].convs] == [8, 8, 32]
    assert [c.stride for c in net.blocks[1].convs] == [(1, 1), (2, 2), (1, 1)]
    assert net(normal(2, 3, 32, 32)).shape == (2, 7)

"""Residual units against their formulas, the additive recursion, conversion, and the report of signals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.layers._preact import PreactUnit, preactivate, signal_report
from workingpapers.papers.layers.preact_resnet import PreactResNet
from workingpapers.surgery import changes
from workingpapers.tasks import residual_cnn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """Give every norm statistics and weights of its own; evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            values.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def unit(*args: int, **options: object) -> PreactUnit:
    torch.manual_seed(0)
    return shaken(PreactUnit(*args, **options))  # type: ignore[arg-type, return-value]


def test_orders_are_their_formulas() -> None:
    x = normal(2, 4, 6, 6)
    r = F.relu

    def formula(u: PreactUnit) -> torch.Tensor:
        c1, c2, n1, n2 = u.conv1, u.conv2, u.norm1, u.norm2
        return {
            "full_preact": lambda: x + c2(r(n2(c1(r(n1(x)))))),
            "original": lambda: r(x + n2(c2(r(n1(c1(x)))))),
            "bn_after_add": lambda: r(n2(x + c2(r(n1(c1(x)))))),
            "relu_before_add": lambda: x + r(n2(c2(r(n1(c1(x)))))),
            "relu_only_preact": lambda: x + n2(c2(r(n1(c1(r(x)))))),
        }[u.order]()

    for order in ("full_preact", "original", "bn_after_add", "relu_before_add", "relu_only_preact"):
        u = unit(4, 4, order=order)
        torch.testing.assert_close(u(x), formula(u), msg=order)


def test_the_bottleneck_and_the_shared_activation() -> None:
    u, x = unit(4, 8, 2, bottleneck=True), normal(2, 4, 6, 6)
    a = F.relu(u.norm1(x))
    branch = u.conv3(F.relu(u.norm3(u.conv2(F.relu(u.norm2(u.conv1(a)))))))
    torch.testing.assert_close(u(x), F.conv2d(a, u.shortcut.weight, stride=2) + branch)
    assert [c.kernel_size[0] for c in (u.conv1, u.conv2, u.conv3)] == [1, 3, 1]
    assert (u.conv1.out_channels, u.conv3.in_channels, u.conv1.stride) == (2, 2, (2, 2))
    apart = unit(4, 8, 2, shared=False)
    branch = apart.conv2(F.relu(apart.norm2(apart.conv1(F.relu(apart.norm1(x))))))
    torch.testing.assert_close(apart(x), apart.shortcut(x) + branch)


def test_shortcuts_are_their_formulas() -> None:
    x = normal(2, 4, 6, 6)
    plain = unit(4, 4)
    branch = plain(x) - x
    for shortcut in ("scale", "exclusive_gate", "shortcut_gate", "conv", "dropout"):
        u = unit(4, 4, shortcut=shortcut, gate_bias=0.3)
        u.load_state_dict(plain.state_dict(), strict=False)
        if u.gate is not None:
            torch.testing.assert_close(u.gate.bias.detach(), torch.full((4,), 0.3))
            gate = torch.sigmoid(F.conv2d(x, u.gate.weight, u.gate.bias))
            wanted = (1 - gate) * x + (gate * branch if shortcut == "exclusive_gate" else branch)
        else:
            wanted = {"scale": (x + branch) / 2, "dropout": x + branch}.get(shortcut, u.shortcut(x) + branch)
        torch.testing.assert_close(u(x), wanted, msg=shortcut)


def test_dropout_of_the_shortcut_in_training() -> None:
    u = PreactUnit(4, 4, shortcut="dropout").train()
    skip, _ = u.parts(torch.ones(3, 4, 20, 20))
    assert set(skip.unique().tolist()) == {0.0, 2.0}
    assert float(skip.mean()) == pytest.approx(1.0, abs=0.1)


def test_units_add_up_within_a_stage() -> None:
    torch.manual_seed(0)
    units, x = shaken(nn.Sequential(*(PreactUnit(4, 4) for _ in range(5)))), normal(2, 4, 6, 6)
    total, h = x, x
    for u in units:
        branch = u.parts(h)[1]
        total, h = total + branch, u(h)
    torch.testing.assert_close(units(x), total, rtol=1e-5, atol=1e-5)
    # d loss / d x_l = d loss / d x_L (1 + d sum F / d x_l)
    x = x.requires_grad_()
    h, branches = x, torch.zeros(())
    for u in units:
        branch = u.parts(h)[1]
        branches, h = branches + branch, h + branch
    at_end = normal(2, 4, 6, 6, seed=3)
    (whole,) = torch.autograd.grad((units(x) * at_end).sum(), x)
    (through,) = torch.autograd.grad((branches * at_end).sum(), x)
    torch.testing.assert_close(whole, at_end + through, rtol=1e-4, atol=1e-5)


def test_without_branches_a_stage_is_the_identity_for_full_preactivation_only() -> None:
    x = normal(2, 4, 6, 6)
    for order in ("full_preact", "original"):
        units = nn.Sequential(*(unit(4, 4, order=order) for _ in range(3)))
        for u in units:
            u.conv2.weight.data.zero_()
            u.norm2.bias.data.zero_()
            u.norm2.running_mean.zero_()
        assert torch.equal(units(x), x) == (order == "full_preact")


def test_a_scaled_shortcut_scales_the_gradient_by_its_power() -> None:
    units = nn.Sequential(*(unit(4, 4, shortcut="scale") for _ in range(6)))
    for u in units:
        u.conv2.weight.data.zero_()
    x = normal(2, 4, 6, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(units(x).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.5**6))


@pytest.mark.parametrize(("bottleneck", "depth"), [(False, 20), (True, 29)])
def test_the_net_counts_its_layers(bottleneck: bool, depth: int) -> None:
    net = PreactResNet(depth, widths=(4, 8, 8), bottleneck=bottleneck)
    on_the_way = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(on_the_way) + 1 == depth
    assert len(net.units) == 9
    assert [u.shared for u in net.units].count(True) == 3
    assert net.units[0].shared
    x = normal(2, 3, 8, 8)
    assert net.units(net.stem(x)).shape == (2, 32 if bottleneck else 8, 2, 2)
    late = PreactResNet(20, widths=(4, 8, 8), bottleneck=False, order="original")
    assert len(late.stem) == 3
    assert len(late.last) == 0
    torch.testing.assert_close(late.head(late.units(late.stem(x)).mean((2, 3))), late(x))


def test_the_first_unit_is_activated_before_its_ways_part() -> None:
    torch.manual_seed(0)
    net = shaken(PreactResNet(8, widths=(4, 4, 4), bottleneck=False))
    u, x = net.units[0], normal(2, 3, 8, 8)
    a = F.relu(u.norm1(net.stem(x)))
    torch.testing.assert_close(u(net.stem(x)), a + u.conv2(F.relu(u.norm2(u.conv1(a)))))


def test_convolutions_start_as_by_he() -> None:
    torch.manual_seed(0)
    net = PreactResNet(8, widths=(64, 64, 64), bottleneck=False)
    assert float(net.units[0].conv1.weight.detach().var()) == pytest.approx(2 / (9 * 64), rel=0.03)
    assert float(net.stem[0].weight.detach().var()) == pytest.approx(2 / (9 * 64), rel=0.1)


def test_conversion_keeps_convolutions_and_moves_norms() -> None:
    torch.manual_seed(0)
    model = shaken(residual_cnn(3, 5, (4, 8), blocks_per_stage=2, activation=nn.SiLU))
    found, x = preactivate(model), normal(2, 3, 8, 8)
    s, blocks = F.silu, model[3:7]
    units = [m for m in found.modules() if isinstance(m, PreactUnit)]
    for u in units:
        u.norm1.eps = 1e-5
    h = model[:3](x)
    for number, (block, u) in enumerate(zip(blocks, units, strict=True)):
        a = h if number == 0 else s(u.norm1(h))
        skip = block.shortcut[0](a) if number == 2 else h
        h = skip + block.conv2(s(block.norm1(block.conv1(a))))
    end = s(F.batch_norm(h, torch.zeros(8), torch.ones(8)))
    torch.testing.assert_close(found(x), model[-1](end.mean((2, 3))), rtol=1e-4, atol=1e-5)
    assert len(changes(found)) == 4
    assert not any(isinstance(m, PreactUnit) for m in model.modules())


def test_the_report_measures_gradients_and_branches() -> None:
    torch.manual_seed(0)
    net, x, y = (
        PreactResNet(8, 4, widths=(4, 4, 4), bottleneck=False),
        normal(6, 3, 8, 8),
        torch.arange(6) % 4,
    )
    numbers = signal_report(net, x, y).numbers
    assert len(numbers) == 6
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    net.eval()
    start = net.units[0](net.stem(x)).detach().requires_grad_()
    loss = F.cross_entropy(net.head(net.last(net.units[1:](start)).mean((2, 3))), y)
    (gradient,) = torch.autograd.grad(loss, start)
    assert numbers["1 gradient"] == pytest.approx(float(gradient.norm()), rel=1e-3)
    u, s = net.units[1], start.detach()
    branch = u.conv2(F.relu(u.norm2(u.conv1(F.relu(u.norm1(s))))))
    assert numbers["1 contribution"] == pytest.approx(float((branch.norm() / s.norm()).detach()), rel=1e-3)


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(
        UnknownName, match="no order of a residual unit is named 'full_pre'; the nearest names are"
    ):
        PreactUnit(4, 4, order="full_pre")
    with pytest.raises(UnknownName, match="no shortcut of a residual unit is named 'gate'"):
        PreactUnit(4, 4, shortcut="gate")
    with pytest.raises(WorkingPapersError, match="a bottleneck puts out a multiple of 4 channels; got 6"):
        PreactUnit(4, 6, bottleneck=True)
    with pytest.raises(WorkingPapersError, match=r"the depth is 9 n \+ 2, such as 11 and 20; got 111"):
        PreactResNet(111)
    with pytest.raises(
        WorkingPapersError, match="Linear has no residual block with conv1, bn1, conv2 and bn2"
    ):
        preactivate(nn.Linear(2, 2))
    with pytest.raises(WorkingPapersError, match="Linear has no PreactUnit"):
        signal_report(nn.Linear(2, 2), normal(2, 2), torch.zeros(2))

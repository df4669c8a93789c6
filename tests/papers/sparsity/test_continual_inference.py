"""Continual inference: networks on streams, adapters against matrices written out, pruning, fusion."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._pruning_adapters import (
    Adapted,
    adapted,
    fuse,
    importance,
    prunable_units,
    prune,
    with_adapters,
)
from workingpapers.papers.sparsity.continual_inference import (
    VideoNet,
    compare_online,
    encoder,
    moving_digits,
    small_cnn,
)
from workingpapers.surgery import changes


def test_every_claim_of_the_record_is_measured() -> None:
    assert {c.says for c in claims("continual_inference").values()} == {
        c["says"] for c in record("continual_inference").claims
    }


@torch.no_grad()
def test_a_video_network_frame_by_frame() -> None:
    net = VideoNet(2).eval()
    clips = moving_digits(24, seed=3)
    stream = make("continual_inference")(net, clips[:, :, :16])
    found, _ = stream.steps(clips)
    wanted = torch.stack([net(clips[:, :, t : t + 16]) for t in range(9)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(stream(clips[:, :, :16]), net(clips[:, :, :16]))
    assert "frame 16" in changes(stream)[0]


def test_costs_against_clips() -> None:
    net = encoder(8, 1).eval()
    tokens = torch.randn(1, 30, 8)
    stream = make("continual_inference", time=1)(net, tokens[:, :10])
    found = compare_online(stream, lambda clip: net(clip)[:, -1], tokens, 10, 2)
    assert found["error"] < 1e-5
    assert found["operations"] == pytest.approx(10)
    assert found["time"] > 0


def test_moving_digits_move() -> None:
    stream = moving_digits(90, 16, seed=1)
    assert stream.shape == (1, 1, 90, 16, 16)
    assert float(stream.min()) == 0.0
    mass = stream[0, 0].flatten(1).sum(1)
    torch.testing.assert_close(mass[:40], mass[:1].expand(40))  # one digit, wholly inside
    assert not torch.equal(stream[0, 0, 0], stream[0, 0, 20])
    assert torch.equal(stream, moving_digits(90, 16, seed=1))


def layers() -> nn.Sequential:
    net = small_cnn(12)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.normal_(m.bias)
    return net.eval()


def learn(net: nn.Module) -> nn.Module:
    """Give the changes values other than zero."""
    for p in net.parameters():
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("how", ["splora", "splopa"])
def test_changes_are_products_written_out(how: str) -> None:
    plain = layers()
    net = learn(make(f"continual_inference.{how}")(plain, 3))
    own = adapted(net)["3"]
    change: nn.Module = own.change
    if how == "splora":
        matrix = change.b.detach() @ change.a.detach()
    else:
        whole = sum(
            torch.kron(a, u @ v)
            for a, u, v in zip(change.alphas.detach(), change.u.detach(), change.v.detach(), strict=True)
        )
        matrix = whole[:12, :108]
    own.rows[2] = False
    own.columns[5] = False
    wanted = plain[3].weight.detach() + matrix.view(12, 12, 3, 3)
    wanted[2], wanted[:, 5] = 0.0, 0.0
    torch.testing.assert_close(own.weight().detach(), wanted)
    x = torch.randn(2, 12, 5, 5)
    bias = own.layer.bias.detach().clone()
    bias[2] = 0.0
    torch.testing.assert_close(own(x).detach(), F.conv2d(x, wanted, bias, 2, 1))


def test_only_changes_biases_and_norms_are_learnt() -> None:
    net = make("continual_inference.splora")(small_cnn(12), rank=2)
    x, y = torch.randn(8, 1, 6, 6), torch.arange(8)
    F.cross_entropy(net(x), y).backward()
    assert all(a.layer.weight.grad is None for a in adapted(net).values())
    assert all(a.change.b.grad is not None for a in adapted(net).values())
    assert adapted(net)["3"].learnt() == 2 * (12 + 108) + 12
    assert adapted(with_adapters(small_cnn(12), "fine-tuning", 1))["3"].learnt() == 12 * 108 + 12


@pytest.mark.parametrize("how", ["splora", "splopa", "fine-tuning"])
@pytest.mark.parametrize("measure", ["magnitude", "taylor"])
def test_fused_networks_give_the_same(how: str, measure: str) -> None:
    plain, x, y = layers(), torch.randn(20, 1, 9, 9), torch.arange(20) % 10
    units = prunable_units(plain, x[:2])
    assert list(units) == ["0", "3", "6"]
    net = learn(with_adapters(plain, how, 3))
    prune(net, units, importance(net, x, y, measure), 0.5)
    prune(net, units, importance(net, x, y, measure), 0.25)
    small = fuse(net, units)
    assert [tuple(small[i].weight.shape) for i in (0, 3, 6)] == [(3, 1, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)]
    assert small[4].num_features == 3
    assert not any(isinstance(m, Adapted) for m in small.modules())
    wanted = net(x).detach()
    torch.testing.assert_close(
        small(x).detach(), wanted, rtol=1e-6, atol=1e-6 * float(1 + wanted.abs().max())
    )
    counts = {"splora": 3 * (3 + 27) + 3, "fine-tuning": 3 * 27 + 3}
    if how in counts:
        assert adapted(net)["3"].learnt() == counts[how]


def test_blocks_are_counted_where_any_of_them_is_kept() -> None:
    own = adapted(make("continual_inference.splopa", prototypes=2, block=4)(nn.Sequential(nn.Linear(6, 9))))[
        "0"
    ]
    assert own.learnt() == 2 * (3 * 2 + 8) + 9
    own.rows[:] = torch.arange(9) < 5  # two of three blocks of rows
    own.columns[:] = torch.arange(6) >= 4  # one of two blocks of columns
    assert own.learnt() == 2 * (2 * 1 + 8) + 5


def test_pruning_keeps_the_best_and_never_brings_back() -> None:
    plain, x = layers(), torch.randn(4, 1, 9, 9)
    units = prunable_units(plain, x)
    net = with_adapters(plain, "splora", 2)
    scores = {name: torch.randperm(12).double() for name in units}
    prune(net, units, scores, 0.5)
    for name in units:
        assert torch.equal(adapted(net)[name].rows, scores[name] >= 6)
    prune(net, units, {name: -s for name, s in scores.items()}, 0.25)
    assert torch.equal(adapted(net)["0"].rows, (scores["0"] >= 6) & (scores["0"] < 9))
    assert torch.equal(adapted(net)["3"].columns, adapted(net)["0"].rows)
    with pytest.raises(WorkingPapersError, match="share of channels"):
        prune(net, units, scores, 0.0)


def test_importance_is_weight_times_slope() -> None:
    net = learn(with_adapters(layers(), "splora", 2))
    x, y = torch.randn(6, 1, 9, 9), torch.arange(6)
    found = importance(net, x, y)["3"]
    own, step = adapted(net)["3"], 1e-3
    weight = own.layer.weight
    whole = own.weight().detach().double()

    def loss(shift: Tensor) -> float:
        old = weight.data.clone()
        weight.data.add_(shift.to(weight))
        value = float(F.cross_entropy(net(x).double(), y).detach())
        weight.data.copy_(old)
        return value

    row = torch.zeros_like(weight)
    slope = torch.zeros(12, 3, 3)
    for i in range(12):
        for a in range(3):
            row.zero_()
            row[4, i, a, 1] = step
            slope[i, a, 1] = (loss(row) - loss(-row)) / (2 * step)
    partial_sum = (whole[4].abs() * slope.abs())[:, :, 1].sum()
    assert float(found[4]) >= 0.98 * float(partial_sum) - 1e-3
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(WorkingPapersError, match="taylor"):
        importance(net, x, y, "tailor")


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(WorkingPapersError, match="no linear layer"):
        with_adapters(nn.Sequential(nn.ReLU()), "splora", 2)
    with pytest.raises(WorkingPapersError, match="at least 1"):
        make("continual_inference.splora")(small_cnn(4), rank=0)

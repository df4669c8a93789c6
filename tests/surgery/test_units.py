"""Who reads a layer's units: shown by cutting them, which must change nothing but what is said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.surgery.units import Units, incoming, outgoing, units_of
from workingpapers.tasks import char_gpt, cnn, mlp, residual_cnn


class Gated(nn.Module):
    """A gated layer by two linear ones, or by one that is cut in half."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.gate, self.up = nn.Linear(6, 10 if fused else 5), nn.Linear(6, 5)
        self.down = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            gate, up = self.gate(x).chunk(2, -1)
        else:
            gate, up = self.gate(x), self.up(x)
        return x + self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Called(nn.Module):
    """Called activations, pooling, turning, a mean, and a read-out in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 8, 3, groups=2)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.max_pool2d(self.norm(self.conv(x)).relu_(), 2)
        h = torch.relu(self.wide(h)).permute(0, 2, 3, 1)
        h = h.reshape(len(x), -1, 8).mean(1)
        return self.one(h), self.two(h)


def check_by_cutting(model: nn.Module, x: Tensor, name: str, by_readers: bool = True) -> Units:
    """A closed layer's units do nothing to the outputs once their outgoing weights are zero, and did before."""
    found = units_of(model, x)[name]
    assert found.closed
    chosen = torch.arange(found.count) % 3 == 1
    model.eval()

    def out() -> Tensor:
        y = model(x)
        return torch.cat([v.flatten() for v in y]) if isinstance(y, tuple) else y.flatten()

    def shaken() -> Tensor:
        held = found.layer.weight.detach().clone()  # type: ignore[operator]
        mask = incoming(found.layer, chosen)
        found.layer.weight.add_(mask * torch.randn(mask.shape))  # type: ignore[operator]
        y = out()
        found.layer.weight.copy_(held)  # type: ignore[operator]
        return y

    with torch.no_grad():
        assert not torch.allclose(out(), shaken(), atol=1e-3)
        for reader in found.readers:
            reader.layer.weight.mul_(~outgoing(reader, chosen))  # type: ignore[operator]
        torch.testing.assert_close(out(), shaken(), rtol=0.0, atol=1e-6)
        kept = torch.arange(found.count) % 3 == 2
        chosen = kept
        assert not torch.allclose(out(), shaken(), atol=1e-3)
    return found


@pytest.mark.parametrize(
    ("build", "shape", "name", "readers", "norms", "activations"),
    [
        (lambda: mlp([4, 8, 7, 3]), (5, 4), "1", [("3", 1)], [], ["2"]),
        (lambda: mlp([4, 8, 3], norm=nn.BatchNorm1d), (5, 4), "1", [("4", 1)], ["2"], ["3"]),
        (
            lambda: mlp([4, 8, 3], norm=nn.LayerNorm, activation=nn.GELU),
            (5, 4),
            "1",
            [("4", 1)],
            ["2"],
            ["3"],
        ),
        (lambda: cnn(1, 3, (6, 9), size=12), (2, 1, 12, 12), "3", [("7", 9)], [], ["4"]),
        (lambda: cnn(1, 3, (6, 9), size=12), (1, 1, 12, 12), "0", [("3", 1)], [], ["1"]),
        (Called, (2, 2, 14, 14), "conv", [("wide", 1)], ["norm"], [":relu"]),
        (Called, (2, 2, 14, 14), "wide", [("one", 1), ("two", 1)], [], [":relu#2"]),
        (lambda: Gated(False), (4, 3, 6), "up", [("down", 1)], [], []),
        (lambda: Gated(False), (4, 3, 6), "gate", [("down", 1)], [], [":silu"]),
    ],
)
def test_closed_units(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    name: str,
    readers: Any,
    norms: Any,
    activations: Any,
) -> None:
    model = build()
    norm = any(isinstance(m, nn.LayerNorm) for m in model.modules())
    x = torch.randn(shape)
    found = units_of(model, x)[name] if norm else check_by_cutting(model, x, name)
    assert found.closed
    assert [(r.name, r.block) for r in found.readers] == readers
    assert [n.name for n in found.norms] == norms
    assert [a.name for a in found.activations] == activations


def test_products_know_their_partners_and_halves() -> None:
    x = torch.randn(4, 3, 6)
    found = units_of(Gated(False), x)
    assert (found["gate"].partners, found["up"].partners) == (("up",), ("gate",))
    fused = units_of(Gated(True), x)["gate"]
    assert fused.closed
    assert [(r.name, r.start, r.count) for r in fused.readers] == [("down", 0, 5), ("down", 5, 5)]
    assert [(a.name, a.start, a.count) for a in fused.activations] == [(":silu", 0, 5)]
    chosen = torch.zeros(10, dtype=torch.bool)
    chosen[7] = True
    first, second = (outgoing(r, chosen) for r in fused.readers)
    assert not bool(first.any())
    assert second.any(0).tolist() == [False, False, True, False, False]


def test_sums_outputs_and_attention_leave_units_open() -> None:
    net = residual_cnn(1, 3, (4, 6))
    found = units_of(net, torch.randn(2, 1, 8, 8))
    closed = {name for name, units in found.items() if units.closed}
    assert closed == {"3.conv1", "4.conv1"}
    decoder = units_of(char_gpt(11, 8, 2, 2, 6), torch.randint(11, (2, 6)))
    assert {n for n, units in decoder.items() if units.closed} == {"blocks.0.expand", "blocks.1.expand"}
    expand = decoder["blocks.1.expand"]
    assert [r.name for r in expand.readers] == ["blocks.1.contract"]
    assert [a.name for a in expand.activations] == ["blocks.1.activation"]
    assert not units_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.randn(1, 2))["0"].closed


class Conv1D(nn.Module):
    """GPT-2's linear layer as Hugging Face writes it, weight (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], self.nf)


def test_weights_kept_the_other_way_round() -> None:
    model = nn.Sequential(Conv1D(9, 4), nn.GELU(approximate="tanh"), Conv1D(4, 9))
    found = check_by_cutting(model, torch.randn(2, 3, 4), "0")
    chosen = torch.arange(9) == 5
    assert incoming(found.layer, chosen).nonzero()[:, 1].unique().tolist() == [5]
    assert outgoing(found.readers[0], chosen).nonzero()[:, 0].unique().tolist() == [5]


def test_a_run_leaves_nothing_behind() -> None:
    model, x = cnn(1, 3, (4,), size=8).train(), torch.randn(2, 1, 8, 8)
    units_of(model, x)
    assert all(m.training for m in model.modules())
    assert not x.__dict__
    assert not any(p.__dict__ for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

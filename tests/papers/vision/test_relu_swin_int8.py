"""ReLU in Swin: exact requantising, int8 layers against integers, windows against loops, replacement by stages."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.vision._int8 import (
    QuantLinear,
    QuantMLP,
    conversions,
    mlp_parts,
    quantise_model,
    requantise,
    requantise_relu,
)
from workingpapers.papers.vision._swin import Merge, Swin, WindowAttention
from workingpapers.papers.vision.relu_swin_int8 import distil, gelus, replace_gelu
from workingpapers.surgery import changes


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_relu_commutes_with_requantising() -> None:
    far = torch.tensor([-(2**31), 2**31 - 1, 0, 1, -1])
    acc = torch.cat([torch.arange(-70_000, 70_000), far]).double()
    for multiplier in (1e-9, 3e-4, 0.0017, 0.5, 1.0):
        m = torch.tensor(multiplier, dtype=torch.float64)
        assert torch.equal(requantise(acc.relu(), m), requantise(acc, m).relu())
        assert torch.equal(requantise_relu(acc, m), requantise(acc, m).relu())
    assert requantise(torch.tensor([2.5, 3.5, -2.5, 300.0, -300.0]), torch.tensor(1.0)).tolist() == [
        2, 4, -2, 127, -128
    ]  # fmt: skip


def test_relu_commutes_with_scales_and_gelu_does_not() -> None:
    x = normal(1000)
    torch.testing.assert_close((2 * x).relu() / 2, x.relu())
    assert float((F.gelu(2 * x) / 2 - F.gelu(x)).abs().max()) > 0.01


def test_int8_layers_are_exact_on_multiples_of_their_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (5, 20), generator=generator)
    codes[:, 0] = 127
    linear = nn.Linear(20, 5)
    unit = torch.tensor([0.5, 0.25, 1.0, 2.0, 0.125])
    with torch.no_grad():
        linear.weight.copy_(codes * unit[:, None])
        linear.bias.copy_(torch.arange(5) * unit * 0.25)
    x = torch.randint(-128, 128, (7, 20), generator=generator) * 0.25
    assert torch.equal(QuantLinear(linear, torch.tensor(0.25))(x), linear(x))


def test_int8_layers_are_integer_arithmetic() -> None:
    linear, scale = nn.Linear(6, 4), torch.tensor(0.02)
    x = normal(9, 6, dtype=torch.float32)
    w = linear.weight.detach().numpy().astype(np.float64)
    unit = (np.abs(w).max(1) / 127).astype(np.float32)
    codes = np.clip(np.rint(x.numpy() / np.float32(0.02)), -128, 127).astype(np.int64)
    weights = np.rint(linear.weight.detach().numpy() / unit[:, None]).astype(np.int64)
    offset = np.rint(linear.bias.detach().numpy() / (unit * np.float32(0.02))).astype(np.int64)
    expected = (codes @ weights.T + offset) * (unit * np.float32(0.02)).astype(np.float64)
    np.testing.assert_allclose(QuantLinear(linear, scale)(x).numpy(), expected, rtol=1e-6)


def test_perceptrons_stay_near_and_relu_saves_two_conversions() -> None:
    torch.manual_seed(0)
    x = normal(200, 8, dtype=torch.float32)
    for activation, count in ((nn.ReLU(), 2), (nn.GELU(), 4)):
        net = nn.Sequential(nn.Linear(8, 32), activation, nn.Dropout(), nn.Linear(32, 3)).eval()
        found = quantise_model(net, x)
        assert isinstance(found, QuantMLP)
        assert conversions(found) == count
        error = (found(x) - net(x)).detach()
        assert float(error.norm() / net(x).detach().norm()) < 0.03
        assert float(error.abs().max()) > 0
        hidden = found.hidden(found.first(normal(5, 8).mul(50).round()))
        assert torch.equal(hidden, hidden.round())
        assert bool((hidden.abs() <= 128).all())
    clipped = quantise_model(net, x, percentile=90.0)
    top = torch.quantile(x.abs().flatten(), 0.9) / 127
    torch.testing.assert_close(clipped.input_scale, top)
    with pytest.raises(WorkingPapersError, match="linear layer, activation and linear layer"):
        mlp_parts(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_all_linear_layers_of_a_swin_become_integers() -> None:
    net = Swin(1, 3, 8, (2, 1), (2, 2), window=2)
    x = normal(4, 1, 8, 8, dtype=torch.float32)
    found = quantise_model(net, x)
    assert not any(isinstance(m, nn.Linear) for m in found.modules())
    assert sum(isinstance(m, QuantMLP) for m in found.modules()) == 3
    assert sum(isinstance(m, QuantLinear) for m in found.modules()) == 3 * 2 + 1 + 1
    assert float((found(x) - net(x)).detach().norm() / net(x).detach().norm()) < 0.1


def test_windows_attend_within_themselves() -> None:
    layer = WindowAttention(8, 2, window=2, shift=False).double()
    x = normal(1, 4, 4, 8)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 4)).unbind(3)
    out = torch.empty(4, 4, 8, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            mates = [(2 * (i // 2) + a, 2 * (j // 2) + b) for a in (0, 1) for b in (0, 1)]
            for h in range(2):
                scores = torch.stack([
                    q[0, i, j, h] @ k[0, a, b, h] / 2 + layer.bias[(i - a + 1) * 3 + (j - b + 1), h]
                    for a, b in mates
                ])  # fmt: skip
                values = torch.stack([v[0, a, b, h] for a, b in mates])
                out[i, j, 4 * h : 4 * h + 4] = (scores.softmax(0) @ values).detach()
    torch.testing.assert_close(layer(x)[0], layer.out(out))


def test_shifted_windows_join_neighbours_but_not_opposite_ends() -> None:
    layer = WindowAttention(4, 1, window=2, shift=True).double()
    x = normal(1, 4, 4, 4).requires_grad_()

    def seen(i: int, j: int) -> set[tuple[int, int]]:
        (slope,) = torch.autograd.grad(layer(x)[0, i, j].sum(), x)
        return {(int(a), int(b)) for a, b in (slope[0].abs().sum(-1) > 1e-12).nonzero()}

    assert seen(1, 1) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert seen(0, 0) == {(0, 0)}
    assert seen(0, 2) == {(0, 1), (0, 2)}
    assert seen(3, 3) == {(3, 3)}
    small = WindowAttention(4, 1, window=4, shift=True).double()  # one window: nothing to shift
    (slope,) = torch.autograd.grad(small(x)[0, 0, 0].sum(), x)
    assert bool((slope[0].abs().sum(-1) > 0).all())


def test_merging_joins_two_by_two_tokens() -> None:
    merge = Merge(3).double()
    x = normal(2, 4, 6, 3)
    four = torch.cat([x[:, 2, 4], x[:, 2, 5], x[:, 3, 4], x[:, 3, 5]], -1)
    torch.testing.assert_close(merge(x)[:, 1, 2], merge.reduce(merge.norm(four)))
    with pytest.raises(WorkingPapersError, match=r"image sides are multiples of 16; got \(28, 28\)"):
        Swin(1)(torch.zeros(1, 1, 28, 28))


def test_gelus_are_replaced_in_stages_and_the_teacher_stays() -> None:
    teacher = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    before = [p.detach().clone() for p in teacher.parameters()]
    assert gelus(teacher) == ["1", "3"]
    assert gelus(teacher, "back") == ["3", "1"]
    swapped = replace_gelu(teacher, ["3"])
    assert [type(m).__name__ for m in swapped][1::2] == ["GELU", "ReLU"]
    assert len(changes(replace_gelu(teacher))) == 2
    x = normal(64, 4, dtype=torch.float32)
    split = Split(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long(), 2, "toy")
    student = distil(teacher, split, [["1"], ["3"]], alpha=1.0, temperature=1.0, lr=1e-2, epochs=20)
    assert gelus(student) == []
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))
    assert all(p.requires_grad for p in teacher.parameters())

    def distance(net: nn.Module) -> float:
        with torch.no_grad():
            own, taught = net(x).log_softmax(1), teacher(x).log_softmax(1)
            return float(F.kl_div(own, taught, reduction="batchmean", log_target=True))

    assert distance(student) < 0.5 * distance(replace_gelu(teacher))
    with pytest.raises(WorkingPapersError, match="no order is named 'middle'"):
        gelus(teacher, "middle")


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert make("relu_swin_int8") is replace_gelu
    assert callable(make("relu_swin_int8.quantise", percentile=99.0))
    assert [c.says for c in claims("relu_swin_int8").values()] == [
        c["says"] for c in record("relu_swin_int8").claims
    ]

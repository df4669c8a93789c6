"""LSUV against a plain loop over whole forward passes, its orthonormality, and the order of execution."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.training._deep import INITS, LAYERS, thin_net
from workingpapers.papers.training.lsuv import (
    check_variance,
    lsuv_,
    orthonormal_,
    orthonormalise_,
    unit_variance_,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(99)) * 3 + 1


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (4, 3, 3, 3), (40, 3, 2, 2), (3, 2, 5)])
def test_weights_become_orthonormal(shape: tuple[int, ...]) -> None:
    weight = torch.empty(shape)
    assert orthonormal_(weight, seeded(0)) is weight
    w = weight.flatten(1)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-6)
    assert not torch.equal(weight, orthonormal_(torch.empty(shape), seeded(1)))
    crossed = orthonormal_(torch.empty(shape), seeded(0), transposed=True).transpose(0, 1).flatten(1)
    gram = crossed @ crossed.T if crossed.shape[0] <= crossed.shape[1] else crossed.T @ crossed
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-6)


def test_after_it_weights_are_orthogonal_and_outputs_vary_by_one() -> None:
    model, x = thin_net(nn.Tanh), batch(64, 3, 8, 8)
    assert lsuv_(model, x, generator=seeded(0)) is model
    for layer in (m for m in model if isinstance(m, LAYERS)):
        w = layer.weight.detach().flatten(1)
        assert len(w) <= w.shape[1]
        gram = w @ w.T
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(len(w)), rtol=0, atol=1e-5)
        assert not layer.bias.any()
    variances = check_variance(model, x)
    assert len(variances) == 17
    assert list(variances.values()) == pytest.approx([1.0] * 17, abs=1e-5)


def test_the_variance_step_alone_finds_nothing_left_to_do() -> None:
    model, x = thin_net(nn.ReLU), batch(32, 3, 8, 8)
    lsuv_(model, x)
    before = [p.detach().clone() for p in model.parameters()]
    report = unit_variance_(model, x)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert {scaled.iterations for scaled in report} == {0}


def plain_loop(model: nn.Sequential, x: torch.Tensor, tol: float, max_iter: int) -> list[int]:
    """Algorithm 1 as printed: the whole network runs for every measurement."""
    counts = []
    for i, layer in enumerate(model):
        if not isinstance(layer, LAYERS):
            continue
        for iteration in range(max_iter + 1):
            variance = float(model[: i + 1](x).detach().var(correction=0))
            if abs(variance - 1) < tol or iteration == max_iter:
                break
            layer.weight.data /= math.sqrt(variance)
        counts.append(iteration)
    return counts


@pytest.mark.parametrize(("tol", "max_iter"), [(0.1, 10), (0.01, 3), (0.5, 1)])
def test_one_pass_does_what_the_plain_loop_does(tol: float, max_iter: int) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))
        for layer in model[::2]:  # biases of unlike size, so that one division does not do
            layer.bias.data.normal_(std=0.7)
        return model

    x, one, other = batch(50, 6), build(), build()
    counts = plain_loop(other, x, tol, max_iter)
    report = unit_variance_(one, x, tol=tol, max_iter=max_iter)
    assert [scaled.iterations for scaled in report] == counts
    assert max(counts) > 0
    for found, wanted in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    variances = check_variance(one, x)
    assert [scaled.after for scaled in report] == pytest.approx(list(variances.values()), rel=1e-5)


def test_report_tells_variances_before_and_after() -> None:
    layer, x = nn.Linear(5, 3, bias=False), batch(20, 5)
    before = float(layer(x).detach().var(correction=0))
    (scaled,) = unit_variance_(layer, x, tol=1e-4)
    assert scaled == ("", 1, pytest.approx(before, rel=1e-5), pytest.approx(1.0, rel=1e-5))
    torch.testing.assert_close(layer(x).var(correction=0), torch.tensor(1.0))


class Backwards(nn.Module):
    """Runs its layers in another order than it registers them, one of them twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.twice, self.first, self.never = (nn.Linear(6, 6) for _ in range(4))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(torch.relu(self.first(x)))
        self.seen.append(y)
        return self.last(self.twice(torch.relu(y)))


def test_layers_go_in_order_of_execution_and_once() -> None:
    model, x = Backwards(), batch(40, 6)
    lsuv_(model, x, generator=seeded(0))
    assert [scaled.name for scaled in unit_variance_(model, x)] == ["first", "twice", "last"]
    variances = check_variance(model, x)
    assert variances["first"] == pytest.approx(1.0, abs=1e-5)
    assert float(model.seen[-1].detach().var(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert variances["last"] == pytest.approx(1.0, abs=1e-5)  # measured behind the second run of `twice`
    torch.testing.assert_close(model.never.weight @ model.never.weight.T, torch.eye(6), rtol=0, atol=1e-5)


def test_targets_scale_single_layers() -> None:
    x = batch(64, 6)
    whole = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    lsuv_(whole, x, 1e-4, target_std=2.0)
    assert list(check_variance(whole, x).values()) == pytest.approx([4.0, 4.0], rel=2e-4)
    lsuv_(whole, x, 1e-4, target_std={"2": 0.1})
    assert list(check_variance(whole, x).values()) == pytest.approx([1.0, 0.01], rel=2e-4)
    with pytest.raises(UnknownName, match="no layer of the model is named '3'"):
        lsuv_(whole, x, target_std={"3": 0.1})


def test_centring_gives_every_channel_mean_zero_and_the_whole_variance_one() -> None:
    x = batch(32, 3, 7, 7)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(2), nn.Linear(9, 6))
    lsuv_(model, x, centre=True, tol=1e-3)
    for depth, dims in ((1, (0, 2, 3)), (3, (0, 2, 3)), (5, (0, 1))):
        y = model[:depth](x).detach()
        assert float(y.mean(dims).abs().max()) < 1e-5
        assert float(y.var(correction=0)) == pytest.approx(1.0, abs=1e-3)
    lsuv_(model, x)
    assert float(model[:3](x).detach().mean((0, 2, 3)).abs().max()) > 0.01


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 10}])
def test_attention_projections_are_layers_too(options: dict[str, int]) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    inputs = [batch(16, 5, 8), batch(16, 5, options.get("kdim", 8)), batch(16, 5, options.get("vdim", 8))]
    orthonormalise_(attention, seeded(0))
    report = unit_variance_(attention, tuple(inputs))
    assert [scaled.name for scaled in report] == [".query", ".key", ".value", ""]
    weights = (
        attention.in_proj_weight.chunk(3)
        if not options
        else [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    )
    for x, weight in zip(inputs, weights, strict=True):
        w = weight.detach()
        assert float((x @ w.T).var(correction=0)) == pytest.approx(1.0, abs=1e-4)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(len(gram)), rtol=0, atol=1e-5)
    assert float(attention(*inputs)[0].detach().var(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_a_transformer_layer_is_settled_throughout() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), batch(16, 5, 8)
    orthonormalise_(model)
    names = [scaled.name for scaled in unit_variance_(model.train(), x)]
    assert names == ["self_attn.query", "self_attn.key", "self_attn.value", "self_attn", "linear1", "linear2"]
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_dropout_stays_out_of_it() -> None:
    x = batch(64, 6)
    model = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.8), nn.Linear(9, 9)).train()
    lsuv_(model, x, tol=1e-4)
    assert model[1].training
    assert list(check_variance(model, x).values()) == pytest.approx([1.0, 1.0], abs=2e-4)


def test_what_cannot_be_scaled_is_said() -> None:
    with pytest.raises(WorkingPapersError, match="the output of '0' has the variance 0.0 on this batch"):
        lsuv_(nn.Sequential(nn.Linear(3, 3)), torch.zeros(4, 3))
    with pytest.raises(WorkingPapersError, match="ReLU ran no linear or convolution layer"):
        lsuv_(nn.ReLU(), torch.zeros(4, 3))
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(WorkingPapersError, match="'0' has parametrized weights"):
        lsuv_(model, batch(4, 3))
    with pytest.raises(
        WorkingPapersError, match=r"tol lies in \(0, 1\) and max_iter is at least 1; got 1 and 10"
    ):
        lsuv_(nn.Linear(3, 3), batch(4, 3), tol=1)


def test_what_it_is_compared_with() -> None:
    layer = nn.Sequential(nn.Conv2d(32, 128, 3))
    kept = layer[0].weight.detach().clone()
    assert torch.equal(INITS["default"](layer)[0].weight, kept)
    for how, variance in (("he", 2 / 288), ("xavier", 2 / (288 + 1152))):
        INITS[how](layer)
        assert float(layer[0].weight.detach().var()) == pytest.approx(variance, rel=0.03)
        assert not layer[0].bias.any()
    net = thin_net(nn.ReLU)
    assert sum(isinstance(m, LAYERS) for m in net) == 17
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 10)

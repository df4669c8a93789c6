"""The largest initial rate: quadratics, a monotone search, sharpness, powers, an input layer."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.engines.spectra import sharpness
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory.max_initial_lr import (
    bracket,
    he_mlp,
    max_initial_lr,
    power_fit,
    try_rate,
)
from workingpapers.tasks import mlp


@pytest.mark.parametrize("a", [0.03, 1.0, 700.0])
@pytest.mark.parametrize("start", [1e-3, 0.1, 50.0])
def test_the_limit_on_a_quadratic_is_two_over_its_curvature(a: float, start: float) -> None:
    def converges(lr: float) -> bool:
        w = 1.0
        for _ in range(500):
            w = min(abs(w - lr * a * w), 1e6)
        return w <= 1.0

    low, high = bracket(converges, start)
    assert low <= 2 / a < high
    assert high / low <= 1.1


def test_the_search_is_monotone_and_stops_where_there_is_no_limit() -> None:
    seen: dict[float, bool] = {}

    def succeeds(lr: float) -> bool:
        seen[lr] = lr < 0.37
        return seen[lr]

    low, high = bracket(succeeds, 5.0, precision=0.01)
    assert max(lr for lr, ok in seen.items() if ok) == low
    assert min(lr for lr, ok in seen.items() if not ok) == high
    assert low < 0.37 <= high <= 1.01 * low
    with pytest.raises(WorkingPapersError, match="succeeds: there is no limit"):
        bracket(lambda lr: True)
    with pytest.raises(WorkingPapersError, match="fails: there is no limit"):
        bracket(lambda lr: False)
    with pytest.raises(WorkingPapersError, match="start > 0"):
        bracket(succeeds, 0.0)


def test_sharpness_is_the_top_eigenvalue_of_twenty_parameters() -> None:
    torch.manual_seed(0)
    model, x, y = mlp([2, 3, 3]).double(), torch.randn(40, 2).double(), torch.arange(40) % 3
    assert sum(p.numel() for p in model.parameters()) == 21
    names = [n for n, _ in model.named_parameters()]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,)), y
        )

    blocks = torch.autograd.functional.hessian(loss, tuple(model.parameters()))
    sizes = [p.numel() for p in model.parameters()]
    rows = [torch.cat([b.reshape(s, -1) for b in row], 1) for row, s in zip(blocks, sizes, strict=True)]
    exact = torch.linalg.eigvalsh(torch.cat(rows))[-1]
    assert sharpness(model, F.cross_entropy, [(x, y)]) == pytest.approx(float(exact), rel=1e-3)


def blobs() -> Split:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = 0.5 * torch.randn(240, 4, generator=generator) + 2 * F.one_hot(y, 4)
    return Split(x[:200], y[:200], x[200:], y[200:], 3, "blobs")


def test_the_rate_found_separates_runs_that_start_from_those_that_do_not() -> None:
    torch.manual_seed(0)
    split, model = blobs(), mlp([4, 16, 3])
    before = [p.clone() for p in model.parameters()]
    report = max_initial_lr(model, split, threshold=0.9, steps=30, input_factor=1.0, seeds=(5,))
    rate = report.numbers["max_lr"]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    trials = report.details["trials"]
    assert max(t.lr for t in trials if t.success) < rate < min(t.lr for t in trials if not t.success)
    assert report.numbers["safe_lr"] == pytest.approx(rate / 2)
    assert report.numbers["product"] == pytest.approx(rate * report.numbers["sharpness"])
    inner = Split(split.x_train, split.y_train, split.x_train, split.y_train, 3, "same")
    assert try_rate(model, inner, rate / 2, 0.9, 30, input_factor=1.0, seed=5).success
    assert not try_rate(model, inner, 1e3 * rate, 0.9, 30, input_factor=1.0, seed=5).success


def test_overflow_counts_as_failure_and_the_input_layer_learns_at_its_own_rate() -> None:
    split, model = blobs(), nn.Sequential(nn.Linear(4, 3))
    assert try_rate(model, split, 1e20, 1.0, 20, input_factor=1e5).accuracy < 1.0
    # the only layer is the input layer: at a factor of 0 nothing changes
    with torch.no_grad():
        wanted = float((model(split.x_test).argmax(1) == split.y_test).float().mean())
    assert try_rate(model, split, 5.0, 1.1, 20, input_factor=0.0).accuracy == pytest.approx(wanted)
    assert try_rate(model, split, 5.0, 0.8, 20, input_factor=0.02).success


def test_powers_are_recovered() -> None:
    x = [1.0, 2.0, 3.0, 7.0]
    found = power_fit(x, [5 * v**-0.7 for v in x])
    assert (found.exponent, found.r2) == (pytest.approx(-0.7), pytest.approx(1.0))
    noisy = power_fit(x, [5 * v**-0.7 * f for v, f in zip(x, (1.1, 0.9, 1.2, 0.8), strict=True)])
    logs = torch.tensor([[1.0, math.log(v)] for v in x]).double()
    target = torch.tensor(
        [math.log(5 * v**-0.7 * f) for v, f in zip(x, (1.1, 0.9, 1.2, 0.8), strict=True)]
    ).double()
    solution = torch.linalg.lstsq(logs, target).solution
    left = target - logs @ solution
    spread = (left @ left / 2) * torch.linalg.inv(logs.T @ logs)[1, 1]
    assert noisy.exponent == pytest.approx(float(solution[1]))
    assert noisy.error == pytest.approx(math.sqrt(float(spread)))
    assert noisy.r2 == pytest.approx(1 - float(left @ left / (target - target.mean()).square().sum()))
    with pytest.raises(WorkingPapersError, match="three or more pairs"):
        power_fit([1, 2], [1, 2])


def test_he_networks_keep_the_size_of_signals() -> None:
    torch.manual_seed(0)
    model = he_mlp(30, 6, 400, 10)
    x = torch.randn(20, 30)
    hidden = model[:-1](x).detach()
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [400] * 6 + [10]
    assert 0.4 < float(hidden.square().sum(1).mean() / x.square().sum(1).mean() * 30 / 400) < 2
    assert all(not m.bias.any() for m in model if isinstance(m, nn.Linear))


def test_thresholds_are_accuracies() -> None:
    with pytest.raises(WorkingPapersError, match=r"accuracy in \(0, 1\]"):
        max_initial_lr(mlp([4, 3]), blobs(), threshold=1.5)
    split = blobs()
    regression = Split(split.x_train, split.x_train[:, :1], split.x_test, split.x_test[:, :1], 0, "r")
    with pytest.raises(WorkingPapersError, match="of a classifier"):
        max_initial_lr(mlp([4, 1]), regression)

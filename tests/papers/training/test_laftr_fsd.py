"""LAFTR: exact cases, moments by enumeration, both versions against each other, curvature, memory and influence."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.training._distance_rivals import (
    conjugate_gradients,
    curvature_product,
    diagonal_fisher,
    exact_curvature,
    example_gradients,
    flat,
    influence,
    parameters_of,
    penalised,
    self_influence,
    squared_length,
    unflat,
)
from workingpapers.papers.training._distance_runs import (
    closeness,
    keep_examples,
    keep_fisher,
    keep_laftr,
    keep_likelihood,
    learn_in_turn,
    permuted_tasks,
    perturbed,
    with_flipped_labels,
)
from workingpapers.papers.training._function_distance import Summary, fsd, true_fsd
from workingpapers.papers.training._gated_chain import chain, tensors_of
from workingpapers.papers.training.laftr_fsd import laftr_fsd
from workingpapers.tasks import mlp


def moved(model: nn.Module, size: float = 0.3, seed: int = 0) -> nn.Module:
    """Return a copy of the model with noise on all parameters."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


def value(found: Tensor) -> float:
    return float(found.detach())


def net(*sizes: int) -> nn.Sequential:
    torch.manual_seed(1)
    return mlp(list(sizes)).double()


X = (1 + torch.randn(300, 5, generator=torch.Generator().manual_seed(2)) @ torch.randn(5, 5)).double()


class Functional(nn.Module):
    """The functions that torch has for the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.out(F.dropout(torch.flatten(x, 1), 0.5, self.training))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("metric", ["squared", "softmax"])
@pytest.mark.parametrize("version", ["deterministic", "stochastic"])
def test_a_network_is_at_no_distance_from_itself(full: bool, metric: str, version: str) -> None:
    model = net(5, 8, 6, 3)
    summary = Summary.from_data(model, X, full=full, metric=metric)
    assert value(fsd(summary, model, version)) == 0.0
    assert value(fsd(summary, moved(model), version)) > 0.01


def test_a_linear_network_with_all_gates_open_is_exact() -> None:
    model = net(5, 7, 6, 3)
    with torch.no_grad():
        for layer in (model[1], model[3]):
            layer.bias.add_(1000)  # every unit is on, for both networks
        model[5].bias.fill_(0.5)
    other = moved(model)
    summary = Summary.from_data(model, X, full=True)
    assert all(bool((rate == 1).all()) for rate in summary.rates)
    assert value(fsd(summary, other)) == pytest.approx(true_fsd(model, other, X), rel=1e-8)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double()
    other = moved(plain)
    summary = Summary.from_data(plain, X, full=True)
    assert value(fsd(summary, other)) == pytest.approx(true_fsd(plain, other, X), rel=1e-10)
    # with variances alone, on inputs that are as good as independent
    x = torch.tensor(list(product((-1.0, 2.0), repeat=5))).double()
    summary = Summary.from_data(nn.Sequential(plain[0]), x)
    assert value(fsd(summary, nn.Sequential(other[0]))) == pytest.approx(
        true_fsd(nn.Sequential(plain[0]), nn.Sequential(other[0]), x), rel=1e-10
    )


def enumerated(model: nn.Sequential, other: nn.Sequential, rates: list[Tensor], x: Tensor) -> float:
    """Return the mean distance over all rows of `x` and all gates of two hidden layers, by their probabilities."""
    (a, b, c), (a1, b1, c1) = ([m[i] for i in (1, 3, 5)] for m in (model, other))
    total = 0.0
    for first in product((0.0, 1.0), repeat=rates[0].numel()):
        g = torch.tensor(first).double()
        p = torch.where(g == 1, rates[0][0], 1 - rates[0][0]).prod()
        h, h1 = g * a(x), g * a1(x)
        for second in product((0.0, 1.0), repeat=rates[1].numel()):
            k = torch.tensor(second).double()
            q = torch.where(k == 1, rates[1][0], 1 - rates[1][0]).prod()
            gap = c1(k * b1(h1)) - c(k * b(h))
            total += float(p * q * gap.square().sum(1).mean()) / 2
    return total


def test_full_moments_are_those_of_all_gates() -> None:
    model = net(5, 4, 3, 2)
    other = moved(model)
    summary = Summary.from_data(model, X, full=True)
    with torch.no_grad():
        wanted = enumerated(model, other, summary.rates, X)
    assert float(summary.rates[0].min()) > 0
    assert value(fsd(summary, other)) == pytest.approx(wanted, rel=1e-9)


def test_variances_alone_are_exact_for_one_unit_a_layer() -> None:
    model = net(5, 1, 1, 2)
    x = torch.tensor(list(product((-1.0, 2.0), repeat=5))).double()
    with torch.no_grad():
        model[1].bias.fill_(0.2)
        model[3].bias.fill_(0.1)
        summary = Summary.from_data(model, x)
        other = moved(model)
        second = torch.tensor([[value(fsd(summary, other))]])
        assert float(second) != 0
        wanted = enumerated(model, other, summary.rates, x)
    # of two outputs the variances are kept, and half of their sum is all that is asked for
    assert float(second) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_drawing_tends_to_the_closed_form(full: bool) -> None:
    model = net(5, 1, 2) if not full else net(5, 6, 5, 3)
    other = moved(model)
    x = torch.tensor(list(product((-1.0, 2.0), repeat=5))).double() if not full else X
    summary = Summary.from_data(model, x, full=full)
    with torch.no_grad():
        drawn = [value(fsd(summary, other, "stochastic", 40_000, seed)) for seed in range(4)]
    error = np.std(drawn, ddof=1) / 2
    assert abs(np.mean(drawn) - value(fsd(summary, other))) < 5 * error + 0.005 * np.mean(drawn)
    assert value(fsd(summary, other, "stochastic", 50)) == value(fsd(summary, other, "stochastic", 50))


def test_rates_and_moments_are_the_datas_in_any_batches() -> None:
    model = net(5, 8, 6, 3)
    summary = Summary.from_data(model, X, full=True, batch=70)
    z = model[1](X)
    torch.testing.assert_close(summary.rates[0], (z > 0).double().mean(0, keepdim=True))
    torch.testing.assert_close(summary.rates[1], (model[3](z.relu()) > 0).double().mean(0, keepdim=True))
    torch.testing.assert_close(summary.spread, torch.from_numpy(np.cov(X.T.numpy(), bias=True)))
    assert summary.memory == 14 + 5 + 25
    assert Summary.from_data(model, X).memory == 14 + 5 + 5


def test_convolutions_have_a_rate_for_each_channel_and_follow_the_dense_formula() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    other, x = moved(conv), torch.randn(60, 1, 4, 4).double()
    summary = Summary.from_data(conv, x)
    assert [r.shape for r in summary.rates] == [(1, 3, 1, 1)]
    assert summary.memory == 3 + 32
    on = (conv[0](x) > 0).double()
    torch.testing.assert_close(summary.rates[0], on.mean((0, 2, 3), keepdim=True))
    assert Summary.from_data(conv, x, positions=True).rates[0].shape == (1, 3, 4, 4)

    def dense(model: nn.Sequential) -> nn.Sequential:
        """Return the same map of flattened inputs, the pool as a matrix."""
        eye = torch.eye(16).double().reshape(16, 1, 4, 4)
        first = nn.Linear(16, 48).double()
        pool = nn.Linear(48, 12, bias=False).double()
        with torch.no_grad():
            bias = model[0](torch.zeros(1, 1, 4, 4).double()).flatten()
            first.weight.copy_((model[0](eye).flatten(1) - bias).T)
            first.bias.copy_(bias)
            pool.weight.copy_(model[2](torch.eye(48).double().reshape(48, 3, 4, 4)).flatten(1).T)
        return nn.Sequential(first, nn.ReLU(), pool, copy.deepcopy(model[4]))

    flatly = Summary.from_data(dense(conv), x.flatten(1))
    flatly.rates[0] = summary.rates[0].expand(1, 3, 4, 4).reshape(1, 48)
    assert value(fsd(summary, other)) == pytest.approx(value(fsd(flatly, dense(other))), rel=1e-9)


def test_functions_and_batch_normalisation_are_read() -> None:
    torch.manual_seed(0)
    model, x = Functional().double(), torch.randn(50, 1, 4, 4).double()
    model(x)
    assert [link.kind for link in chain(model)] == ["affine", "affine", "relu", "pool", "flatten", "affine"]
    model.eval()
    summary, other = Summary.from_data(model, x), moved(model)
    with torch.no_grad():
        other.norm.running_mean.add_(0.1)
        other.norm.running_var.mul_(1.5)
        assert value(fsd(summary, model)) == 0
        assert 0.2 < value(fsd(summary, other)) / true_fsd(model, other, x) < 5
    # batch normalisation is folded as in evaluation mode: exact where all gates are open
    still = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    still(x)
    changed = moved(still.eval())
    summary = Summary.from_data(still, x)
    h = still[2](still[1](still[0](x)))
    gap = changed[2](changed[1](changed[0](x))) - h
    mean_gap = changed[3](h.mean(0) + gap.mean(0)) - still[3](h.mean(0))
    found = value(fsd(summary, changed))
    assert found >= value(mean_gap.square().sum()) / 2 - 1e-9


def test_the_softmax_metric_is_the_kl_divergence_near_by() -> None:
    model = net(5, 6, 3)
    other = moved(model, 1e-4)
    with torch.no_grad():
        p, q = model(X).log_softmax(1), other(X).log_softmax(1)
        kl = float((p.exp() * (p - q)).sum(1).mean())
    assert true_fsd(model, other, X, "softmax") == pytest.approx(kl, rel=1e-2)
    summary = Summary.from_data(model, X, metric="softmax")
    probabilities = model(X).softmax(1)
    wanted = torch.stack([torch.diag(r) - r.outer(r) for r in probabilities]).mean(0)
    torch.testing.assert_close(summary.metric, wanted.detach())


def test_only_a_head_may_count() -> None:
    model = nn.Sequential(nn.Linear(5, 4)).double()
    other = moved(model)
    head = Summary.from_data(model, X, full=True, outputs=slice(1, 3))
    gap = (other(X) - model(X))[:, 1:3]
    assert value(fsd(head, other)) == pytest.approx(value(gap.square().sum(1).mean()) / 2, rel=1e-9)


def test_the_estimate_is_differentiable_and_keeps_networks_near() -> None:
    model = net(5, 6, 3)
    summary, other = Summary.from_data(model, X), moved(model)
    for version in ("deterministic", "stochastic"):
        other.zero_grad()
        fsd(summary, other, version).backward()
        grads = {n: p.grad for n, p in other.named_parameters()}
        name, step = "3.weight", 1e-6
        shifted = copy.deepcopy(other)
        with torch.no_grad():
            shifted[3].weight[1, 2] += step
            slope = (value(fsd(summary, shifted, version)) - value(fsd(summary, other, version))) / step
        assert float(grads[name][1, 2]) == pytest.approx(slope, rel=1e-3)


def test_the_diagonal_fisher_is_the_diagonal_of_the_curvature() -> None:
    model = net(5, 4, 3)
    for metric in ("squared", "softmax"):
        whole = exact_curvature(model, X[:40], metric, chunk=15)
        found = diagonal_fisher(model, X[:40], metric, chunk=15)
        torch.testing.assert_close(flat(found.curvature), torch.diagonal(whole))
        tiny = moved(model, 1e-5)
        step = flat(parameters_of(tiny)) - flat(parameters_of(model))
        near = true_fsd(model, tiny, X[:40], metric)
        assert float(step @ whole @ step) / 2 == pytest.approx(near, rel=1e-2)
        assert value(found(tiny)) == pytest.approx(
            float((torch.diagonal(whole) * step**2).sum()) / 2, rel=1e-6
        )
        assert value(squared_length(model, tiny)) == pytest.approx(float(step @ step) / 2)


def test_curvature_products_are_the_hessian_of_the_estimate() -> None:
    model = net(5, 4, 2)
    summary = Summary.from_data(model, X, full=True)
    old = parameters_of(model)
    hessian = torch.autograd.functional.hessian(
        lambda v: fsd(summary, {**summary.tensors, **unflat(v, old)}), flat(old)
    )
    vectors = torch.randn(3, len(hessian)).double()
    torch.testing.assert_close(curvature_product(summary, vectors), vectors @ hessian)
    assert float(torch.linalg.eigvalsh(hessian).min()) > -1e-9
    # of a linear network it is the curvature of the data themselves
    plain = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()
    exact = exact_curvature(plain, X)
    whole = curvature_product(Summary.from_data(plain, X, full=True), torch.eye(len(exact)).double())
    torch.testing.assert_close(whole, exact)


def test_influence_solves_the_damped_system(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Sequential(nn.Linear(5, 2)).double()
    summary = Summary.from_data(plain, X, full=True)
    y = torch.arange(8) % 2
    gradients = example_gradients(plain, X[:8], y, F.cross_entropy)
    losses = F.cross_entropy(plain(X[:8]), y, reduction="none")
    grads = torch.autograd.grad(losses[3], list(plain.parameters()))
    torch.testing.assert_close(gradients[3], torch.cat([g.flatten() for g in grads]))
    found = influence(summary, gradients, damping=0.1)
    matrix = exact_curvature(plain, X) + 0.1 * torch.eye(12).double()
    torch.testing.assert_close(found @ matrix, gradients)
    scores = self_influence(gradients, found)
    torch.testing.assert_close(scores[5], gradients[5] @ torch.linalg.solve(matrix, gradients[5]))
    monkeypatch.setattr("workingpapers.papers.training._distance_rivals.DENSE", 3)
    torch.testing.assert_close(influence(summary, gradients, damping=0.1), found, rtol=1e-3, atol=1e-5)
    with pytest.raises(WorkingPapersError, match="damping is above 0; got 0"):
        influence(summary, gradients, damping=0)


def test_conjugate_gradients_solve() -> None:
    a = torch.randn(9, 9).double()
    a = a @ a.T + torch.eye(9)
    right = torch.randn(4, 9).double()
    right[2] = 0
    found = conjugate_gradients(lambda v: v @ a, right, rounds=60, tolerance=1e-10)
    torch.testing.assert_close(found @ a, right, atol=1e-7, rtol=1e-7)


def test_penalties_join_the_loss_in_training_alone() -> None:
    model = nn.Linear(2, 2)
    loss = penalised(F.cross_entropy, model, [lambda m: m.weight.sum(), lambda m: m.bias.sum()], 2.0)
    y, t = torch.randn(3, 2), torch.tensor([0, 1, 1])
    extra = 2 * (model.weight.sum() + model.bias.sum())
    torch.testing.assert_close(loss(y, t), F.cross_entropy(y, t) + extra)
    model.eval()
    torch.testing.assert_close(loss(y, t), F.cross_entropy(y, t))


def small_split() -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 2, 3, generator=generator)
    y = (x[:, 0, 0, 0] > 0).long() + (x[:, 0, 1, 2] > 0).long()
    return Split(x[:80], y[:80], x[80:], y[80:], 3, "small")


def test_tasks_are_the_same_pictures_in_other_orders() -> None:
    split = small_split()
    tasks = permuted_tasks(split, 3, seed=1)
    torch.testing.assert_close(tasks[0].x_train, split.x_train.flatten(1))
    for task in tasks[1:]:
        assert not torch.equal(task.x_train, tasks[0].x_train)
        torch.testing.assert_close(task.x_train.sort(1).values, tasks[0].x_train.sort(1).values)
    keep = keep_examples(mlp([6, 4, 3]), tasks[0], 0, count=10)
    model = mlp([6, 4, 3])
    assert float(keep(model).detach()) >= 0
    first, _ = learn_in_turn(tasks[:1], None, 0.0, 20, seed=0)
    free, accuracy = learn_in_turn(tasks[:2], None, 0.0, 20, seed=0)
    right = [(free(t.x_test).argmax(1) == t.y_test).float().mean() for t in tasks[:2]]
    assert accuracy == pytest.approx(float(sum(right)) / 2)
    x = tasks[0].x_train
    for keeper in (keep_laftr, keep_fisher, keep_likelihood, keep_examples):
        held, _ = learn_in_turn(tasks[:2], keeper, 1e4, 20, seed=0)
        assert true_fsd(first, held, x) < 0.3 * true_fsd(first, free, x), keeper.__name__


def test_flipped_labels_are_wrong_and_as_many_as_asked() -> None:
    flipped = with_flipped_labels(small_split(), 0.1, seed=3)
    assert int(flipped.wrong.sum()) == 8
    assert torch.equal(flipped.split.y_train != small_split().y_train, flipped.wrong)
    assert int(flipped.split.y_train.max()) <= 2


def test_networks_about_a_network() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 1, 8, 8, generator=generator)
    images = Split(x, torch.arange(70) % 3, x, torch.arange(70) % 3, 3, "images")
    model = mlp([64, 5, 3])
    others = perturbed(model, images, 0, each=2)
    assert len(others) == 10 + 35
    lengths = [value(squared_length(model, other)) for other in others[:10]]
    whole = sum(float(p.detach().square().sum()) for p in model.parameters()) / 2
    np.testing.assert_allclose(lengths, np.repeat(np.geomspace(0.01, 1, 5) ** 2 * whole, 2), rtol=1e-4)
    assert all(value(squared_length(model, other)) > 0 for other in others)


def test_closeness_is_blind_to_scale_where_it_should_be() -> None:
    truth = [0.1, 1.0, 5.0, 30.0]
    correlation, error = closeness([2 * t for t in truth], truth)
    assert correlation == pytest.approx(1)
    assert error == pytest.approx(1)


def test_a_finding_has_the_truth_beside_the_estimates() -> None:
    model = net(5, 8, 6, 3)
    other = moved(model, 0.05)
    found = laftr_fsd(model, other, X, full=True)
    assert found.numbers["true"] == pytest.approx(
        value((other(X) - model(X)).square().sum(1).mean()) / 2, rel=1e-9
    )
    assert found.numbers["deterministic"] == pytest.approx(value(fsd(found.details["summary"], other)))
    assert found.numbers["memory"] == 14 + 30


def test_bad_input_is_named() -> None:
    model = net(5, 4, 3)
    summary = Summary.from_data(model, X)
    with pytest.raises(UnknownName, match="version of the estimate.*'stochastic'"):
        fsd(summary, model, "stochastc")
    with pytest.raises(UnknownName, match="metric of outputs"):
        Summary.from_data(model, X, metric="squard")
    with pytest.raises(WorkingPapersError, match="lacks '1.bias'"):
        fsd(summary, {k: v for k, v in tensors_of(model).items() if k != "1.bias"})
    with pytest.raises(WorkingPapersError, match="the step _1 .GELU. is neither affine"):
        chain(nn.Sequential(nn.Linear(2, 2), nn.GELU()))

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inside(x)

    with pytest.raises(WorkingPapersError, match="no chain"):
        chain(Skip())
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(5, 1, 4, 4)
    with pytest.raises(WorkingPapersError, match="linear layers only; 0 is a Conv2d"):
        fsd(Summary.from_data(conv, x, full=True), conv)
    with pytest.raises(WorkingPapersError, match="outputs are"):
        Summary.from_data(conv[:1], x)

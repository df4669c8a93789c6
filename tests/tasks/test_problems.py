"""Problems: what batches hold, and metrics against independent computations."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Graph, Series, Split, Text, graph, images, series, text
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import (
    GCN,
    Classification,
    Forecasting,
    LanguageModelling,
    NodeClassification,
    Regression,
    initialise,
    mlp,
    normalised_adjacency,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(problem: Any, model: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        found: dict[str, float] = problem.evaluate(model.eval())
    assert tuple(found) == problem.metrics
    return found


def test_classification_metrics_over_several_parts() -> None:
    x, y = torch.randn(2345, 4, generator=generator()), torch.randint(3, (2345,), generator=generator(1))
    model = nn.Linear(4, 3)
    found = measured(Classification(Split(x, y, x, y, 3, "toy"), None), model)
    assert found["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)


def test_regression_metrics_over_several_parts() -> None:
    x, y = torch.randn(2345, 4, generator=generator()), torch.randn(2345, 2, generator=generator(1))
    model = nn.Linear(4, 2)
    problem = Regression(Split(x, y, x, y, 0, "toy", y_std=5.0), lambda o, t: (o - t).abs().mean())
    found = measured(problem, model)
    error = (model(x) - y).detach()
    assert found["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert found["rmse"] == pytest.approx(5 * float(error.square().mean().sqrt()), rel=1e-5)
    assert found["loss"] == pytest.approx(float(error.abs().mean()), rel=1e-5)


def counting(length: int) -> Text:
    """Return a stream that counts up modulo 100."""
    stream = torch.arange(length) % 100
    return Text(stream, stream[:301], [str(i) for i in range(100)], "counting")


class Successor(nn.Module):
    """Predicts t + 1 after t with logit `strength`, everything else with 0."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, tokens: Tensor) -> Tensor:
        return self.strength * F.one_hot((tokens + 1) % 100, 100).float()


def test_targets_are_the_inputs_one_token_later() -> None:
    problem = LanguageModelling(counting(5001), 10)
    batches = list(problem.batches(20, generator()))
    assert len(batches) == problem.steps_per_epoch(20) == 25
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (20, 10)
        assert torch.equal(targets, (inputs + 1) % 100)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_windows_start_anywhere_the_stream_allows() -> None:
    stream = torch.arange(13)
    problem = LanguageModelling(Text(stream, stream, [""] * 13, "toy"), 10)
    starts = {int(b[0][0, 0]) for _ in range(60) for b in problem.batches(1, generator(_))}
    assert starts == {0, 1, 2}


def test_language_metrics_in_closed_form() -> None:
    problem = LanguageModelling(counting(500), 7)
    uniform = measured(problem, Successor(0.0))
    assert uniform["loss"] == pytest.approx(math.log(100), rel=1e-5)
    assert uniform["perplexity"] == pytest.approx(100, rel=1e-4)
    sure = measured(problem, Successor(5.0))
    assert sure["loss"] == pytest.approx(math.log(1 + 99 * math.exp(-5)), rel=1e-4)


def test_the_test_windows_lie_side_by_side() -> None:
    seen = []

    class Spy(Successor):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return super().forward(tokens)

    measured(LanguageModelling(counting(500), 7, test_tokens=100), Spy(0.0))
    assert torch.equal(torch.cat(seen).flatten(), torch.arange(98) % 100)
    seen.clear()
    measured(LanguageModelling(counting(500), 7), Spy(0.0))
    assert torch.equal(torch.cat(seen).flatten(), torch.arange(7 * 42) % 100)


def test_a_context_that_does_not_fit_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="1 to 300 tokens of the test part of counting; got 301"):
        LanguageModelling(counting(500), 301)


def random_graph(nodes: int = 12, features: int = 6) -> Graph:
    upper = torch.triu(torch.rand(nodes, nodes, generator=generator()) < 0.3)  # self loops among them
    edges = (upper | upper.T).nonzero().T
    x = (torch.rand(nodes, features, generator=generator(1)) < 0.5).float()
    x[3] = 0.0  # a node without a word, as citeseer has
    y = torch.arange(nodes) % 3
    return Graph(x, edges, y, torch.arange(4), torch.arange(4, 8), torch.arange(8, nodes), 3, "toy")


def dense_propagation(toy: Graph) -> Tensor:
    """Compute D^-1/2 (A + I) D^-1/2 with dense matrices."""
    n = len(toy.x)
    a = torch.zeros(n, n)
    a[toy.edges[0], toy.edges[1]] = 1.0
    a.fill_diagonal_(1.0)
    d = torch.diag(a.sum(1) ** -0.5)
    return d @ a @ d


def test_propagation_is_the_normalised_adjacency() -> None:
    toy = random_graph()
    assert bool((toy.edges[0] == toy.edges[1]).any())
    found = normalised_adjacency(toy.edges, len(toy.x)).to_dense()
    assert torch.allclose(found, dense_propagation(toy), atol=1e-6)
    assert float(torch.linalg.eigvalsh(found).max()) == pytest.approx(1.0, abs=1e-5)


def test_gcn_is_its_equation() -> None:
    toy = random_graph()
    p, x = dense_propagation(toy), NodeClassification(toy).x
    model = initialise(lambda: GCN(6, 3, width=8, activation=nn.Tanh), 0).eval()
    first, second = model.layers
    b1, b2 = model.biases
    b1.data.normal_()
    expected = p @ (torch.tanh(p @ x @ first.weight.T + b1) @ second.weight.T) + b2
    found = model(x, normalised_adjacency(toy.edges, len(toy.x)))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_sparse_features_give_what_dense_ones_give(training: bool) -> None:
    toy = random_graph()
    sparse, dense = NodeClassification(toy, sparse=True), NodeClassification(toy)
    model = initialise(lambda: GCN(6, 3, dropout=0.0), 0).train(training)
    grads = []
    for problem in (sparse, dense):
        model.zero_grad()
        problem.loss(model, toy.train).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    assert measured(sparse, model) == pytest.approx(measured(dense, model), rel=1e-5)


def test_sparse_dropout_has_the_mean_and_spread_of_the_dense_one() -> None:
    toy = random_graph()
    model = initialise(lambda: GCN(6, 3, depth=1, dropout=0.4), 0)
    p = normalised_adjacency(toy.edges, len(toy.x))
    draws = []
    with torch.no_grad():
        for x in (NodeClassification(toy, sparse=True).x, NodeClassification(toy).x):
            draws.append(torch.stack([model.train()(x, p) for _ in range(3000)]))
        assert torch.allclose(draws[0].mean(0), model.eval()(x, p), atol=0.02)
    assert torch.allclose(draws[0].std(0), draws[1].std(0), rtol=0.1)
    assert float(draws[0].std(0).min()) > 0.01


def test_renaming_the_nodes_renames_the_outputs() -> None:
    toy = random_graph()
    order = torch.randperm(12, generator=generator(5))
    place = order.argsort()
    renamed = replace(toy, x=toy.x[order], edges=place[toy.edges])
    model = initialise(lambda: GCN(6, 3), 0).eval()
    plain, moved = NodeClassification(toy), NodeClassification(renamed)
    assert torch.allclose(
        model(moved.x, moved.propagation), model(plain.x, plain.propagation)[order], atol=1e-6
    )


def test_node_metrics_count_their_own_nodes() -> None:
    toy = random_graph()
    logits = torch.randn(12, 3, generator=generator(2))

    class Fixed(nn.Module):
        def forward(self, x: Tensor, propagation: Tensor) -> Tensor:
            return logits

    problem = NodeClassification(toy)
    found = measured(problem, Fixed())
    right = (logits.argmax(1) == toy.y).double()
    assert found["accuracy"] == pytest.approx(float(right[8:].mean()))
    assert found["val_accuracy"] == pytest.approx(float(right[4:8].mean()))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits[8:], toy.y[8:])))
    assert float(problem.loss(Fixed(), toy.train)) == pytest.approx(
        float(F.cross_entropy(logits[:4], toy.y[:4]))
    )


def test_features_of_a_node_sum_to_one(real_data: None) -> None:
    sums = NodeClassification(graph("citeseer")).x.sum(1)
    empty = sums == 0
    assert int(empty.sum()) == 15
    assert torch.allclose(sums[~empty], torch.ones(3312), atol=1e-5)


class LastValue(nn.Module):
    """Forecasts that nothing changes."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon

    def forward(self, past: Tensor) -> Tensor:
        return past[:, -1:].expand(-1, self.horizon, -1)


def wave() -> Series:
    values = torch.randn(400, 2, generator=generator())
    return Series(values, ("a", "b"), (0, 200), (200, 300), (300, 400), torch.zeros(2), torch.ones(2), "wave")


@pytest.mark.parametrize("stride", [1, 3])
def test_forecasting_metrics_by_hand(stride: int) -> None:
    toy = wave()
    found = measured(Forecasting(toy, 20, 5, stride), LastValue(5))
    v = toy.values.double().numpy()
    errors = np.array([v[t - 1] - v[t + h] for t in range(300, 396, stride) for h in range(5)])
    assert found["mse"] == pytest.approx((errors**2).mean(), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)


def test_forecasting_trains_on_the_training_part_alone() -> None:
    toy = wave()
    toy.values[200:] = math.nan
    problem = Forecasting(toy, 20, 5)
    batches = list(problem.batches(16, generator()))
    assert len(batches) == problem.steps_per_epoch(16) == 176 // 16
    assert all(bool(b.isfinite().all()) for pair in batches for b in pair)
    firsts = torch.cat([past[:, 0] for past, _ in batches])
    assert len(firsts.unique(dim=0)) == 176
    loss = problem.loss(LastValue(5), batches[0])
    past, future = batches[0]
    assert float(loss) == pytest.approx(float((past[:, -1:] - future).square().mean()))


def test_moving_to_a_device_keeps_the_numbers(real_data: None) -> None:
    cpu = torch.device("cpu")
    data = images("digits")
    pairs = [
        (Classification(data, None), initialise(lambda: mlp([64, 10]), 0)),
        (LanguageModelling(counting(500), 7, 100), Successor(1.0)),
        (NodeClassification(random_graph(), sparse=True), initialise(lambda: GCN(6, 3), 0)),
        (Forecasting(wave(), 20, 5, 2), LastValue(5)),
    ]
    for problem, model in pairs:
        assert measured(problem.to(cpu), model) == measured(problem, model)


def test_real_sets_fit_their_problems(real_data: None) -> None:
    problem = LanguageModelling(text("tinyshakespeare"), 64)
    inputs, targets = next(problem.batches(8, generator()))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    etth1 = Forecasting(series("etth1"), 96, 24)
    naive = measured(etth1, LastValue(24))
    assert 0.3 < naive["mse"] < 1.5  # published values for repeating the last value lie near 1

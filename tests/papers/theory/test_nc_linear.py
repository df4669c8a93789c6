"""Neural collapse: frames and metrics by hand, the minimiser against search and training, heads of models."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory import _collapse, _free_features
from workingpapers.papers.theory._linear_heads import linear_head, one_hot_loss, with_sizes
from workingpapers.papers.theory.nc_linear import against, free_features, nc_linear
from workingpapers.tasks import mlp


def clusters(seed: int, sizes: tuple[int, ...], dim: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.randn(len(y), dim) + 3 * torch.randn(len(sizes), dim)[y], y


# metrics


def test_the_simplex_has_its_cosines_and_distance_0() -> None:
    k, turn = 5, torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    simplex = (torch.eye(k, dtype=torch.float64) - 1 / k) @ turn[:k]
    assert _collapse.cosines(3 * simplex).tolist() == pytest.approx([-1 / (k - 1)] * 10)
    assert _collapse.frame_distance(3 * simplex, "etf") < 1e-12
    assert _collapse.frame_distance(2 * turn[:k], "orthogonal") < 1e-12
    # the Gram matrices (I - J/K)/sqrt(K-1) and I/sqrt(K) have the inner product sqrt((K-1)/K)
    assert _collapse.frame_distance(turn[:k], "etf") == pytest.approx(
        math.sqrt(2 - 2 * math.sqrt((k - 1) / k))
    )
    assert float(_collapse.frame("etf", k).norm()) == pytest.approx(1)


def test_variability_is_the_trace_of_covariances() -> None:
    x, y = clusters(0, (9, 4, 6))
    a, labels = x.double().numpy(), y.numpy()
    means = np.stack([a[labels == k].mean(0) for k in range(3)])
    within = sum(np.outer(r - means[k], r - means[k]) for r, k in zip(a, labels, strict=True)) / len(a)
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / 3
    wanted = np.trace(within @ np.linalg.pinv(between)) / 3
    assert _collapse.variability(x, y) == pytest.approx(wanted)
    assert _collapse.variability(5 * x + 2, y) == pytest.approx(wanted, rel=1e-4)
    assert _collapse.variability(torch.from_numpy(means)[y], y) < 1e-20
    assert _collapse.variability(torch.randn(4, 3).repeat(2, 1), torch.arange(8) // 4) == math.inf


def test_duality_and_nearest_means_by_hand() -> None:
    means = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert _collapse.duality(means, 2 * means) < 1e-7
    assert _collapse.duality(means, -means) == pytest.approx(2)
    assert _collapse.duality(means, torch.tensor([[0.0, 1.0], [0.0, 0.0]])) == pytest.approx(math.sqrt(2))
    x, y = torch.tensor([[0.0], [1.0], [4.0], [2.0]]), torch.tensor([0, 0, 2, 2])  # means 0.5 and 3
    outputs = torch.eye(3)[torch.tensor([0, 2, 2, 1])]
    assert _collapse.off_nearest_mean(x, y, outputs) == 0.5


def test_full_collapse_is_0_in_every_number() -> None:
    y = torch.arange(12) % 4
    x = torch.eye(4)[y]
    found = _collapse.collapse(x, y, 3 * torch.eye(4) - 0.75, 2 * x, "etf")
    assert found.pop("cosine") == pytest.approx(-1 / 3)
    assert found == pytest.approx(
        dict.fromkeys(("nc1", "nc2_means", "nc2_classifier", "nc3", "nc4"), 0), abs=1e-6
    )
    found = _collapse.collapse(x, y, 3 * torch.eye(4), 2 * x, "orthogonal")
    assert found == pytest.approx(dict.fromkeys(found, 0), abs=1e-6)
    spoilt = _collapse.collapse(x + 0.1 * torch.randn(12, 4), y, torch.randn(4, 4), torch.randn(12, 4), "etf")
    assert min(v for k, v in spoilt.items() if k != "cosine") > 0.005


# minimisers


def test_one_layer_in_closed_form() -> None:
    sizes, w, h = (100, 60, 30, 10), 0.02, 0.015  # N^2 w h = 12
    found = _free_features.predicted_geometry(sizes, 1, w, h)
    n = torch.tensor(sizes).double()
    p = (1 - 200 * (w * h / n).sqrt()).clamp_min(0)
    torch.testing.assert_close(found.p, p, atol=1e-9, rtol=0)
    assert found.p[3] == 0
    torch.testing.assert_close(found.features**2, p * (w / (n * h)).sqrt(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.classifier**2, p * (n * h / w).sqrt(), atol=1e-9, rtol=0)
    assert _free_features.predicted_geometry((50, 50), 1, 0.05, 0.01).p.tolist() == pytest.approx(
        [1 - 100 * math.sqrt(0.05 * 0.01 / 50)] * 2
    )


def test_a_class_at_the_threshold_is_gone_and_one_above_it_is_not() -> None:
    for factor, kept in ((1 - 1e-6, True), (1 + 1e-6, False)):
        decay = math.sqrt(10 * factor) / 40
        found = _free_features.predicted_geometry((30, 10), 1, decay, decay)
        assert bool(found.p[1] > 0) == kept
        assert float(found.p[1]) < 1e-6


@pytest.mark.parametrize("depth", [2, 3])
def test_several_layers_against_a_search_of_all_lengths(depth: int) -> None:
    sizes, decay, h = (40, 15, 1), [0.01, 0.02, 0.015][:depth], 0.008
    found = _free_features.predicted_geometry(sizes, depth, decay, h)
    for k, n in enumerate(sizes):

        def cost(v: Any, n: int = n) -> float:
            penalty = h * n * v[-1] ** 2 + sum(d * a**2 for d, a in zip(decay, v, strict=False))
            return n * (1 - np.prod(v)) ** 2 / (2 * 56) + penalty / 2

        best = min(
            (minimize(cost, [s] * (depth + 1), tol=1e-13) for s in (0.1, 0.8, 2.0)), key=lambda r: r.fun
        )
        own = [float(found.features[k]), float(found.classifier[k]), float(found.p[k])]
        wanted = [abs(best.x[-1]), abs(np.prod(best.x[:-1])), abs(np.prod(best.x))]
        assert own == pytest.approx(wanted, abs=2e-3), n
    assert found.p[2] == 0  # with two layers and more a class vanishes at once, from far above 0
    assert found.p[1] > 0.5


@pytest.mark.parametrize("depth", [1, 2])
def test_training_finds_the_minimiser_and_balanced_layers(depth: int) -> None:
    decay = [0.004, 0.009][:depth]
    model = _free_features.free_features((12, 8, 5), 5, depth, decay=decay, feature_decay=0.006, seed=depth)
    theory = _free_features.predicted_geometry((12, 8, 5), depth, decay, 0.006)
    assert model.slope <= 1e-7
    errors = against(model, theory)
    assert max(errors.values()) < 1e-4
    assert _free_features.balance_gap(model, decay, 0.006) < 1e-6
    assert _free_features.balance_gap(model, [2 * d for d in decay], 0.006) > 1e-3
    assert len(model.weights) == depth
    by_hand = F.mse_loss(model.outputs, torch.eye(3).double()[model.labels], reduction="sum") / 50
    penalty = 0.006 * model.features.square().sum() + sum(
        d * w.square().sum() for d, w in zip(decay, model.weights, strict=True)
    )
    assert model.loss == pytest.approx(float(by_hand + penalty / 2))
    for x, w in model.layers():
        torch.testing.assert_close(x @ w.T, model.outputs)


@pytest.mark.parametrize(("loss", "bias"), [("mse", True), ("ce", False)])
def test_with_a_bias_or_cross_entropy_the_frame_is_the_simplex(loss: str, bias: bool) -> None:
    found = free_features((6, 6, 6), 4, 2, loss, bias, 0.004, 0.004)
    assert max(found.numbers[n] for n in ("nc1", "nc2_means", "nc2_classifier", "nc3", "balance")) < 1e-5
    assert "p_error" not in found.numbers
    model = found.details["model"]
    assert (model.bias is None) != bias
    target = F.one_hot(model.labels, 3).double()
    fit = (
        F.cross_entropy(model.outputs, model.labels)
        if loss == "ce"
        else (model.outputs - target).square().sum() / 36
    )
    norms = sum(float(t.square().sum()) for t in (*model.weights, model.features))
    assert model.loss == pytest.approx(float(fit) + 0.002 * norms)


def test_errors_against_the_theory_are_relative_and_of_classes_that_stay() -> None:
    theory = _free_features.predicted_geometry((9, 9, 1), 1, 0.06, 0.06)
    assert theory.p[2] == 0
    w = torch.diag(theory.classifier)
    h = torch.diag(theory.features)[torch.repeat_interleave(torch.arange(3), torch.tensor([9, 9, 1]))]
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([9, 9, 1]))
    exact = against(_free_features.FreeFeatures([w], h, None, y, 0.0, 0.0), theory)
    assert exact == pytest.approx(dict.fromkeys(exact, 0.0), abs=1e-9)
    w[0] *= 1.1
    h[-1, 2] = 0.5 * float(theory.features[0])
    off = against(_free_features.FreeFeatures([w], h, None, y, 0.0, 0.0), theory)
    assert off["p_error"] == pytest.approx(0.1)
    assert off["classifier_error"] == pytest.approx(0.1)
    assert off["feature_error"] == pytest.approx(0, abs=1e-9)
    assert off["vanished"] == pytest.approx(0.5)


# heads of models


def test_the_head_is_the_linear_layers_in_a_row() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *mlp([4, 6, 5]), nn.ReLU(), nn.Linear(5, 7), nn.Dropout(), nn.Linear(7, 3), nn.Softmax(1)
    )
    x = torch.randn(11, 4)
    head = linear_head(model, x)
    assert [name for name, _, _ in head] == ["5", "7"]
    torch.testing.assert_close(head[1][2], model[7].weight)
    torch.testing.assert_close(head[0][2], model[7].weight @ model[5].weight)
    torch.testing.assert_close(head[0][1], model[:5](x))
    torch.testing.assert_close(head[1][1], model[5](model[:5](x)))
    assert model.training


def test_the_study_reads_the_penultimate_features_of_any_model() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.read = nn.Conv2d(1, 3, 3), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.read(torch.tanh(self.conv(x)).flatten(1))

    torch.manual_seed(1)
    model, x, y = Wide(), torch.randn(30, 1, 4, 4), torch.arange(30) % 4
    features = torch.tanh(model.conv(x)).flatten(1).detach()
    wanted = _collapse.collapse(features, y, model.read.weight.detach(), model(x).detach())
    found = nc_linear(model, x, y)
    assert {name: found.numbers[name] for name in wanted} == pytest.approx(wanted)
    assert found.numbers["nc1 read"] == pytest.approx(wanted["nc1"])
    means = torch.stack([features[y == k].mean(0) for k in range(4)])
    lengths = (means - means.mean(0)).norm(dim=1)
    assert found.numbers["feature_ratio"] == pytest.approx(float(lengths.max() / lengths.min()), rel=1e-5)
    lengths = means.norm(dim=1)
    plain = nc_linear(model, x, y, "orthogonal").numbers
    assert plain["feature_ratio"] == pytest.approx(float(lengths.max() / lengths.min()), rel=1e-5)
    assert plain["nc1"] == pytest.approx(wanted["nc1"])
    assert plain["nc2_means"] == pytest.approx(_collapse.frame_distance(means, "orthogonal"), rel=1e-5)


def test_choices_of_data_and_the_loss() -> None:
    y = torch.arange(30) % 3
    split = with_sizes(Split(torch.arange(30.0)[:, None], y, torch.arange(30.0)[:, None], y, 3, "t"), (7, 2))
    assert split.y_train.tolist() == [0] * 7 + [1] * 2
    assert split.x_train[:, 0].tolist() == [3.0 * i for i in range(7)] + [1.0, 4.0]
    assert set(split.y_test.tolist()) == {0, 1}
    assert split.num_classes == 2
    loss = one_hot_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((4 + 1) / 2 / 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _collapse.variability(torch.ones(3), torch.ones(3)), "(3,) and (3,)"),
        (lambda: _collapse.variability(torch.ones(3, 2), torch.ones(3)), "at least 2 classes"),
        (lambda: _collapse.frame("ets", 3), "'etf'"),
        (
            lambda: _collapse.collapse(torch.rand(4, 2), torch.arange(4), torch.rand(3, 2)),
            "0 to 2; got 0 to 3",
        ),
        (lambda: _collapse.collapse(torch.rand(4, 2), torch.arange(4), torch.rand(4, 3)), "3 units"),
        (lambda: free_features((3, 3), loss="bce"), "no loss is named 'bce'"),
        (lambda: free_features((3, 3), depth=2, decay=[0.1]), "2 layers"),
        (lambda: free_features((3, 3), decay=0.0), "positive penalty"),
        (lambda: linear_head(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), "no nn.Linear"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("nc_linear").values(), record("nc_linear").claims
    assert [c.says for c in own] == [c["says"] for c in known]

"""SNNK: the estimates against the functions and the arc-cosine kernel, merging, closed forms, adapters."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers import _features
from workingpapers.papers.layers._adapters import with_bottlenecks
from workingpapers.papers.layers._features import (
    Features,
    arc_cosine,
    error_slope,
    estimation_errors,
    gaussian_rows,
    irls,
    ridge,
)
from workingpapers.papers.layers.snnk import Bundle, SNNKAdapter, SNNKLinear, adapt, bundle, solve
from workingpapers.surgery import changes

FUNCTIONS = {
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "gaussian": lambda z: torch.exp(-z * z / 2),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("a", [0.0, -0.05])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_products_of_features_are_unbiased_estimates(kind: str, a: float) -> None:
    torch.manual_seed(1)
    x, w, b = 0.5 * normal(5, 3), 0.5 * normal(5, 3, seed=1), normal(5, seed=2)
    features = Features(3, 200_000, kind, a=a).double()
    terms = features.weights(w, b) * features(x) * 200_000
    error = (terms.mean(1) - FUNCTIONS[kind]((w * x).sum(1) + b)).abs()
    assert bool((error <= 4.5 * terms.std(1) / 200_000**0.5).all())
    assert float(terms.std(1).min()) > 0.05


def test_sine_of_the_specification_within_four_standard_errors() -> None:
    x, w = normal(6, seed=5) / 3, normal(6, seed=6) / 3
    torch.manual_seed(0)
    features = Features(6, 2000, "sin", bias=False).double()
    terms = features.weights(w) * features(x) * 2000
    assert abs(float(terms.mean() - (w @ x).sin())) <= 4 * float(terms.std()) / 2000**0.5


def test_features_of_relu_tend_to_the_arc_cosine_kernel() -> None:
    x, w = normal(4, 3), normal(4, 3, seed=1)
    w[3] = -2 * x[3]
    torch.manual_seed(0)
    features = Features(3, 400_000, bias=False).double()
    terms = features.weights(w) * features(x) * 400_000
    error = (terms.mean(1) - arc_cosine(x, w)).abs()
    assert bool((error <= 4.5 * terms.std(1) / 400_000**0.5 + 1e-7).all())
    torch.testing.assert_close(arc_cosine(x, 3 * x), 1.5 * x.square().sum(1))  # t = 0: half of x . w
    right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(arc_cosine(*right)) == pytest.approx(2 / (2 * math.pi))
    assert float(arc_cosine(x[3:], w[3:])) == pytest.approx(0.0, abs=1e-7)


def test_the_offset_of_relu_is_one_more_input() -> None:
    torch.manual_seed(0)
    features = Features(3, 8).double()
    x, w, b = normal(5, 3), normal(2, 3, seed=1), normal(2, seed=2)
    g = features.directions
    torch.testing.assert_close(features(x), (torch.cat([x, torch.ones(5, 1)], 1) @ g.T).relu() / 8**0.5)
    torch.testing.assert_close(features.weights(w, b), (torch.cat([w, b[:, None]], 1) @ g.T).relu() / 8**0.5)


def test_orthogonal_rows_are_orthogonal_by_blocks_and_long_as_normal_ones() -> None:
    torch.manual_seed(0)
    rows = gaussian_rows(2000, 4, orthogonal=True)
    block = rows[4:8]
    gram = block @ block.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-5, rtol=0)
    assert float(rows.square().sum(1).mean()) == pytest.approx(4, rel=0.05)
    assert gaussian_rows(5, 4, orthogonal=True).shape == (5, 4)


@pytest.mark.parametrize("kind", ["relu", "sin", "exp"])
def test_layers_multiply_both_features(kind: str) -> None:
    torch.manual_seed(0)
    layer = SNNKLinear(4, 3, num_features=10, kind=kind, learn="weights").double()
    x = 0.5 * normal(2, 5, 4)
    psi = layer.features.weights(layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), layer.features(x) @ psi.T)
    assert {n for n, _ in layer.named_parameters()} == {"weight", "bias"}
    direct = SNNKLinear(4, 3, num_features=10, kind=kind)
    assert {n: tuple(p.shape) for n, p in direct.named_parameters()} == {"direct": (3, 10)}


@pytest.mark.parametrize("second", ["relu", "sin", "exp"])
@pytest.mark.parametrize("first", ["relu", "cos"])
def test_merged_layers_give_what_they_gave(first: str, second: str) -> None:
    torch.manual_seed(0)
    one = SNNKLinear(4, 9, num_features=5, kind=first)
    two = SNNKLinear(9, 3, num_features=7, kind=second, learn="weights", a=0.0 if second == "relu" else -0.02)
    net = nn.Sequential(nn.Identity(), one, two, nn.Tanh()).double()
    x = 0.5 * normal(6, 4)
    merged = bundle(net)
    assert [type(m).__name__ for m in merged] == ["Identity", "Bundle", "Tanh"]
    torch.testing.assert_close(merged(x), net(x))
    assert merged[1].mixing.shape == (7, 5)  # nothing of the 9 is left
    assert len(changes(merged)) == 1
    assert changes(bundle(nn.Sequential(one, nn.Tanh(), two))) == []
    with pytest.raises(WorkingPapersError, match="got 9 outputs and 4 inputs"):
        Bundle(one, one)


def test_ridge_and_cross_entropy_are_those_of_scikit_learn() -> None:
    phi, y = normal(60, 5) + 1, normal(60, 2, seed=1)
    weight, offset = ridge(phi, y, 3.0)
    reference = Ridge(alpha=3.0).fit(phi.numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), reference.coef_, atol=1e-10)
    np.testing.assert_allclose(offset.numpy(), reference.intercept_, atol=1e-10)
    labels = torch.arange(60) % 3
    logistic = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=10_000)
    logistic.fit(phi.numpy(), labels.numpy())
    np.testing.assert_allclose(irls(phi, labels, 3, 2.0, steps=2000).numpy(), logistic.coef_, atol=1e-5)
    losses = []
    for steps in range(6):
        w = irls(phi, labels, 3, 2.0, steps=steps)
        losses.append(float(F.cross_entropy(phi @ w.T, labels, reduction="sum") + w.square().sum()))
    assert all(b < a for a, b in pairwise(losses))


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_merged_networks_are_solved_without_steps(loss: str) -> None:
    torch.manual_seed(0)
    x = normal(300, 2, 3, dtype=torch.float32)
    y = (x.flatten(1).norm(dim=1) > 2.3).long()
    net = solve(Features(6, 300), x, y, 2, penalty=1e-2, loss=loss)
    assert float((net(x).argmax(1) == y).float().mean()) > 0.97
    targets = x.flatten(1).norm(dim=1, keepdim=True)
    values = solve(Features(6, 300), x, targets, penalty=1e-4)(x).detach()
    assert float((values - targets).square().mean()) < 0.05 * float(targets.var())
    with pytest.raises(WorkingPapersError, match="no loss is named 'square'; the nearest name is 'squared'"):
        solve(Features(6, 4), x, y, 2, loss="square")


def test_adapters_start_as_nothing_and_alone_learn() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    x = normal(3, 4, dtype=torch.float32)
    state = torch.get_rng_state()
    adapted = adapt(net, ["0", "1"], num_features=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(adapted(x), net(x))
    learned = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    assert learned == {"0.1.psi": 30, "1.1.psi": 30}
    assert not torch.equal(adapted[0][1].features.directions, adapted[1][1].features.directions)
    assert all(p.requires_grad for p in net.parameters())
    adapter = SNNKAdapter(4, 3).double()
    adapter.psi.data.copy_(normal(4, 3))
    z = normal(5, 4, seed=1)
    torch.testing.assert_close(
        adapter(z), z + (z @ adapter.features.directions.T).relu() / 3**0.5 @ adapter.psi.T
    )
    with pytest.raises(WorkingPapersError, match="behind linear layers and layer norms; got Tanh"):
        adapt(net, nn.Tanh)


def test_the_usual_adapter_starts_as_nothing_too() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    x = normal(3, 4, dtype=torch.float32)
    usual = with_bottlenecks(net, ["0"], 2, 0)
    assert torch.equal(usual(x), net(x))
    assert sum(p.numel() for p in usual.parameters() if p.requires_grad) == 6 * 2 + 2 + 2 * 6 + 6


def test_errors_fall_as_the_root_of_the_number_of_features() -> None:
    for kind in ("sin", "relu"):
        errors = estimation_errors(kind, 3, (64, 1024), 100, 60, seed=0)
        assert errors[64] / errors[1024] == pytest.approx(4, rel=0.3)


def test_slopes_are_those_of_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    powers = {m: 3 * m**-0.7 for m in (2, 5, 16)}
    monkeypatch.setattr(_features, "estimation_errors", lambda *_: powers)
    assert error_slope("sin", 1, (), 1, 1, 0) == pytest.approx(-0.7)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(
        WorkingPapersError, match="no kind of features is named 'rele'; the nearest name is 'relu'"
    ):
        SNNKLinear(2, 3, kind="rele")
    with pytest.raises(WorkingPapersError, match="no way to learn"):
        SNNKLinear(2, 3, learn="weight-s")
    with pytest.raises(WorkingPapersError, match="A is at most 0; got 0.1"):
        Features(2, 3, "sin", a=0.1)


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("snnk", 3, 4, num_features=7), SNNKLinear)
    assert isinstance(make("snnk.adapter", 3), SNNKAdapter)
    assert [c.says for c in claims("snnk").values()] == [c["says"] for c in record("snnk").claims]

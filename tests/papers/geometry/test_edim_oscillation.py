"""Ranks over depth: the paper's numbers, what is true instead, correlation maps by quadrature, users' models."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.catalog import claims, record
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.geometry._edim_theory import (
    correlation_curve,
    next_correlation,
    revival_depths,
    revival_height,
    stated_rank,
)
from workingpapers.papers.geometry.edim_oscillation import (
    deviation,
    edim_oscillation,
    effective_dimensions,
    mean_cosine,
    random_features,
    random_weight,
    rank_curves,
    revivals,
)
from workingpapers.tasks import cnn, mlp


def features(m: int = 16, width: int = 32, depth: int = 6, slope: float = 0.0, weights: str = "gaussian"):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(int(torch.randint(1000, ())))
    return random_features(torch.randn(m, 16), width, depth, slope, weights, generator)


def test_the_papers_numbers() -> None:
    assert stated_rank(1, 64) == pytest.approx(64 * 2 / math.pi)
    assert stated_rank(1, 1) == pytest.approx(0.6366, abs=1e-4)
    assert stated_rank(2, 1) == pytest.approx(0.8679, abs=1e-4)
    deficits = [1 - stated_rank(i, 1) for i in range(5)]
    assert np.allclose(np.divide(deficits[1:], deficits[:-1]), 0.3634, atol=1e-4)
    assert revival_height(1) == pytest.approx(0.7921, abs=1e-4)
    first, second = revival_depths(2)
    assert second == pytest.approx(3 * first)
    assert math.cos(math.log(1 / (1 - 2 / math.pi)) * first) == pytest.approx(0, abs=1e-12)
    assert revival_depths(1, rho=math.exp(-math.pi)) == pytest.approx([0.5])


def test_equal_inputs_have_rank_1_at_every_layer() -> None:
    x = torch.randn(1, 5).expand(9, 5)
    for slope, weights in ((0.0, "gaussian"), (0.2, "orthogonal")):
        curves = rank_curves(random_features(x, 20, 8, slope, weights, torch.Generator().manual_seed(0)))
        for name, curve in curves.items():
            assert np.allclose(curve, 1), name


def test_rotations_without_activation_keep_every_rank() -> None:
    x = torch.randn(10, 12, dtype=torch.float64) * torch.logspace(0, -4, 12)
    curves = rank_curves(random_features(x, 12, 7, 1.0, "orthogonal", torch.Generator().manual_seed(1)))
    for name, curve in curves.items():
        assert np.allclose(curve, curve[0]), name


def test_the_exact_rank_is_full_at_layer_1_and_soft_ranks_only_fall() -> None:
    """Where the paper has 0.637 m: 64 inputs, width 256."""
    found = edim_oscillation(64, 256, 8, 64, networks=2)
    assert found.numbers["exact at 1"] == 64
    assert found.numbers["exact deviation"] == pytest.approx(1 - 2 / math.pi)
    for notion in ("stable", "nuclear", "participation", "entropy"):
        assert (np.diff(found.details["mean"][notion][1:]) < 0).all()
        assert found.numbers[f"{notion} rise"] == 0
    assert not any(v["revivals"] for v in found.details["verdicts"].values())
    assert "not reproduced by any rank" in found.reading


def test_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    w = random_weight(500, 300, "gaussian", generator)
    assert float(w.var()) == pytest.approx(2 / 500, rel=0.03)
    for shape in ((5, 9), (9, 5), (6, 6)):
        w = random_weight(*shape, "orthogonal", generator)
        gram = w @ w.T if shape[0] <= shape[1] else w.T @ w
        assert torch.allclose(gram, 2 * torch.eye(min(shape)).double())
    signs = torch.stack([random_weight(1, 1, "orthogonal", generator) for _ in range(40)])
    assert 5 < int((signs > 0).sum()) < 35


def test_features_are_layers_of_the_activation() -> None:
    relu, leaky = features(), features(slope=0.5)
    assert [h.shape[1] for h in relu] == [16, *[32] * 6]
    assert all((h >= 0).all() for h in relu[1:])
    assert all((h < 0).any() for h in leaky[1:])
    sizes = [float(h.square().sum() / h.shape[1]) for h in relu]
    assert max(sizes[1:]) < 10 * min(sizes[1:])  # variance 2 / fan-in neither blows up nor vanishes


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0, -1.0])
@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.4, 0.95])
def test_correlation_map_by_quadrature(slope: float, rho: float) -> None:
    angles = (np.arange(100_000) + 0.5) * 2 * math.pi / 100_000  # the radius factors out of the expectation
    u, v = np.cos(angles), rho * np.cos(angles) + math.sqrt(1 - rho**2) * np.sin(angles)
    f, g = (np.where(z > 0, z, slope * z) for z in (u, v))
    wanted = (f * g).mean() / math.sqrt((f * f).mean() * (g * g).mean())
    assert next_correlation(rho, slope) == pytest.approx(wanted, abs=1e-7)


def test_correlations_of_a_wide_network_follow_the_map_and_only_grow() -> None:
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double()
    layers = random_features(x, 4000, 3, 0.0, "gaussian", torch.Generator().manual_seed(0))
    rho = 0.6
    for h in layers[1:]:
        rho, before = next_correlation(rho), rho
        assert rho > before
        assert float(torch.cosine_similarity(h[0], h[1], 0)) == pytest.approx(rho, abs=0.03)
    assert next_correlation(1.0) == pytest.approx(1)
    curve = correlation_curve(2, 0.2, rho=0.6)
    once = next_correlation(0.6, 0.2)
    assert curve == pytest.approx([0.6, once, next_correlation(once, 0.2)])


def test_mean_cosine_of_pairs() -> None:
    x = torch.randn(7, 4)
    wanted = [float(torch.cosine_similarity(x[i], x[j], 0)) for i in range(7) for j in range(i)]
    assert mean_cosine(x) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert mean_cosine(torch.zeros(3, 4)) == 0
    for slope in (0.0, 0.5):
        found = edim_oscillation(20, 256, 4, 100, slope, networks=4)
        assert found.details["cosine"] == pytest.approx(found.details["cosine_predicted"], abs=0.05)


def test_deviation_and_revivals_of_made_curves() -> None:
    m = 100
    stated = np.array([stated_rank(i, m) for i in range(12)])
    assert deviation(stated, m) == 0
    assert deviation(np.concatenate([stated[:9], [0, 0]]), m) == 0  # layers up to 8 count
    assert deviation(stated + np.eye(12)[3] * 7, m) == pytest.approx(0.07)
    assert deviation(np.array([0, m]), m) == pytest.approx(1 - 2 / math.pi)
    falling = np.linspace(90, 10, 9)
    assert revivals(falling, m) == (0, 0)
    assert revivals(np.array([50, *falling]), m) == (0, 0)  # layer 0 is the inputs
    waves = np.array([20, 100, 40, 60, 50, 79, 30, 33, 30.0])
    rise, maxima = revivals(waves, m)
    assert (rise, maxima) == (pytest.approx(0.39), 2)  # the last wave of 3 is below 5


def test_planted_collapse_in_a_users_model_is_found() -> None:
    model = mlp([12, 40, 40, 5])
    with torch.no_grad():
        model[3].weight.copy_(model[3].weight[:1].expand(40, 40))
        model[3].bias.zero_()
    found = effective_dimensions(model, torch.randn(60, 12))
    assert list(found.details["ranks"])[:3] == ["inputs", "0", "1"]
    assert found.numbers["exact 3"] == 1
    assert found.numbers["exact inputs"] == 12
    assert found.numbers["lowest"] < 0.5
    assert found.numbers["stable 3"] == pytest.approx(1)
    images = effective_dimensions(cnn(1, 4, size=8), torch.randn(6, 1, 8, 8), nn.Conv2d)
    assert images.numbers["exact 0"] == 6
    assert effective_dimensions(model, torch.randn(60, 12), nn.ReLU, centre=True).numbers["exact 4"] <= 1


def test_refusals() -> None:
    with pytest.raises(UnknownName, match="gaussian"):
        edim_oscillation(4, 5, 2, 4, weights="gausian", networks=1)
    with pytest.raises(WorkingPapersError, match="between 0 and 1"):
        revival_depths(1, rho=1.0)
    with pytest.raises(WorkingPapersError, match="from 1"):
        edim_oscillation(networks=0)


def test_the_claims_are_the_records() -> None:
    assert [c.says for c in claims("edim_oscillation").values()] == [
        c["says"] for c in record("edim_oscillation").claims
    ]

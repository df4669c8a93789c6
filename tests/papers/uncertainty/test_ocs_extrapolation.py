"""Drift to the best constant: constants against scipy, distances and shifts by hand, features against numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.uncertainty._constants import (
    distances,
    mean_reward,
    minimised_constant,
    optimal_action,
    optimal_constant,
    oracle_threshold,
    reward_loss,
    reward_table,
)
from workingpapers.papers.uncertainty._drift import Drift, drift, ood_score
from workingpapers.papers.uncertainty._features import (
    accumulated_constant,
    features,
    homogeneous_mlp,
    last_linear,
    layer_report,
    off_subspace,
    second_moments,
)
from workingpapers.papers.uncertainty._shifts import (
    SHIFTS,
    blur,
    contrast,
    fog,
    noise,
    patch_shuffle,
    rotation,
    shifted,
)
from workingpapers.papers.uncertainty.ocs_extrapolation import ocs_extrapolation
from workingpapers.tasks import mlp

# constants


def test_frequencies_minimise_cross_entropy() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2, 0, 2, 1, 0])
    constant = optimal_constant(y, "cross_entropy").numpy()
    assert constant == pytest.approx([0.5, 0.3, 0.2])

    def loss(logits: Any) -> float:
        return float(F.cross_entropy(torch.tensor(logits).expand(10, 3), y))

    found = minimize(loss, np.zeros(3), tol=1e-12)
    assert np.exp(found.x) / np.exp(found.x).sum() == pytest.approx(constant, abs=1e-5)
    assert loss(np.log(constant)) <= found.fun + 1e-6
    assert optimal_constant(y, "cross_entropy", 5).tolist() == pytest.approx([0.5, 0.3, 0.2, 0, 0])


def test_mean_and_population_variance() -> None:
    y = torch.tensor([[1.0], [2.0], [6.0]])
    assert optimal_constant(y, "mse").tolist() == [3.0]
    assert optimal_constant(y, "gaussian_nll").tolist() == pytest.approx([3.0, 14 / 3])

    def loss(p: Any) -> float:
        return float(np.mean(p[1] + (np.array([1, 2, 6]) - p[0]) ** 2 / np.exp(p[1])))

    found = minimize(loss, np.zeros(2), tol=1e-12)
    assert (found.x[0], math.exp(found.x[1])) == pytest.approx((3.0, 14 / 3), abs=1e-4)


def test_any_loss_is_minimised() -> None:
    y = torch.tensor([0.0, 1.0, 10.0])
    absolute = minimised_constant(y, lambda o, t: ((o[:, 0] - t).square() + 0.01).sqrt().mean(), 1)
    assert float(absolute[0]) == pytest.approx(1.0, abs=0.1)  # nearly the median
    labels = torch.tensor([0, 0, 1])
    logits = minimised_constant(labels, F.cross_entropy, 2)
    assert float(logits[0] - logits[1]) == pytest.approx(math.log(2), abs=1e-6)


def test_distances_are_zero_at_the_constant_and_by_hand_elsewhere() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    outputs = torch.stack([p.log() + 4.0, torch.zeros(3)])
    wanted = sum(q * math.log(3 * q) for q in p.tolist())
    assert distances(outputs, p, "cross_entropy").tolist() == pytest.approx([0.0, wanted], abs=1e-6)
    with_zero = torch.tensor([1.0, 0.0, 0.0])
    assert float(distances(torch.zeros(1, 3), with_zero, "cross_entropy")) == pytest.approx(math.log(3))
    assert distances(torch.tensor([[1.0, 5.0]]), torch.tensor([1.0, 2.0]), "mse").tolist() == [9.0]
    normal = torch.distributions.Normal
    constant = torch.tensor([1.0, 4.0])
    outputs = torch.tensor([[1.0, math.log(4)], [2.0, math.log(9)]])
    found = distances(outputs, constant, "gaussian_nll")
    wanted_kl = torch.distributions.kl_divergence(normal(1.0, 2.0), normal(2.0, 3.0))
    assert found.tolist() == pytest.approx([0.0, float(wanted_kl)], abs=1e-6)


def test_rewards() -> None:
    table = reward_table(3)
    assert table.tolist() == [[1, -4, -4], [-4, 1, -4], [-4, -4, 1], [0, 0, 0]]
    assert optimal_action(torch.tensor([0, 1, 2]), table) == 3
    assert optimal_action(torch.tensor([1] * 9 + [0]), table) == 1  # 0.9 - 0.4 is more than 0
    y = torch.tensor([0, 1, 2])
    assert mean_reward(torch.tensor([0, 2, 3]), y, table) == pytest.approx(-1.0)
    assert float(reward_loss(table)(table.T[y], y)) == 0
    constant = minimised_constant(y, reward_loss(table), 4)
    assert constant.tolist() == pytest.approx([-7 / 3, -7 / 3, -7 / 3, 0], abs=1e-6)


def test_the_oracle_abstains_where_that_pays() -> None:
    table = reward_table(2)
    logits = torch.tensor([[9.0, 0.0], [3.0, 0.0], [0.0, 1.0]])  # right, right, wrong: only the last abstains
    assert oracle_threshold(logits, torch.tensor([0, 0, 0]), table) == pytest.approx(2 / 3)
    assert oracle_threshold(logits, torch.tensor([1, 1, 0]), table) == 0
    assert oracle_threshold(logits, torch.tensor([0, 0, 1]), table) == 1


# shifts


def images(side: int = 8) -> Tensor:
    return torch.rand(6, 2, side, side, generator=torch.Generator().manual_seed(3))


def test_blur_keeps_constants_and_spreads_a_point_evenly() -> None:
    torch.testing.assert_close(blur(torch.full((1, 1, 5, 7), 2.0), 1.5), torch.full((1, 1, 5, 7), 2.0))
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    seen = blur(point, 2.0)[0, 0]
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    assert float(seen[20, 22] / seen[20, 20]) == pytest.approx(math.exp(-0.5), abs=1e-4)
    assert float(seen[22, 22] / seen[20, 20]) == pytest.approx(math.exp(-1), abs=1e-4)


def test_contrast_and_noise_keep_what_they_promise() -> None:
    x = images()
    torch.testing.assert_close(contrast(x, 0.3).mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(contrast(x, 0.3).std((2, 3)), 0.3 * x.std((2, 3)))
    noisy = noise(x, 4.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    correlation = torch.corrcoef(torch.stack([noisy[0].flatten(), x[0].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.5  # 1 / sqrt(17) in the mean


def test_fog_blends_towards_the_bright_half() -> None:
    x = images()
    whole = fog(x, 1.0, torch.Generator().manual_seed(0))
    low, high = float(x.min()), float(x.max())
    assert float(whole.min()) == pytest.approx((low + high) / 2, abs=1e-5)
    assert float(whole.max()) == pytest.approx(high, abs=1e-5)
    half = fog(x, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(half, (x + whole) / 2)


def test_patches_are_moved_whole() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(3, 2, 1, 1)
    moved = patch_shuffle(x, 2, torch.Generator().manual_seed(0))
    found = {tuple(moved[0, 0, i : i + 2, j : j + 2].flatten().tolist()) for i in (0, 2) for j in (0, 2)}
    assert found == {(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)}
    torch.testing.assert_close(moved[:, 0], moved[:, 1])  # channels stay together
    assert not torch.equal(moved, x)
    with pytest.raises(WorkingPapersError, match="divisible"):
        patch_shuffle(x, 3, torch.Generator())


def test_a_quarter_turn_against_the_clock() -> None:
    x = images()
    torch.testing.assert_close(rotation(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation(x, 0.0), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("side", [8, 7])
def test_shifts_by_level(name: str, side: int) -> None:
    x = images(side)
    before = x.clone()
    assert torch.equal(shifted(x, name, 0), x)
    levels = [shifted(x, name, k, seed=4) for k in range(1, 6)]
    assert all(z.shape == x.shape and bool(z.isfinite().all()) for z in levels)
    assert torch.equal(shifted(x, name, 3, seed=4), levels[2])
    assert torch.equal(x, before)
    assert float((levels[4] - x).norm()) >= float((levels[0] - x).norm()) * 0.99


def test_shifts_refuse() -> None:
    for arguments, match in (
        ((images(), "blurr", 1), "the nearest name is 'blur'"),
        ((images(), "blur", 6), "from 0 to 5; got 6"),
        ((torch.zeros(3, 4), "blur", 1), r"images \(N, C, H, W\)"),
    ):
        with pytest.raises(WorkingPapersError, match=match):
            shifted(*arguments)


# features


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).eval()


def test_second_moments_against_loops() -> None:
    model, x = convolutional(), images()
    found = second_moments(model, x)
    padded = np.pad(x.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = [
        padded[n, :, i : i + 3, j : j + 3].ravel()
        for n in range(6)
        for i in range(0, 8, 2)
        for j in range(0, 8, 2)
    ]
    np.testing.assert_allclose(found["0"], np.mean([np.outer(p, p) for p in patches], 0), atol=1e-6)
    own = features(model, x).double()
    torch.testing.assert_close(found["4"], own.T @ own / 6)
    assert last_linear(model, x) == "4"


def test_scaled_inputs_scale_what_has_no_bias() -> None:
    """Half the input: half the norm and half the signal at every layer of a network without biases."""
    model = homogeneous_mlp([5, 9, 7, 3])
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    for seen in layer_report(model, x, x, [x / 2]).values():
        assert seen[0].norm == pytest.approx(0.5, abs=1e-6)
        assert seen[0].signal == pytest.approx(0.5, abs=1e-6)
        assert seen[0].inside >= 0.95
    last = model[-1]
    signal = (features(model, x) @ last.weight.detach().T).square().sum(1).mean().sqrt()
    constant = layer_report(model, x, x, [x])["4"][0].constant
    assert constant == pytest.approx(float(last.bias.detach().norm() / signal), rel=1e-5)


def test_the_share_inside_a_subspace() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1e-3]]))
    train = torch.tensor([[1.0, 0.0, 0.0], [-3.0, 0.0, 0.0]])
    seen = layer_report(model, train, train, [torch.tensor([[3.0, 4.0, 0.0]])])["0"][0]
    assert seen.inside == pytest.approx(9 / 25)
    assert seen.along_weights == pytest.approx(16 / 25)
    assert seen.norm == pytest.approx(5 / math.sqrt(5))


def test_the_constant_that_is_left() -> None:
    model, x = convolutional(), images()
    torch.testing.assert_close(accumulated_constant(model, x, "4"), model[4].bias.detach().expand(6, 4))
    with torch.no_grad():
        only = model[0].bias[None, :, None, None].expand(1, 3, 4, 4)
        torch.testing.assert_close(accumulated_constant(model, x[:1], "0"), model[1:](only))
    assert not model[4]._forward_hooks
    with pytest.raises(WorkingPapersError, match="'1' is no linear or convolutional layer"):
        accumulated_constant(model, x, "1")


def test_networks_with_a_last_bias_are_homogeneous_before_it() -> None:
    model = homogeneous_mlp([4, 8, 8, 2], seed=1).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    bias = model[-1].bias
    torch.testing.assert_close(model(3.5 * x) - bias, 3.5 * (model(x) - bias))
    assert [m.bias is None for m in model if isinstance(m, nn.Linear)] == [True, True, False]


def test_turning_out_of_the_subspace_of_the_first_layer() -> None:
    """Where weights live in the subspace, cos(angle) of the output is left: all else is orthogonal to them."""
    model = homogeneous_mlp([4, 6, 3], seed=2).double()
    basis = torch.eye(4, 2, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[:, 2:] = 0
    x = torch.randn(30, 2, dtype=torch.float64) @ basis.T
    left = off_subspace(model, x, basis, (0.0, 0.5, math.pi / 2))
    assert list(left.values()) == pytest.approx([1, math.cos(0.5), 0], abs=1e-9)


# the finding


def test_scores_of_being_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    x, same = (torch.randn(200, 5, generator=generator) for _ in range(2))
    assert ood_score(x, same + 5) == 1
    assert abs(ood_score(x, same) - 0.5) < 0.12
    with pytest.raises(WorkingPapersError, match="at least 4 inputs"):
        ood_score(x[:2], same)


def test_a_constant_model_is_at_its_constant_and_a_scaled_one_drifts() -> None:
    y = torch.tensor([0, 0, 0, 1])
    constant = optimal_constant(y, "cross_entropy")
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(constant.log())
    x = torch.tensor([[4.0, 0.0], [0.0, 4.0], [3.0, 0.0], [0.0, 2.0]])
    levels = [x / 2, x / 4, x * 0]
    seen = drift(model, x, levels, constant, "cross_entropy")
    assert seen.spearman == pytest.approx(-1)
    assert seen.ratio == pytest.approx(0, abs=1e-6)
    assert seen.norms == pytest.approx([1, 0.5, 0.25, 0])
    assert Drift([], [1.0, 2.0, 3.0], []).spearman == pytest.approx(1)
    assert Drift([], [2.0, 2.0], []).spearman == 0
    found = ocs_extrapolation(model, x, y, x, shifts={"smaller": levels})
    assert found.numbers["constant"] == pytest.approx(0, abs=1e-6)
    assert found.numbers["ratio_smaller"] == pytest.approx(seen.ratio)
    assert found.numbers["norm_smaller"] == 0


def test_other_losses_and_refusals() -> None:
    model, x = mlp([2, 4, 2]), torch.randn(12, 2)
    for loss, y in (("mse", torch.randn(12, 2)), ("gaussian_nll", torch.randn(12, 1))):
        found = ocs_extrapolation(model, x, y, x, loss, {"scaled": [x / 2, x / 9]})
        assert math.isfinite(found.numbers["ratio_scaled"])
    for options, match in (
        ({"loss": "hinge"}, "no loss with a constant in closed form"),
        ({"shifts": {}}, "at least one shift"),
        ({"shifts": ("blur",)}, "images"),
    ):
        with pytest.raises(WorkingPapersError, match=match):
            ocs_extrapolation(model, x, torch.arange(12) % 2, x, **options)
    with pytest.raises(WorkingPapersError, match="no linear layer"):
        last_linear(nn.Sequential(nn.ReLU()), x)
    with pytest.raises(WorkingPapersError, match="at least one target"):
        optimal_constant(torch.zeros(0), "mse")


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("ocs_extrapolation").claims}
    assert {c.says for c in claims("ocs_extrapolation").values()} == said

"""Convergent learning: permuted copies, matchings by brute force, the lasso against scikit-learn's, clusters."""

import copy
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret._mappings import sparse_prediction, spectral_clusters
from workingpapers.papers.interpret._matching import (
    Moments,
    bipartite_matching,
    correlation,
    dead_units,
    duplicates,
    mutual_information,
    semi_matching,
)
from workingpapers.papers.interpret._unit_pairs import (
    chance,
    draw_filters,
    losses,
    pair_up,
    quarters,
    span_over_match,
    unit_rows,
)
from workingpapers.papers.interpret.convergent_learning import convergent_learning
from workingpapers.tasks import cnn, mlp


def permuted(model: nn.Sequential, order: Tensor) -> nn.Sequential:
    """Return a copy of a CNN with its first filters in another order, the same function."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[3].weight.copy_(model[3].weight[:, order])
    return other


def test_a_permuted_copy_is_recognised() -> None:
    model, x = cnn(1, 3, (8, 5), size=12, activation=nn.Tanh), torch.randn(30, 1, 12, 12)
    order = torch.randperm(8)
    other = permuted(model, order)
    torch.testing.assert_close(other(x), model(x))
    found = convergent_learning(model, other, x, "1")
    for name in ("semi", "one_to_one", "top_quarter", "bottom_quarter", "same_by_information", "explained"):
        assert found.numbers[name] == pytest.approx(1, abs=1e-6), name
    assert found.numbers["predictors"] == 1
    # unit i of the model is where the permutation put it
    for name in ("one_to_one", "semi"):
        assert found.details[name].partner.tolist() == order.argsort().tolist()
    assert abs(found.numbers["chance"]) < 0.3


def test_a_net_correlates_with_itself_at_one_but_for_dead_units() -> None:
    model, x = cnn(1, 3, (6, 5), size=12), torch.randn(20, 1, 12, 12)
    with torch.no_grad():
        model[0].bias[2] = -100
    pair = pair_up(model, model, x, "1")
    expected = np.ones(6)
    expected[2] = 0
    np.testing.assert_allclose(np.diag(pair.between), expected, atol=1e-12)
    assert pair.dead == [2, 8]
    assert pair.live == [0, 1, 3, 4, 5]
    assert not pair.joint[2].any()
    assert convergent_learning(model, model, x, "1").numbers["live_b"] == 5


def test_all_positions_of_a_map_are_rows_and_batches_do_not_matter() -> None:
    a, b = (cnn(1, 3, (4, 5), size=8) for _ in range(2))
    x = 3 + torch.randn(23, 1, 8, 8)
    rows = [m[1](m[0](x)).detach().permute(0, 2, 3, 1).reshape(-1, 4).double().numpy() for m in (a, b)]
    assert rows[0].shape == (23 * 64, 4)
    wanted = np.corrcoef(*rows, rowvar=False)
    for batch in (5, 23):
        pair = pair_up(a, b, x, "1", batch=batch)
        np.testing.assert_allclose(pair.joint, wanted, atol=1e-9)
    assert len(pair.rows_a) == 23 * 64  # all are kept where they are few
    few = pair_up(a, b, x, "1", sample=50, batch=5)
    assert few.rows_a.shape == few.rows_b.shape == (50, 4)
    chosen, every = torch.cat([few.rows_a, few.rows_b], 1).double(), torch.from_numpy(np.hstack(rows))
    assert float((chosen[:, None] - every).abs().amax(2).amin(1).max()) < 1e-5


def test_units_are_channels() -> None:
    assert unit_rows(nn.ReLU(), torch.zeros(2, 3, 4, 5)).shape == (40, 3)
    assert unit_rows(nn.ReLU(), torch.zeros(2, 7, 3)).shape == (14, 3)
    assert unit_rows(nn.Conv1d(1, 1, 1), torch.zeros(2, 3, 7)).shape == (14, 3)
    assert unit_rows(nn.LayerNorm(5), torch.zeros(2, 3, 4, 5)).shape == (24, 5)
    y = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(unit_rows(nn.ReLU(), y)[1], y[0, :, 0, 1])
    with pytest.raises(WorkingPapersError, match="units, ..."):
        unit_rows(nn.ReLU(), torch.zeros(3))


def test_moments_merge_exactly_even_far_from_zero() -> None:
    rows = 1e6 + torch.randn(1000, 3).double() @ torch.randn(3, 3).double()
    moments = Moments()
    for piece in rows.split([1, 9, 0, 500, 490]):
        moments.add(piece)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T.numpy(), bias=True), rtol=1e-8)
    with pytest.raises(WorkingPapersError, match="no rows"):
        _ = Moments().covariance


def test_correlations_are_pearsons() -> None:
    a, b = torch.randn(200, 3), torch.randn(200, 4)
    b[:, 1] = -2 * a[:, 0] + 5
    b[:, 2] = 0.3
    found = correlation(a, b)
    assert found.matrix.shape == (3, 4)
    assert found.matrix[0, 1] == pytest.approx(-1, abs=1e-9)
    assert not found.matrix[:, 2].any()
    assert (found.dead_a, found.dead_b) == ([], [2])
    wanted = np.corrcoef(a.double().numpy(), b[:, [0, 1, 3]].double().numpy(), rowvar=False)[:3, 3:]
    np.testing.assert_allclose(found.matrix[:, [0, 1, 3]], wanted, atol=1e-9)


def test_duplicate_and_dead_units_are_named() -> None:
    rows = torch.randn(500, 6)
    rows[:, 4] = 3 * rows[:, 1] + 1
    rows[:, 5] = -rows[:, 2] + 0.01 * torch.randn(500)
    rows[:, 3] = 7.0
    assert dead_units(rows) == [3]
    found = duplicates(rows)
    assert [(i, j) for i, j, _ in found] == [(1, 4), (2, 5)]
    assert found[0][2] == pytest.approx(1)
    assert -1 < found[1][2] < -0.99
    assert duplicates(rows, limit=0.99999) == found[:1]


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4)])
def test_the_bipartite_matching_is_the_best_of_all_and_the_semi_matching_an_upper_bound(
    shape: tuple[int, int],
) -> None:
    matrix = np.random.default_rng(0).uniform(-1, 1, shape)
    one, semi = bipartite_matching(matrix), semi_matching(matrix)
    small, large = min(shape), max(shape)
    wide = matrix if shape[0] <= shape[1] else matrix.T
    best = max(sum(wide[i, p[i]] for i in range(small)) for p in permutations(range(large), small))
    assert one.value.sum() == pytest.approx(best)
    assert sorted(one.partner[one.partner >= 0].tolist()) == sorted(
        set(one.partner[one.partner >= 0].tolist())
    )
    assert (one.partner >= 0).sum() == small
    assert semi.value.tolist() == matrix.max(1).tolist()
    assert all(matrix[i, semi.partner[i]] == matrix[i].max() for i in range(shape[0]))
    left, greedy = matrix.copy(), 0.0
    for _ in range(small):
        i, j = np.unravel_index(left.argmax(), shape)
        greedy += matrix[i, j]
        left[i], left[:, j] = -9, -9
    assert one.value.sum() >= greedy - 1e-12


def test_mutual_information_is_that_of_the_levels() -> None:
    n = 4000
    a, b = torch.randn(n, 2).double(), torch.randn(n, 3).double()
    b[:, 1] = a[:, 0] ** 3  # monotone: the same levels
    b[:, 2] = a[:, 1].abs()  # uncorrelated, yet dependent
    found = mutual_information(a, b)
    assert found[0, 1] == pytest.approx(np.log(8), abs=1e-3)
    assert found[0, 0] < 0.02
    assert found[1, 2] > 1.0 > abs(correlation(a, b).matrix[1, 2]) + 0.9
    np.testing.assert_allclose(mutual_information(a.exp(), 5 * b - 1), found, atol=1e-9)

    def levels(v: Tensor) -> np.ndarray:
        return (v.argsort().argsort() * 8 // n).numpy()

    assert found[1, 0] == pytest.approx(mutual_info_score(levels(a[:, 1]), levels(b[:, 0])), abs=2e-3)
    silent = mutual_information(torch.zeros(n, 1), b)
    np.testing.assert_allclose(silent, 0, atol=1e-12)


@pytest.mark.parametrize("penalty", [1e-3, 10**-1.5, 0.1])
def test_the_lasso_from_correlations_is_scikit_learns_on_rows(penalty: float) -> None:
    generator = np.random.default_rng(3)
    a = generator.standard_normal((400, 6)) @ generator.standard_normal((6, 6))
    b = a[:, :2] @ generator.standard_normal((2, 4)) + generator.standard_normal((400, 4))
    a, b = ((m - m.mean(0)) / m.std(0) for m in (a, b))
    found = sparse_prediction(a.T @ a / 400, a.T @ b / 400, [penalty])
    assert found.penalties.tolist() == [0.0, penalty]
    for j in range(4):
        lasso = Lasso(penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(a, b[:, j])
        np.testing.assert_allclose(found.weights[1, j], lasso.coef_, atol=1e-6)
        assert found.loss[1, j] == pytest.approx(np.mean((b[:, j] - lasso.predict(a)) ** 2), abs=1e-8)
        plain = np.linalg.lstsq(a, b[:, j], rcond=None)
        np.testing.assert_allclose(found.weights[0, j], plain[0], atol=1e-8)
        assert found.loss[0, j] == pytest.approx(plain[1][0] / 400)
        assert found.predictors[1, j] == (np.abs(lasso.coef_) > 1e-6).sum()


def test_sums_of_two_units_need_two_predictors() -> None:
    a = torch.randn(20_000, 5)
    b = torch.stack([a[:, 0], a[:, 1] + a[:, 2], torch.zeros(20_000)], 1)
    within, between = correlation(a).matrix, correlation(a, b).matrix
    found = sparse_prediction(within, between)
    assert found.dead == [2]
    assert found.fewest().tolist() == [1, 2]
    with pytest.raises(WorkingPapersError, match="by 'explained' or by 'loss'"):
        found.fewest(of="luck")
    with pytest.raises(WorkingPapersError, match="at least 0"):
        sparse_prediction(within, between, [-1.0])


def test_a_dead_or_doubled_predictor_does_no_harm() -> None:
    a = torch.randn(500, 3)
    a[:, 1] = 0
    a = torch.cat([a, a[:, :1]], 1)
    found = sparse_prediction(correlation(a).matrix, correlation(a, a[:, :1]).matrix)
    assert np.isfinite(found.weights).all()
    assert found.loss[0, 0] == pytest.approx(0, abs=1e-9)
    assert not found.weights[:, :, 1].any()


def test_clusters_are_the_planted_groups() -> None:
    factors = torch.randn(5000, 3)
    groups_a, groups_b = [0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 0]
    a, b = (factors[:, g] + 0.3 * torch.randn(5000, len(g)) for g in (groups_a, groups_b))
    a[:, 3] *= -1  # an inverted unit belongs to its group
    b[:, 1] = 4.0
    joint = correlation(torch.cat([a, b], 1)).matrix
    found = spectral_clusters(joint, 6, 3)
    name = {found.a[i]: g for i, g in enumerate(groups_a)}
    assert len(name) == 3
    assert [name[g] for g in found.a] == groups_a
    assert found.b[1] == -1
    assert [name[found.b[j]] for j in (0, 2, 3, 4)] == [2, 1, 0, 0]
    assert found.score > 0.85
    assert found.outside < 0.1
    with pytest.raises(WorkingPapersError, match="10 live units make 1 to 10 clusters; asked for 11"):
        spectral_clusters(joint, 6, 11)


def test_curves_are_summed_up_by_their_ends() -> None:
    semi, one = np.linspace(1, 0.3, 8), np.linspace(1, 0.3, 8) - np.array([0, 0, 0, 0, 0.1, 0.1, 0.2, 0.4])
    assert quarters(semi)["top_quarter"] == pytest.approx(0.95)
    assert quarters(semi)["bottom_quarter"] == pytest.approx(0.35)
    assert losses(semi, one) == pytest.approx({"best_half_loss": 0.0, "worst_quarter_loss": 0.3})


def test_a_rotated_layer_spans_the_same_space_in_another_basis() -> None:
    torch.manual_seed(0)
    turned = torch.linalg.qr(torch.randn(6, 6))[0]
    model, other = nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        other[0].weight.copy_(turned)
    pair = pair_up(model, other, torch.randn(2000, 6), "0")
    assert pair.prediction(()).loss.max() < 1e-6
    assert span_over_match(pair) > 0.3
    assert span_over_match(pair_up(model, model, torch.randn(2000, 6), "0")) == pytest.approx(0, abs=1e-6)
    assert abs(chance(pair)) < 0.1


def test_bad_input_is_named() -> None:
    a, b = mlp([4, 5, 2]), mlp([4, 6, 2])
    x = torch.randn(20, 4)
    assert convergent_learning(a, b, x, "2", clusters=2).details["one_to_one"].partner.shape == (5,)
    with pytest.raises(WorkingPapersError, match="rows"):
        correlation(torch.randn(3, 2, 2))
    with pytest.raises(WorkingPapersError, match="same rows; got 3 and 4"):
        correlation(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(WorkingPapersError, match="at least 2 levels"):
        mutual_information(torch.randn(3, 2), torch.randn(3, 2), levels=1)
    with pytest.raises(WorkingPapersError, match="maps of one size"):
        pair_up(cnn(1, 2, (3,), size=8), cnn(1, 2, (3,), size=8), torch.randn(4, 1, 8, 8), "1", "2")
    with torch.no_grad():
        a[1].bias.fill_(-1000)
    with pytest.raises(WorkingPapersError, match="no unit of the layer '2' varies"):
        convergent_learning(a, b, x, "2")


def test_filters_are_drawn_beside_their_match() -> None:
    from matplotlib import pyplot

    one, other = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
    matched = bipartite_matching(np.eye(4)[[2, 0, 1, 3]])
    figure = draw_filters(one, other, matched)
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert len(shown) == 8
    pyplot.close(figure)
    np.testing.assert_allclose(shown[0], one.weight[0].mean(0).detach(), rtol=1e-6)
    np.testing.assert_allclose(shown[4], other.weight[2].mean(0).detach(), rtol=1e-6)
    with pytest.raises(WorkingPapersError, match="weights"):
        draw_filters(nn.ReLU(), other, matched)

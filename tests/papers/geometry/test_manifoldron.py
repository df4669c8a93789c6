"""Manifoldron: convex sets, training points, affine functions, brute force beside each rule, edges and refusals."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from scipy.optimize import minimize
from scipy.spatial import ConvexHull
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from workingpapers.catalog import claims, make, record
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.geometry._complexes import envelope, neighbour_pairs, trimmed
from workingpapers.papers.geometry._point_sets import CURVED, accuracies, point_set, rivals
from workingpapers.papers.geometry.manifoldron import Manifoldron, ManifoldronRegressor, plot_2d


def cloud(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d))


def volume(corners: Any) -> float:
    return abs(float(np.linalg.det(corners[1:] - corners[0])))


def in_simplex(corners: Any, x: Any) -> bool:
    """Decide by the volumes of the simplices that x makes with the facets, which add up to the whole inside."""
    parts = [volume(np.vstack([np.delete(corners, i, 0), x])) for i in range(len(corners))]
    return sum(parts) <= volume(corners) * (1 + 1e-9)


def test_neighbours_by_sorting_all_distances() -> None:
    points = cloud(30, 3)
    far = np.linalg.norm(points[:, None] - points, axis=2)
    near = [set(np.argsort(row)[1:5]) for row in far]
    wanted = {(i, j) for i, j in combinations(range(30), 2) if j in near[i] or i in near[j]}
    assert {tuple(pair) for pair in neighbour_pairs(points, 4)} == wanted
    assert any((j in near[i]) != (i in near[j]) for i, j in wanted)  # either way is enough


def test_copies_of_a_point_are_neighbours_of_each_other_and_none_of_itself() -> None:
    points = np.array([[0.0, 0], [0, 0], [0, 0], [5, 5]])
    pairs = {tuple(pair) for pair in neighbour_pairs(points, 1)}
    assert all(i < j for i, j in pairs)
    assert any(3 in pair for pair in pairs)
    assert neighbour_pairs(points, 10).tolist() == [list(p) for p in combinations(range(4), 2)]


@pytest.mark.parametrize("d", [2, 3, 4])
def test_with_all_as_neighbours_nothing_is_trimmed_and_the_envelope_is_the_hull(d: int) -> None:
    points = cloud(25, d)
    found = trimmed(points, k=24)
    assert len(found.simplices) == found.offered
    hull = {tuple(sorted(facet)) for facet in ConvexHull(points).simplices}
    assert {tuple(facet) for facet in found.facets} == hull
    assert len(found.loose) == 0
    assert len(trimmed(points, None).simplices) == found.offered


def test_trimming_keeps_what_is_near_throughout() -> None:
    points = cloud(40, 2)
    found, whole = trimmed(points, k=4), trimmed(points, None)
    pairs = {tuple(pair) for pair in neighbour_pairs(points, 4)}
    near = [all(tuple(sorted(p)) in pairs for p in combinations(s, 2)) for s in whole.simplices.tolist()]
    assert found.simplices.tolist() == whole.simplices[near].tolist()
    assert 0 < len(found.simplices) < found.offered
    assert set(found.loose) == set(range(40)) - set(found.simplices.ravel())


def test_a_facet_of_two_simplices_is_no_envelope() -> None:
    assert envelope(np.array([[0, 1, 2], [2, 1, 3]])).tolist() == [[0, 1], [0, 2], [1, 3], [2, 3]]


@pytest.mark.parametrize("d", [2, 3])
def test_membership_by_volumes(d: int) -> None:
    points = cloud(20, d)
    found, x = trimmed(points, k=7), 0.8 * cloud(60, d, seed=1)
    wanted = [any(in_simplex(points[s], row) for s in found.simplices) for row in x]
    assert 5 < sum(wanted) < 55
    assert found.contains(x).tolist() == wanted


def test_borders_belong_to_the_kept_simplices() -> None:
    found = trimmed(cloud(40, 2), k=4)
    used = np.unique(found.simplices)
    assert found.contains(found.points[used]).all()
    middles = found.points[found.facets].mean(1)
    assert found.contains(middles).all()
    outward = middles + 1e-3 * (middles - found.points[found.simplices].mean((0, 1)))
    assert not found.contains(outward).all()


def test_distance_in_the_plane_is_the_true_one() -> None:
    found, x = trimmed(cloud(30, 2), k=5), 2 * cloud(40, 2, seed=2)

    def to_segment(p: Any, a: Any, b: Any) -> float:
        t = np.clip(np.dot(p - a, b - a) / np.dot(b - a, b - a), 0, 1)
        return float(np.linalg.norm(p - a - t * (b - a)))

    segments = found.points[found.facets]
    alone = found.points[found.loose]
    wanted = [min([to_segment(p, *s) for s in segments] + [np.linalg.norm(p - q) for q in alone]) for p in x]
    assert found.distance(x) == pytest.approx(np.array(wanted))
    fast = found.distance(x, fast=True)
    assert (fast >= found.distance(x) - 1e-12).all()
    rim = found.points[np.union1d(found.facets, found.loose)]
    assert fast == pytest.approx(np.linalg.norm(x[:, None] - rim, axis=2).min(1))


def test_distance_to_a_triangle_in_space() -> None:
    """Perpendicular over its inside, as least squares have it; to a corner elsewhere."""
    found = trimmed(np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]]), None)
    assert found.distance(np.array([[1.0, 1, -3]])) == pytest.approx(3)
    assert found.distance(np.array([[0.5, 0.5, 0.5]])) == pytest.approx(0.5)
    assert found.distance(np.array([[2.0, -3, -3]])) == pytest.approx(
        np.sqrt(22)
    )  # to a corner: the paper's rule
    corners = np.eye(3) * 4

    def away(w: Any) -> float:
        return float(((np.append(w, 1 - w.sum()) @ corners - 5) ** 2).sum())

    least = minimize(away, [0.3, 0.3])
    assert found.distance(np.array([[5.0, 5, 5]])) == pytest.approx(np.sqrt(least.fun), abs=1e-6)


@pytest.mark.parametrize("name", ["spirals", "circles", "moons"])
def test_training_points_of_classes_apart_are_right(name: str) -> None:
    x, y = point_set(name, n=300, noise=0.02)
    fitted = Manifoldron().fit(x, y)
    assert (fitted.partition(x)[0].sum(2) <= 1).all()
    assert fitted.score(x, y) == 1


def test_the_three_rules() -> None:
    square = np.array([[0.0, 0], [0, 4], [4, 0], [4, 4], [2, 2.1]])
    x = np.concatenate([square, square + np.array([3, 0])])  # they overlap in 3 <= x <= 4
    fitted = Manifoldron(neighbours=None).fit(x, np.repeat(["left", "right"], 5))
    asked = np.array([[1, 1], [6, 3], [-5, 2], [9, 9], [3.2, 2], [3.8, 2]])
    inside = fitted.partition(asked)[0][0]
    assert inside.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 1], [1, 1]]
    # within both, the deeper one wins: 3.2 is 0.8 from the left square's edge and 0.2 from the right one's
    assert fitted.predict(asked).tolist() == ["left", "right", "left", "right", "left", "right"]


def test_classes_without_simplices_are_their_points() -> None:
    x = np.concatenate([np.arange(5)[:, None] / 2 * np.ones(2), cloud(20, 2) + np.array([9, 0])])
    y = np.repeat([0, 1], [5, 20])
    for few in (Manifoldron().fit(x, y), Manifoldron().fit(x[3:], y[3:])):
        assert few.complexes_[0][0].offered == 0
        assert few.predict([[1.1, 1], [9, 0.3], [-4, 0]]).tolist() == [0, 1, 0]
    joggled = Manifoldron(joggle=True).fit(x, y)
    assert joggled.complexes_[0][0].offered > 0
    assert joggled.predict([[1.1, 1], [9, 0.3]]).tolist() == [0, 1]


def test_many_features_are_bagged_and_vote() -> None:
    x, y = point_set("wine")
    fitted = Manifoldron(features=3, bags=5, seed=1).fit(x, y)
    assert [len(set(s)) for s in fitted.subsets_] == [3] * 5
    assert len({tuple(s) for s in fitted.subsets_}) > 1
    votes = []
    for subset in fitted.subsets_:
        scaled = (x - x.mean(0)) / x.std(0)
        votes.append(Manifoldron().fit(scaled[:, subset], y).predict(scaled[:, subset]))
    wanted = [np.bincount(row).argmax() for row in np.array(votes).T]
    assert fitted.predict(x).tolist() == wanted


def test_the_regressor_is_exact_for_affine_functions_inside_and_outside() -> None:
    for d in (2, 3):
        x, slopes = cloud(50, d), np.arange(1.0, d + 1)
        fitted = ManifoldronRegressor().fit(x, x @ slopes + 3)
        asked = 3 * cloud(40, d, seed=1)
        assert fitted.predict(asked) == pytest.approx(asked @ slopes + 3)


def test_the_regressor_interpolates() -> None:
    x = cloud(60, 2)
    y = np.sin(x[:, 0]) * x[:, 1]
    fitted = ManifoldronRegressor(neighbours=8).fit(x, y)
    found = fitted.complexes_[0]
    assert fitted.predict(x[np.unique(found.simplices)]) == pytest.approx(y[np.unique(found.simplices)])
    assert fitted.predict(x[found.simplices].mean(1)) == pytest.approx(y[found.simplices].mean(1))
    alone = ManifoldronRegressor().fit([[0, 0], [1, 1], [2, 2]], [5, 6, 7])
    assert alone.predict([[0.9, 1.2], [9, 9]]).tolist() == [6, 7]


def test_it_is_an_estimator() -> None:
    model = make("manifoldron", neighbours=10)
    assert model.get_params()["neighbours"] == 10
    x, y = point_set("moons", n=90)
    assert cross_val_score(clone(model), x, y, cv=3).mean() > 0.9
    assert cross_val_score(ManifoldronRegressor(), x, x[:, 0] - x[:, 1], cv=3).min() > 0.999
    several = Manifoldron(jobs=2).fit(x, y).predict(x)
    assert several.tolist() == Manifoldron().fit(x, y).predict(x).tolist()


def test_the_finding_counts() -> None:
    x, y = point_set("moons", n=120, seed=1)
    found = Manifoldron(neighbours=6)(x[:80], y[:80], x[80:], y[80:])
    n = found.numbers
    assert n["inside_one"] + n["inside_none"] + n["inside_several"] == pytest.approx(1)
    assert 0 < n["kept"] < 1
    assert Manifoldron(neighbours=None)(x[:80], y[:80], x[80:], y[80:]).numbers["kept"] == 1
    pyplot.close(plot_2d(Manifoldron().fit(x, y), points=20))


def test_sets_of_points() -> None:
    for name in CURVED:
        x, y = point_set(name, n=200, noise=0.0, seed=3)
        assert x.shape == (200, 3 if name == "rings" else 2)
        assert np.bincount(y).tolist() == [100, 100]
        assert (point_set(name, n=200, noise=0.0, seed=3)[0] == x).all()
    spirals, y = point_set("spirals", noise=0.0)
    r = np.linalg.norm(spirals, axis=1)
    assert r.min() >= 0.2
    assert r.max() <= 1
    turn = (r * 5 * np.pi - np.pi) / 2
    arm = np.stack([np.cos(turn), np.sin(turn)], 1) * np.where(y == 0, r, -r)[:, None]
    assert spirals == pytest.approx(arm)
    assert set(accuracies(dict(list(rivals().items())[:1]), "iris")) == {"3 nearest neighbours"}
    with pytest.raises(UnknownName, match="spirals"):
        point_set("spiral")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Manifoldron().fit(cloud(5, 1), [0, 0, 1, 1, 1]), "at least two features"),
        (lambda: Manifoldron().fit(cloud(5, 2), [0, 1]), "one target"),
        (lambda: Manifoldron().fit([[np.nan, 1]], [0]), "finite points"),
        (lambda: Manifoldron().predict(cloud(5, 2)), "fit comes before"),
        (lambda: ManifoldronRegressor().predict(cloud(5, 2)), "fit comes before"),
        (lambda: Manifoldron().fit(cloud(5, 2), [0] * 5).predict(cloud(5, 3)), "(n, 2)"),
        (lambda: Manifoldron(neighbours=0).fit(cloud(5, 2), [0] * 5), "one neighbour"),
        (lambda: plot_2d(Manifoldron().fit(cloud(9, 3), [0] * 9)), "only two features"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value)


def test_the_claims_are_the_records() -> None:
    assert [c.says for c in claims("manifoldron").values()] == [
        c["says"] for c in record("manifoldron").claims
    ]

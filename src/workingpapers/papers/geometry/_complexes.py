"""Trimmed triangulations: Delaunay's simplices between near neighbours, their envelope, and bags of features."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay, QhullError, cKDTree
from sklearn.base import BaseEstimator

from workingpapers.errors import WorkingPapersError

Points = NDArray[np.float64]
Indices = NDArray[np.int64]

TOLERANCE = 1e-9  # of barycentric coordinates, and of distances beside the extent of the points
CHUNK = 2_000_000  # numbers that are held at a time


def neighbour_pairs(points: Points, k: int) -> Indices:
    """Return the pairs (P, 2), i < j, of which one point is among the `k` nearest of the other."""
    n = len(points)
    found = cKDTree(points).query(points, k=min(k + 1, n))[1].reshape(n, -1)
    # a point is its own nearest neighbour, unless copies of it come first
    itself = found == np.arange(n)[:, None]
    itself[~itself.any(1), -1] = True
    i, j = np.repeat(np.arange(n), found.shape[1] - 1), found[~itself]
    return np.unique(np.sort(np.stack([i, j], 1), axis=1), axis=0).astype(np.int64)


def near_simplices(points: Points, simplices: Indices, k: int | None) -> NDArray[np.bool_]:
    """Tell of each simplex (S, d + 1) whether all pairs of its vertices are neighbours; None keeps all."""
    keep = np.ones(len(simplices), bool)
    if k is None or len(simplices) == 0:
        return keep
    n = len(points)
    known = neighbour_pairs(points, k) @ np.array([n, 1])
    for a, b in combinations(range(simplices.shape[1]), 2):
        pair = np.sort(simplices[:, [a, b]], axis=1)
        keep &= np.isin(pair @ np.array([n, 1]), known)
    return keep


def envelope(simplices: Indices) -> Indices:
    """Return the facets (E, d), as sorted vertices, that belong to exactly one of the simplices (S, d + 1)."""
    corners = simplices.shape[1]
    facets = np.concatenate([np.delete(simplices, i, axis=1) for i in range(corners)])
    found, counts = np.unique(np.sort(facets, axis=1), axis=0, return_counts=True)
    single: Indices = found[counts == 1]
    return single


def triangulate(points: Points, joggle: bool = False) -> Delaunay | None:
    """Return Delaunay's triangulation of points (n, d), or None where they fill no d dimensions.

    `joggle` has Qhull move such points a little instead.  One dimension is not Qhull's: there must be two.
    """
    n, d = points.shape
    if n <= d:
        return None
    for options in ("Qbb Qc Qz Q12", "QJ Pp Q12")[: 2 if joggle else 1]:
        try:
            return Delaunay(points, qhull_options=options)
        except QhullError:
            continue
    return None


@dataclass(frozen=True)
class Complex:
    """Points (n, d), the kept simplices (S, d + 1) of their triangulation, and its envelope (E, d).

    `loose` are the points in no kept simplex; they count to the envelope.  `offered` is how many simplices there
    were before trimming.
    """

    points: Points
    simplices: Indices
    facets: Indices
    loose: Indices
    offered: int
    _found: tuple[Delaunay | None, NDArray[np.bool_]] = field(repr=False)

    @cached_property
    def scale(self) -> float:
        """The extent of the points."""
        return float(np.ptp(self.points, axis=0).max()) or 1.0

    @cached_property
    def _planes(self) -> tuple[Points, Points, Points]:
        """Of each facet a corner (E, d), its edges (E, d-1, d), and what maps to coordinates on it (E, d, d-1)."""
        corners = self.points[self.facets]
        edges = corners[:, 1:] - corners[:, :1]
        return corners[:, 0], edges, np.asarray(np.linalg.pinv(edges), np.float64)

    @cached_property
    def _rim(self) -> Any:
        places = np.union1d(self.facets, self.loose).astype(np.int64)
        return cKDTree(self.points[places])

    def distance(self, x: Points, fast: bool = False) -> Points:
        """Return the distances (N,) of x (N, d) to the envelope.

        To a facet it is the perpendicular one where the projection lies inside, else that to a vertex, which is
        the true distance in two dimensions and at least that in more.  `fast` takes vertices alone.
        """
        nearest: Points = np.asarray(self._rim.query(x)[0])
        return nearest if fast or len(self.facets) == 0 else np.minimum(nearest, self._to_facets(x))

    def _to_facets(self, x: Points) -> Points:
        """Return the least perpendicular distance (N,) to a facet that x projects into, else infinity."""
        corner, edges, inverse = self._planes
        found = np.full(len(x), np.inf)
        step = max(1, CHUNK // max(1, edges.size))
        for start in range(0, len(x), step):
            away = x[start : start + step, None] - corner
            coordinates = np.einsum("qed,edk->qek", away, inverse)
            inside = (coordinates >= -TOLERANCE).all(2) & (coordinates.sum(2) <= 1 + TOLERANCE)
            rest = away - np.einsum("qek,ekd->qed", coordinates, edges)
            lengths = np.where(inside, np.linalg.norm(rest, axis=2), np.inf)
            found[start : start + step] = lengths.min(1)
        return found

    def contains(self, x: Points) -> NDArray[np.bool_]:
        """Tell which of x (N, d) lie in a kept simplex, borders included."""
        triangulation, keep = self._found
        if triangulation is None or len(self.simplices) == 0:
            return np.zeros(len(x), bool)
        place = triangulation.find_simplex(x)
        member: NDArray[np.bool_] = (place >= 0) & keep[place]
        # on a border the search may have named the neighbour
        out = np.flatnonzero(~member)
        member[out] = self._to_facets(x[out]) <= TOLERANCE * self.scale
        return member

    def barycentric(self, x: Points) -> tuple[Indices, Points]:
        """Return for each of x (N, d) a kept simplex, by number, and the barycentric coordinates (N, d + 1) in it.

        The simplex is the one with the least sum of absolute coordinates, which is 1 inside and grows outside.
        """
        d = self.points.shape[1]
        corners = self.points[self.simplices]
        inverse = np.linalg.pinv(corners[:, 1:] - corners[:, :1])
        place, best = np.zeros(len(x), np.int64), np.zeros((len(x), d + 1))
        step = max(1, CHUNK // max(1, inverse.size))
        for start in range(0, len(x), step):
            away = x[start : start + step, None] - corners[:, 0]
            rest = np.einsum("qsd,sdk->qsk", away, inverse)
            whole = np.concatenate([1 - rest.sum(2, keepdims=True), rest], axis=2)
            chosen = np.abs(whole).sum(2).argmin(1)
            place[start : start + step] = chosen
            best[start : start + step] = whole[np.arange(len(whole)), chosen]
        return place, best


def trimmed(points: Points, k: int | None = 14, joggle: bool = False) -> Complex:
    """Triangulate points (n, d) and keep the simplices whose vertices are all among each other's `k` nearest.

    `k` None keeps all.  Two points are neighbours when one of them is among the other's nearest.

    Raises:
        WorkingPapersError: for points of one dimension, which have no triangulation, or without a neighbour each.
    """
    n, d = points.shape
    if d < 2:
        raise WorkingPapersError(f"a triangulation needs at least two features; got {d}")
    if k is not None and k < 1:
        raise WorkingPapersError(f"trimming needs at least one neighbour; got {k}")
    triangulation = triangulate(points, joggle)
    simplices = np.zeros((0, d + 1), np.int64)
    if triangulation is not None:
        simplices = triangulation.simplices.astype(np.int64)
    keep = near_simplices(points, simplices, k)
    kept = simplices[keep]
    loose = np.setdiff1d(np.arange(n), kept)
    return Complex(points, kept, envelope(kept), loose, len(simplices), (triangulation, keep))


class Bagged(BaseEstimator):
    """What classifier and regressor share: checked and scaled features, and subsets of them where they are many."""

    neighbours: int | None
    features: int
    bags: int
    seed: int

    def _rows(self, x: ArrayLike, width: int | None = None) -> Points:
        rows = np.asarray(x, np.float64)
        if rows.ndim != 2 or rows.shape[1] != (width or rows.shape[1]) or not np.isfinite(rows).all():
            raise WorkingPapersError(
                f"finite points (n, {width or 'features'}) are needed; got an array of shape {rows.shape}"
            )
        return rows

    def _begin(self, x: ArrayLike, y: ArrayLike) -> tuple[Points, NDArray[Any]]:
        rows, targets = self._rows(x), np.asarray(y)
        if len(rows) == 0 or targets.shape != rows.shape[:1]:
            raise WorkingPapersError(f"each of the {len(rows)} points needs one target; got {targets.shape}")
        if rows.shape[1] < 2:
            raise WorkingPapersError("a triangulation needs at least two features; got one")
        self.n_features_in_ = rows.shape[1]
        self.mean_, std = rows.mean(0), rows.std(0)
        self.scale_ = np.where(std > 0, std, 1.0)
        draw, d = np.random.default_rng(self.seed), rows.shape[1]
        bags = self.bags if d > self.features else 1
        self.subsets_ = [np.sort(draw.permutation(d)[: self.features]) for _ in range(bags)]
        return self._scaled(rows), targets

    def _scaled(self, x: ArrayLike) -> Points:
        rows = self._rows(x, len(self.mean_))
        scaled: Points = (rows - self.mean_) / self.scale_
        return scaled

"""Manifoldron: a classifier that triangulates the points of each class and partitions space by what is left.

    K_c = simplices of Delaunay(points of c) whose vertices are all among each other's k nearest neighbours
    class(x) = c                               where x lies in K_c alone
               argmin_c dist(x, envelope_c)    where it lies in none
               argmax_c dist(x, envelope_c)    over the K_c that it lies in, where these are several

The envelope is made of the facets that one kept simplex has to itself, and here of points in no kept simplex,
so that a class of few points can still be near.  Many features are bagged: subsets vote.  The regressor
interpolates in the kept simplex around x, or goes on from the one that x is least outside of.

Paper: "Manifoldron: Direct Space Partition via Manifold Discovery" (2022), arXiv 2201.05279; neighbours, distances,
bags and the regressor as in the authors' scripts.
"""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import ClassifierMixin, RegressorMixin

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.geometry._complexes import Bagged, Complex, Points, trimmed
from workingpapers.papers.geometry._point_sets import accuracies, rivals
from workingpapers.tasks import Budget


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(90) % 3
    x = torch.randn(90, 2, generator=generator) + 1.5 * y[:, None] * torch.tensor([1.0, -1.0])
    return x[:60].double(), y[:60], x[60:].double(), y[60:]


def _other_units(x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> tuple[Any, ...]:
    units, origin = torch.tensor([0.25, 8.0]), torch.tensor([3.0, -1.0])
    return x_train * units + origin, y_train, x_test * units + origin, y_test


def _reordered(x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> tuple[Any, ...]:
    return x_train.flip(0), y_train.flip(0), x_test.flip(0), y_test.flip(0)


@paper(
    "manifoldron",
    kind="analysis",
    example=_example,
    invariances={"units of the features": _other_units, "order of the examples": _reordered},
    variants=[{"neighbours": None}, {"fast": True}],
)
class Manifoldron(ClassifierMixin, Bagged):  # type: ignore[misc]
    """Classify points by the trimmed triangulation of each class; an estimator as scikit-learn's are.

    Called with training points (n, d) and labels, test points and labels, it fits, scores, and gives a `Finding`.

    Args:
        neighbours: k of the neighbourhood that simplices are trimmed by; None does not trim.
        fast: distances to the envelope's vertices instead of to its facets.
        joggle: move points that fill no d dimensions a little, so that they can be triangulated; else such a class
            has its points alone.
        features: more features than these are bagged, in subsets of this size.
        bags: how many subsets.
        seed: decides the subsets.
        jobs: classes that are triangulated at the same time.
    """

    def __init__(
        self,
        neighbours: int | None = 14,
        fast: bool = False,
        joggle: bool = False,
        features: int = 6,
        bags: int = 40,
        seed: int = 0,
        jobs: int = 1,
    ) -> None:
        self.neighbours, self.fast, self.joggle = neighbours, fast, joggle
        self.features, self.bags, self.seed, self.jobs = features, bags, seed, jobs

    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Triangulate the points x (n, d) of each label in y (n,)."""
        from joblib import Parallel, delayed

        rows, labels = self._begin(x, y)
        self.classes_ = np.unique(labels)
        work = [rows[labels == c][:, subset] for subset in self.subsets_ for c in self.classes_]
        found = Parallel(n_jobs=self.jobs, prefer="threads")(
            delayed(trimmed)(p, self.neighbours, self.joggle) for p in work
        )
        step = len(self.classes_)
        self.complexes_: list[list[Complex]] = [found[i : i + step] for i in range(0, len(found), step)]
        return self

    def partition(self, x: ArrayLike) -> tuple[NDArray[np.bool_], Points]:
        """Return of points (n, d), for each bag and class, whether they lie inside, and how far from the envelope.

        Both are (bags, n, classes); distances are in standard deviations.
        """
        if not hasattr(self, "complexes_"):
            raise WorkingPapersError("fit comes before predict")
        rows = self._scaled(x)
        inside, away = [], []
        for subset, complexes in zip(self.subsets_, self.complexes_, strict=True):
            inside.append(np.stack([c.contains(rows[:, subset]) for c in complexes], 1))
            away.append(np.stack([c.distance(rows[:, subset], self.fast) for c in complexes], 1))
        return np.stack(inside), np.stack(away)

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """Return the labels (n,) of points x (n, d); bags vote, and of equal ones the first label wins."""
        inside, away = self.partition(x)
        some = inside.any(2, keepdims=True)
        # inside, the deepest; outside, the nearest
        score = np.where(some, np.where(inside, away, -np.inf), -away)
        votes = score.argmax(2)
        counts = (votes[:, :, None] == np.arange(len(self.classes_))).sum(0)
        found: NDArray[Any] = self.classes_[counts.argmax(1)]
        return found

    def __call__(
        self, x_train: ArrayLike, y_train: ArrayLike, x_test: ArrayLike, y_test: ArrayLike
    ) -> Finding:
        """Fit, and say how well the partition classifies and what it is made of.

        The numbers: `accuracy` and `accuracy_train`; shares of test points (and bags) `inside_one`, `inside_none`
        and `inside_several` classes' simplices; `kept`, the share of simplices that trimming leaves; `facets` and
        `loose` points of the envelopes, per bag.
        """
        self.fit(x_train, y_train)
        members = self.partition(x_test)[0].sum(2)
        every = [c for bag in self.complexes_ for c in bag]
        numbers = {
            "accuracy": float(self.score(x_test, y_test)),
            "accuracy_train": float(self.score(x_train, y_train)),
            "inside_one": float((members == 1).mean()),
            "inside_none": float((members == 0).mean()),
            "inside_several": float((members > 1).mean()),
            "kept": sum(len(c.simplices) for c in every) / max(1, sum(c.offered for c in every)),
            "facets": sum(len(c.facets) for c in every) / len(self.complexes_),
            "loose": sum(len(c.loose) for c in every) / len(self.complexes_),
        }
        draw = (lambda: plot_2d(self)) if self.n_features_in_ == 2 else None
        return Finding(
            numbers,
            f"{numbers['accuracy']:.1%} of the test points are classified right, and {numbers['inside_none']:.1%} "
            f"lie in no class's simplices, of which trimming left {numbers['kept']:.1%}.",
            draw,
        )


def _regression_example(generator: torch.Generator) -> tuple[Any, ...]:
    x = torch.randn(60, 2, generator=generator).double()
    y = x.square().sum(1)
    return x[:45], y[:45], x[45:], y[45:]


@paper(
    "manifoldron",
    part="regressor",
    kind="analysis",
    example=_regression_example,
    invariances={"units of the features": _other_units, "order of the examples": _reordered},
)
class ManifoldronRegressor(RegressorMixin, Bagged):  # type: ignore[misc]
    """Interpolate linearly within the trimmed triangulation of the points; an estimator as scikit-learn's are.

    Outside, the affine function goes on of the simplex with the least sum of absolute barycentric coordinates, as
    in the authors' scripts.  Arguments as for the classifier; bags are averaged.
    """

    def __init__(self, neighbours: int | None = 14, features: int = 6, bags: int = 40, seed: int = 0) -> None:
        self.neighbours, self.features, self.bags, self.seed = neighbours, features, bags, seed

    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Triangulate the points x (n, d) with targets y (n,)."""
        rows, targets = self._begin(x, y)
        self.targets_ = targets.astype(np.float64)
        self.complexes_ = [trimmed(rows[:, subset], self.neighbours) for subset in self.subsets_]
        return self

    def predict(self, x: ArrayLike) -> Points:
        """Return the values (n,) at points x (n, d); that of the nearest point where no simplex was kept."""
        if not hasattr(self, "complexes_"):
            raise WorkingPapersError("fit comes before predict")
        rows = self._scaled(x)
        bags = zip(self.complexes_, self.subsets_, strict=True)
        found: Points = np.mean([self._values(c, rows[:, s]) for c, s in bags], axis=0)
        return found

    def _values(self, found: Complex, x: Points) -> Points:
        if len(found.simplices) == 0:
            from scipy.spatial import cKDTree

            nearest: Points = self.targets_[cKDTree(found.points).query(x)[1]]
            return nearest
        place, coordinates = found.barycentric(x)
        values: Points = (coordinates * self.targets_[found.simplices[place]]).sum(1)
        return values

    def __call__(
        self, x_train: ArrayLike, y_train: ArrayLike, x_test: ArrayLike, y_test: ArrayLike
    ) -> Finding:
        """Fit, and give `r2`, `mse` on the test points, and `kept`, the share of simplices left by trimming."""
        self.fit(x_train, y_train)
        r2, errors = float(self.score(x_test, y_test)), self.predict(x_test) - np.asarray(y_test)
        kept = sum(len(c.simplices) for c in self.complexes_) / max(
            1, sum(c.offered for c in self.complexes_)
        )
        return Finding(
            {"r2": r2, "mse": float((errors**2).mean()), "kept": kept},
            f"The regressor explains {r2:.1%} of the test points' variance.",
        )


def plot_2d(fitted: Manifoldron, points: int = 200) -> Any:
    """Draw the kept simplices of each class and the regions of a fitted classifier of two features."""
    from matplotlib import pyplot

    if fitted.n_features_in_ != 2:
        raise WorkingPapersError(
            f"only two features can be drawn; the classifier has {fitted.n_features_in_}"
        )
    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    every = [c.points * fitted.scale_ + fitted.mean_ for c in fitted.complexes_[0]]
    low, high = np.concatenate(every).min(0), np.concatenate(every).max(0)
    first, second = (
        np.linspace(a - 0.1 * (b - a), b + 0.1 * (b - a), points) for a, b in zip(low, high, strict=True)
    )
    grid = np.stack(np.meshgrid(first, second), -1)
    labels = np.searchsorted(fitted.classes_, fitted.predict(grid.reshape(-1, 2))).reshape(points, points)
    axes.contourf(first, second, labels, np.arange(len(every) + 1) - 0.5, alpha=0.3, cmap="tab10")
    for place, c in zip(every, fitted.complexes_[0], strict=True):
        if len(c.simplices):
            axes.triplot(place[:, 0], place[:, 1], c.simplices, linewidth=0.5, color="k")
        axes.plot(place[:, 0], place[:, 1], ".", markersize=3)
    axes.set(xlabel="feature 0", ylabel="feature 1", title="regions, and the simplices of each class")
    return figure


@claim(
    "manifoldron",
    "The method competes with mainstream classifiers.",
    figure="4 synthetic examples, 20 public benchmarks, 1 real application (no scores in the abstract)",
    seeds=5,
    holds=all_of(at_most(4.0, of="mean_rank"), at_least(0.97, of="spirals"), at_least(0.88, of="wine")),
)
def among_classifiers(budget: Budget, seed: int) -> Evidence:
    """Mean rank by accuracy among seven classifiers of the authors' script, on five sets, 70/30, untuned."""
    bags = budget.pick(quick=20, full=40)
    models = {"Manifoldron": Manifoldron(bags=bags, seed=seed), **rivals(seed)}
    sets = ("spirals", "circles", "moons", "iris", "wine")
    found = {name: accuracies(models, name, seed) for name in sets}
    ranks = {name: float(rankdata([-a for a in row.values()])[0]) for name, row in found.items()}
    own = {name: row["Manifoldron"] for name, row in found.items()}
    return Evidence(mean_rank=float(np.mean(list(ranks.values()))), **own)


@claim(
    "manifoldron",
    "Discovering the data manifold, which means trimming the triangulation, is what lets it draw boundaries "
    "directly from data.",
    seeds=5,
    holds=at_least(0.10, of="spirals"),
)
def trimming(budget: Budget, seed: int) -> Evidence:
    """Test accuracy with trimming less that without it, on two spirals and on two circles."""
    models = {"trimmed": Manifoldron(), "whole": Manifoldron(neighbours=None)}
    found = {name: accuracies(models, name, seed) for name in ("spirals", "circles")}
    drops = {name: row["trimmed"] - row["whole"] for name, row in found.items()}
    return Evidence(**drops, **{f"{name}_whole": row["whole"] for name, row in found.items()})

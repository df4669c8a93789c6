"""Labelled points on curves and from small tables, and the classifiers that the Manifoldron is ranked among."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import unknown

Labelled = tuple[NDArray[np.float64], NDArray[np.int64]]
CURVED = ("spirals", "circles", "moons", "rings")
TABLES = ("iris", "wine", "breast_cancer")


def _spirals(n: int, noise: float, draw: np.random.Generator) -> Labelled:
    """Two arms r = +-(2 t + pi) of one turn, as in the authors' script, scaled to an outer radius of 1."""
    y = np.arange(n) % 2
    turn = np.sqrt(draw.random(n)) * 2 * np.pi
    r = (2 * turn + np.pi) / (5 * np.pi) * np.where(y == 0, 1, -1)
    x = np.stack([np.cos(turn) * r, np.sin(turn) * r], 1)
    return x + noise * draw.standard_normal(x.shape), y


def _rings(n: int, noise: float, draw: np.random.Generator) -> Labelled:
    """Two rings in space, each through the other."""
    y, turn = np.arange(n) % 2, 2 * np.pi * draw.random(n)
    flat = np.stack([np.cos(turn), np.sin(turn), np.zeros(n)], 1)
    upright = np.stack([1 + np.cos(turn), np.zeros(n), np.sin(turn)], 1)
    x = np.where(y[:, None] == 0, flat, upright)
    return x + noise * draw.standard_normal(x.shape), y


def _of_sklearn(make: str, **options: Any) -> Callable[[int, float, np.random.Generator], Labelled]:
    def made(n: int, noise: float, draw: np.random.Generator) -> Labelled:
        from sklearn import datasets

        x, y = getattr(datasets, make)(n, noise=noise, random_state=int(draw.integers(2**31)), **options)
        return x, y.astype(np.int64)

    return made


_CURVED: dict[str, Callable[[int, float, np.random.Generator], Labelled]] = {
    "spirals": _spirals,
    "circles": _of_sklearn("make_circles", factor=0.5),
    "moons": _of_sklearn("make_moons"),
    "rings": _rings,
}


def point_set(name: str, n: int = 1000, noise: float = 0.05, seed: int = 0) -> Labelled:
    """Return points (n, d) and labels (n,): one of `CURVED`, in 2 or 3 dimensions, or all of one of `TABLES`."""
    if name in TABLES:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")()
        return np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.int64)
    if name not in _CURVED:
        raise unknown("set of points", name, CURVED + TABLES)
    return _CURVED[name](n, noise, np.random.default_rng(seed))


def rivals(seed: int = 0) -> dict[str, Any]:
    """Return the classifiers of the authors' script by name, with its options: seven of them."""
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    return {
        "3 nearest neighbours": KNeighborsClassifier(3),
        "RBF SVM": SVC(gamma=2, C=1),
        "decision tree": DecisionTreeClassifier(max_depth=5, random_state=seed),
        "random forest": RandomForestClassifier(
            max_depth=5, n_estimators=10, max_features=1, random_state=seed
        ),
        "MLP": MLPClassifier(alpha=1, max_iter=1000, random_state=seed),
        "naive Bayes": GaussianNB(),
        "QDA": QuadraticDiscriminantAnalysis(),
    }


def accuracies(models: dict[str, Any], name: str, seed: int = 0) -> dict[str, float]:
    """Return the test accuracy of each classifier on a set, 70 % of it for training, standardised for all."""
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = point_set(name, seed=seed)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of covariances without full rank and of steps that ran out
        for model, classifier in models.items():
            fitted = make_pipeline(StandardScaler(), classifier).fit(x_train, y_train)
            found[model] = float(fitted.score(x_test, y_test))
    return found

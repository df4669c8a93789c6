"""Observational data with known best treatments, counterfactual scores, and plain policies to compare with."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.tree import DecisionTreeClassifier

from workingpapers.errors import WorkingPapersError, unknown

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
METHODS = ("doubly_robust", "direct", "inverse_propensity")


@dataclass(frozen=True)
class Observed:
    """Features (N, d), treatments given (N,), outcomes (N,), and the mean outcome of every treatment (N, K)."""

    x: Array
    t: Labels
    y: Array
    outcomes: Array


def _effects(kind: str, x: Array) -> Array:
    if kind == "steps":
        return np.stack([(x[:, 0] > 0) * 1.5, (x[:, 1] > 0) * 1.5, 0.6 + 0.6 * (x[:, 2] > 0.5)], 1)
    if kind == "linear":
        bent = np.where(x[:, 2] > 0, x[:, 0] + x[:, 1], x[:, 1] - x[:, 0])
        return np.stack([bent, -bent, 0.5 * np.abs(x[:, 3])], 1)
    return np.stack([np.sin(x[:, 0] + x[:, 1]), np.cos(x[:, 0] - x[:, 2]), np.tanh(2 * x[:, 1])], 1)


def _baseline(kind: str, x: Array) -> Array:
    if kind == "steps":
        return (x[:, 4] > 0) * 1.0 + (x[:, 5] > 0.5) * 1.0
    return np.asarray(np.exp(-(x[:, 4] ** 2)) + 0.5 * x[:, 5] * x[:, 6])


DESIGNS = tuple((effects, base) for effects in ("steps", "linear", "smooth") for base in ("steps", "smooth"))


def observe(design: tuple[str, str], count: int, seed: int, noise: float = 0.5) -> Observed:
    """Draw `count` examples of ten normal features whose treatment follows a logistic propensity, of three."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, 10))
    outcomes = _baseline(design[1], x)[:, None] + _effects(design[0], x)
    logits = 0.7 * x[:, [0, 1, 4]]
    t = (logits + generator.gumbel(size=logits.shape)).argmax(1).astype(np.int64)
    y = outcomes[np.arange(count), t] + noise * generator.standard_normal(count)
    return Observed(x, t, y, outcomes)


def combined_scores(y: Array, t: Labels, predicted: Array, propensity: Array, method: str) -> Array:
    """Return the scores (N, K) from outcomes, treatments, predicted outcomes (N, K) and propensities (N, K)."""
    if method not in METHODS:
        raise unknown("method of counterfactual scores", method, METHODS)
    given = np.eye(predicted.shape[1])[t]
    if method == "direct":
        return predicted
    if method == "inverse_propensity":
        return given * y[:, None] / propensity
    return predicted + given * (y[:, None] - predicted) / propensity


def counterfactual_scores(
    x: Array,
    t: Labels,
    y: Array,
    treatments: int,
    method: str = "doubly_robust",
    folds: int = 3,
    seed: int = 0,
) -> Array:
    """Return an estimate (N, K) of the outcome of every treatment, by models fitted on the other folds.

    Outcomes by a random forest for each treatment, propensities by logistic regression, at least 0.02.

    Raises:
        WorkingPapersError: where a treatment is missing from the data of some folds.
    """
    predicted, propensity = np.zeros((len(x), treatments)), np.zeros((len(x), treatments))
    for fit, use in KFold(folds, shuffle=True, random_state=seed).split(x):
        if set(t[fit].tolist()) != set(range(treatments)):
            raise WorkingPapersError(
                f"every fold needs all of the {treatments} treatments; there are {sorted(set(t[fit].tolist()))}"
            )
        propensity[use] = LogisticRegression(max_iter=1000).fit(x[fit], t[fit]).predict_proba(x[use])
        predicted[use] = forests(x[fit], t[fit], y[fit], treatments, seed)(x[use])
    return combined_scores(y, t, predicted, propensity.clip(0.02), method)


def forests(x: Array, t: Labels, y: Array, treatments: int, seed: int) -> Callable[[Array], Array]:
    """Fit a random forest to the outcomes of each treatment; return the prediction of all (N, K)."""
    models = [
        RandomForestRegressor(40, min_samples_leaf=5, random_state=seed).fit(x[t == k], y[t == k])
        for k in range(treatments)
    ]
    return lambda new: np.stack([model.predict(new) for model in models], 1)


def competitors(data: Observed, scores: Array, seed: int) -> dict[str, Callable[[Array], Labels]]:
    """Return policies: the best constant, plug-in linear models and forests, and a greedy tree of depth 4."""
    treatments = scores.shape[1]
    linear = [Ridge(1.0).fit(data.x[data.t == k], data.y[data.t == k]) for k in range(treatments)]
    forest = forests(data.x, data.t, data.y, treatments, seed)
    gain = scores.max(1) - scores.mean(1)
    tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=20, random_state=seed)
    tree.fit(data.x, scores.argmax(1), sample_weight=gain)
    best = int(scores.mean(0).argmax())
    return {
        "constant": lambda x: np.full(len(x), best, dtype=np.int64),
        "linear": lambda x: np.stack([m.predict(x) for m in linear], 1).argmax(1),
        "forest": lambda x: forest(x).argmax(1),
        "tree": lambda x: np.asarray(tree.predict(x), dtype=np.int64),
    }


def multiplier_for(scores: Array, costs: Array, budget: float) -> float:
    """Return the least price of cost at which prescribing argmax(scores - price * costs) keeps to a mean cost.

    Raises:
        WorkingPapersError: where even the cheapest treatment is dearer.
    """
    if costs.min() > budget:
        raise WorkingPapersError(
            f"the cheapest treatment costs {costs.min():g}, more than the budget {budget:g}"
        )

    def spent(price: float) -> float:
        return float(costs[(scores - price * costs).argmax(1)].mean())

    low, high = 0.0, 1.0
    if spent(low) <= budget:
        return low
    while spent(high) > budget and high < 1e12:
        high *= 2
    while high - low > 1e-9 * max(high, 1.0) and not math.isclose(low, high, rel_tol=1e-12):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= budget else (middle, high)
    return high

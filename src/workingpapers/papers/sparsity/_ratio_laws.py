"""Curves of the activation ratio over data and over width / depth, fitted by least squares."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import WorkingPapersError, unknown

Array = NDArray[np.float64]


def silu_law(d: Array, a0: float, c: float, alpha: float) -> Array:
    """A(D) = A0 - c / D^alpha: denser with more data."""
    return a0 - c / d**alpha


def relu_law(d: Array, a0: float, c: float, alpha: float, b: float) -> Array:
    """A(D) = A0 + exp(-c D^alpha + b): sparser with more data."""
    return a0 + np.exp(-c * d**alpha + b)


def linear_then_flat(x: Array, intercept: float, slope: float, bend: float) -> Array:
    """intercept + slope min(x, bend): of width over depth."""
    return intercept + slope * np.minimum(x, bend)


LAWS: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "silu": (silu_law, ("A0", "c", "alpha")),
    "relu": (relu_law, ("A0", "c", "alpha", "b")),
    "linear_then_flat": (linear_then_flat, ("intercept", "slope", "bend")),
}


@dataclass(frozen=True)
class Law:
    """A fitted law: its parameters by name, R^2, and the curve."""

    parameters: dict[str, float]
    r2: float
    curve: Callable[[Array], Array]
    points: tuple[Array, Array]

    def figure(self) -> Any:
        """Draw the points and the curve."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axis = figure.subplots()
        grid = np.linspace(self.points[0].min(), self.points[0].max(), 200)
        axis.plot(*self.points, "o")
        axis.plot(grid, self.curve(grid))
        axis.set(xlabel="data, or width over depth", ylabel="activation ratio", title=f"R² = {self.r2:.3f}")
        return figure


def fit_law(name: str, x: Sequence[float], ratio: Sequence[float]) -> Law:
    """Fit the law "silu", "relu" (x is training data, in tokens) or "linear_then_flat" (x is width over depth).

    Raises:
        WorkingPapersError: where points are fewer than parameters, x is not above 0, or no fit is found.
    """
    from scipy.optimize import curve_fit

    if name not in LAWS:
        raise unknown("law", name, LAWS)
    law, names = LAWS[name]
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(ratio, dtype=np.float64)
    if len(xs) < len(names) or len(xs) != len(ys) or not (xs > 0).all():
        raise WorkingPapersError(f"the law {name!r} takes at least {len(names)} pairs (x, ratio) with x > 0")
    unit = 1.0 if name == "linear_then_flat" else float(np.exp(np.log(xs).mean()))
    low, high, spread = float(ys.min()), float(ys.max()), float(np.ptp(ys)) + 1e-6
    guesses: dict[str, list[tuple[float, ...]]] = {
        "silu": [(high, spread, alpha) for alpha in (0.3, 1.0, 2.0)],
        "relu": [
            (low - 0.1 * spread, c, alpha, math.log(spread)) for c in (0.3, 1.0) for alpha in (0.3, 1.0)
        ],
        "linear_then_flat": [(low, spread / np.ptp(xs), float(np.quantile(xs, q))) for q in (0.3, 0.5, 0.7)],
    }
    best: tuple[float, Array] | None = None
    for start in guesses[name]:
        try:
            found = curve_fit(law, xs / unit, ys, start, maxfev=20_000)[0]
        except RuntimeError:  # this start led nowhere
            continue
        error = float(((law(xs / unit, *found) - ys) ** 2).sum())
        if best is None or error < best[0]:
            best = error, found
    if best is None:
        raise WorkingPapersError(f"no parameters of the law {name!r} fit these points")
    values = dict(zip(names, map(float, best[1]), strict=True))
    scaled = dict(values)
    if name != "linear_then_flat":  # back to the units of x
        power = unit ** values["alpha"]
        scaled["c"] = values["c"] * power if name == "silu" else values["c"] / power
    total = float(((ys - ys.mean()) ** 2).sum())
    r2 = 1 - best[0] / total if total > 0 else 1.0
    return Law(scaled, r2, partial(_at, law, tuple(best[1]), unit), (xs, ys))


def _at(law: Callable[..., Array], parameters: tuple[float, ...], unit: float, x: Array) -> Array:
    return law(np.asarray(x, dtype=np.float64) / unit, *parameters)

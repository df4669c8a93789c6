"""Reading a formula off an edge: which known function a f(b x + c) + d comes nearest to it, and how near."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from workingpapers.engines.bases.layer import BasisLinear
from workingpapers.errors import WorkingPapersError, unknown

Array = NDArray[np.float64]

LIBRARY: dict[str, Callable[[Array], Array]] = {
    "x": lambda u: u,
    "x^2": np.square,
    "x^3": lambda u: u**3,
    "x^4": lambda u: u**4,
    "1/x": lambda u: 1 / u,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "tan": np.tan,
    "tanh": np.tanh,
    "arctan": np.arctan,
    "gaussian": lambda u: np.exp(-(u**2)),
    "relu": lambda u: np.maximum(u, 0),
}
STEPS = 41  # of b and of c in each round of the search
ROUNDS = 3
REACH = 10.0  # the search begins with b and c in [-REACH, REACH]


@dataclass(frozen=True)
class Reading:
    """A function of the library fitted to an edge: y = a f(b x + c) + d, and its coefficient of determination."""

    name: str
    a: float
    b: float
    c: float
    d: float
    r2: float

    def __str__(self) -> str:
        return f"{self.a:.4g} {self.name}({self.b:.4g} x {self.c:+.4g}) {self.d:+.4g}  (R2 {self.r2:.6f})"


def fit_symbolic(x: Tensor, y: Tensor, names: Sequence[str] | None = None) -> list[Reading]:
    """Fit a f(b x + c) + d to the points (x, y) for each function of the `LIBRARY`, or those named; best first.

    A grid of b and c is searched in rounds, each finer than the last, with the best a and d for each; the best
    is polished by least squares.  A function that is not finite on all points counts as R2 = 0 there.
    """
    for name in names or ():
        if name not in LIBRARY:
            raise unknown("function", name, LIBRARY)
    xs, ys = (t.detach().double().flatten().cpu().numpy() for t in (x, y))
    if xs.shape != ys.shape or len(xs) < 5:
        raise WorkingPapersError(f"a function is fitted to at least five points; got {len(xs)} and {len(ys)}")
    chosen = {name: LIBRARY[name] for name in names} if names else LIBRARY
    return sorted((_fit(name, f, xs, ys) for name, f in chosen.items()), key=lambda r: -r.r2)


def read_edge(
    layer: BasisLinear,
    output: int,
    input: int,
    x: Tensor,
    library: Mapping[str, object] | Sequence[str] | None = None,
) -> list[Reading]:
    """Fit the function on the edge from `input` to `output` at the values x (N,) of that input; best first."""
    if not (0 <= output < layer.out_features and 0 <= input < layer.in_features):
        raise WorkingPapersError(
            f"the layer has the outputs 0 to {layer.out_features - 1} and the inputs 0 to {layer.in_features - 1}; "
            f"got {output} and {input}"
        )
    with torch.no_grad():
        y = layer.edges(x.unsqueeze(1).expand(-1, layer.in_features))[:, output, input]
    return fit_symbolic(x, y, list(library) if library is not None else None)


def _fit(name: str, f: Callable[[Array], Array], x: Array, y: Array) -> Reading:
    b_range, c_range = (-REACH, REACH), (-REACH, REACH)
    best = (0.0, 1.0, 0.0)
    for _ in range(ROUNDS):
        bs, cs = np.linspace(*b_range, STEPS), np.linspace(*c_range, STEPS)
        scores = _scores(f, x, y, bs, cs)
        i, j = np.unravel_index(int(scores.argmax()), scores.shape)
        best = max(best, (float(scores[i, j]), float(bs[i]), float(cs[j])))
        b_step, c_step = 2 * (bs[1] - bs[0]), 2 * (cs[1] - cs[0])
        b_range, c_range = (best[1] - b_step, best[1] + b_step), (best[2] - c_step, best[2] + c_step)
    _, b, c = best
    a, d = _line(f, x, y, b, c)
    a, b, c, d = _polish(f, x, y, (a, b, c, d))
    return Reading(name, a, b, c, d, _r2(f, x, y, (a, b, c, d)))


def _scores(f: Callable[[Array], Array], x: Array, y: Array, bs: Array, cs: Array) -> Array:
    """Return the squared correlation of y with f(b x + c) for all pairs, 0 where f is not finite or constant."""
    with np.errstate(all="ignore"):
        u = f(bs[:, None, None] * x + cs[:, None])
        u = u - u.mean(-1, keepdims=True)
        v = y - y.mean()
        score = (u @ v) ** 2 / ((u**2).sum(-1) * (v @ v))
    return np.where(np.isfinite(score), score, 0.0)


def _line(f: Callable[[Array], Array], x: Array, y: Array, b: float, c: float) -> tuple[float, float]:
    """Return the best a and d for given b and c."""
    with np.errstate(all="ignore"):
        u = f(b * x + c)
    spread = float(((u - u.mean()) ** 2).sum())
    if not np.isfinite(spread) or spread == 0:
        return 0.0, float(y.mean())
    a = float(((u - u.mean()) * (y - y.mean())).sum() / spread)
    return a, float(y.mean() - a * u.mean())


def _polish(
    f: Callable[[Array], Array], x: Array, y: Array, start: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Improve all four numbers by least squares, or return them as they are where that does not help."""

    def residuals(p: Array) -> Array:
        found: Array = np.nan_to_num(p[0] * f(p[1] * x + p[2]) + p[3] - y, nan=1e6, posinf=1e6, neginf=-1e6)
        return found

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = least_squares(residuals, np.asarray(start), max_nfev=200).x
    ends = (float(found[0]), float(found[1]), float(found[2]), float(found[3]))
    return ends if _r2(f, x, y, ends) >= _r2(f, x, y, start) else start


def _r2(f: Callable[[Array], Array], x: Array, y: Array, p: tuple[float, float, float, float]) -> float:
    with np.errstate(all="ignore"):
        rest = float(((p[0] * f(p[1] * x + p[2]) + p[3] - y) ** 2).sum())
    whole = float(((y - y.mean()) ** 2).sum())
    if not np.isfinite(rest):
        return 0.0
    if whole == 0:
        return 1.0 if rest == 0 else 0.0
    return max(0.0, 1 - rest / whole)

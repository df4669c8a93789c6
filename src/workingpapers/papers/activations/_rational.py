"""Quotients of polynomials as activations: the formula, stable for every input, and its fit to a base function."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import erf, expit
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.activations._coefficients import Formula, Numbers, horner, of_coefficients

Floats = NDArray[np.float64]
Base = Callable[[Floats], Floats]

VERSIONS = {
    "A": "1 + sum |b_k x^k|",
    "B": "1 + |sum b_k x^k|",
    "plain": "1 + sum b_k x^k",
}
BASES: dict[str, Base] = {
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": expit,
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "swish": lambda x: x * expit(x),
    "identity": lambda x: x,
}
TINY = 1e-37


def _size(t: Tensor) -> Tensor:
    """Return |t| with the derivative 1 at 0, where b = 0 would otherwise never learn."""
    return torch.where(t < 0, -t, t)


def _guarded(numerator: Tensor, below: Tensor, unit: Tensor | float, version: str) -> Tensor:
    """Return the numerator over unit + |below|, or over unit + below for the plain version."""
    if version == "plain":
        return numerator / (unit + below)
    return numerator / (unit + _size(below)).clamp(min=TINY)


def _power(x: Tensor, times: str) -> Tensor | float:
    """Return x once for each letter; numbers that a formula closes over become symbols when it is compiled."""
    value: Tensor | float = 1.0
    for _ in times:
        value = value * x
    return value


def _formula(m: int, n: int, version: str) -> Callable[[Tensor, Numbers], Tensor]:
    below, more, less = "x" * n, "x" * (m - n), "x" * (n - m)

    def rational(x: Tensor, coefficients: Numbers) -> Tensor:
        a, b = coefficients[: m + 1], coefficients[m + 1 :]
        near = x.abs() <= 1
        small, u = torch.where(near, x, 0.0), 1 / torch.where(near, 1.0, x)
        if version == "A":
            # sums of sizes: of |b_k| and powers of |x|
            sizes = [_size(torch.as_tensor(c)) for c in b]
            inside, outside = horner(small.abs(), [0.0, *sizes]), horner(u.abs(), [*sizes[::-1]])
        else:
            inside, outside = horner(small, [0.0, *b]), horner(u, [*b[::-1]])
        # where |x| > 1 both polynomials are divided by their highest power, so that none overflows
        unit = _power(u if version == "plain" else u.abs(), below)
        sign = 1.0 if version == "plain" else _power(torch.where(u < 0, -1.0, 1.0), below)
        growth = _power(torch.where(near, 1.0, x), more) * _power(u, less)
        far = _guarded(horner(u, a[::-1]) * sign, outside, unit, version) * growth
        return torch.where(near, _guarded(horner(small, a), inside, 1.0, version), far)

    return rational


_known: dict[tuple[int, int, str], Formula] = {}


def prepare(m: int, n: int, version: str) -> None:
    """Make the formula of degrees (m, n) and a version of the denominator, once."""
    if version not in VERSIONS:
        raise unknown("version of the denominator", version, VERSIONS)
    if not (0 <= m <= 12 and 1 <= n <= 12):
        raise WorkingPapersError(f"the degrees are 0 to 12 and 1 to 12; got ({m}, {n})")
    if (m, n, version) not in _known:
        _known[m, n, version] = of_coefficients(_formula(m, n, version), m + 1 + n)


def rational(x: Tensor, a: Tensor, b: Tensor, version: str = "B") -> Tensor:
    """Return sum_j a_j x^j / Q(x) of `x` (any shape, floating), a (m + 1,), b (n,), Q by `version`.

    Q is 1 + |sum_k b_k x^k| ("B"), 1 + sum_k |b_k x^k| ("A") or 1 + sum_k b_k x^k ("plain", which may vanish).
    """
    m, n = len(a) - 1, len(b)
    if (m, n, version) not in _known:
        prepare(m, n, version)
    return _known[m, n, version](x, [*a.unbind(), *b.unbind()])


def evaluate(x: Floats, a: Floats, b: Floats, version: str) -> Floats:
    """Return the rational in numpy, for moderate x."""
    terms = b[:, None] * x ** np.arange(1, len(b) + 1)[:, None]
    below = {"A": np.abs(terms).sum(0), "B": np.abs(terms.sum(0)), "plain": terms.sum(0)}[version]
    return np.asarray(np.polynomial.polynomial.polyval(x, a) / (1 + below))


@cache
def fit_rational(
    base: str | Base = "leaky_relu",
    degrees: tuple[int, int] = (5, 4),
    version: str = "B",
    bound: float = 3.0,
    points: int = 601,
) -> tuple[Floats, Floats]:
    """Return coefficients a (m + 1,) and b (n,) of the rational nearest to `base` on [-bound, bound].

    Linear least squares on P - f (Q - 1) = f, then Levenberg-Marquardt on the true residual; the same arguments
    give the same numbers.  `base` is one of leaky_relu (slope 0.01), relu, tanh, sigmoid, gelu, swish, identity,
    or a function of a numpy array.
    """
    if not callable(base) and base not in BASES:
        raise unknown("base function", base, BASES)
    prepare(*degrees, version)
    m, n = degrees
    x = np.linspace(-bound, bound, points)
    f = (base if callable(base) else BASES[base])(x)
    powers = x[:, None] ** np.arange(1, n + 1)
    sides = np.abs(powers) if version == "A" else powers
    best, least = None, math.inf
    for ridge in (1e-6, 1e-2):  # without one, b may be huge where base is a polynomial itself
        system = np.hstack([x[:, None] ** np.arange(m + 1), -f[:, None] * sides])
        penalty = math.sqrt(ridge) * np.eye(m + 1 + n)[m + 1 :]
        start = np.linalg.lstsq(np.vstack([system, penalty]), np.concatenate([f, np.zeros(n)]), rcond=None)[0]

        def residual(c: Floats) -> Floats:
            with np.errstate(all="ignore"):
                return np.nan_to_num(evaluate(x, c[: m + 1], c[m + 1 :], version) - f, nan=1e6)

        found = least_squares(residual, start, method="lm", xtol=1e-8, ftol=1e-8, max_nfev=300)
        if found.cost < least:
            best, least = found.x, found.cost
    assert best is not None
    return best[: m + 1], best[m + 1 :]

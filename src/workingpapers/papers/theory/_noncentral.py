"""The scaled non-central chi-square distribution: maximum likelihood, and probabilities of any smallness."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import WorkingPapersError

Vector = NDArray[np.float64]
BLOCKS = 1000  # parts that a sample is sorted into before it is fitted
DEBYE = 15.0  # orders from which the Bessel function's uniform expansion is exact to 1e-7


def _log_bessel(order: float, z: Vector) -> Vector:
    """Return log I_order(z), order > -1 and z > 0; large ones by Debye's expansion (Abramowitz, Stegun 9.7.7)."""
    from scipy.special import gammaln, ive

    if order > DEBYE:
        ratio = z / order
        root = np.sqrt(1 + ratio**2)
        t = 1 / root
        eta = root + np.log(ratio / (1 + root))
        u1 = (3 * t - 5 * t**3) / 24
        u2 = (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152
        u3 = (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720
        series = 1 + u1 / order + u2 / order**2 + u3 / order**3
        debye: Vector = order * eta - 0.5 * np.log(2 * math.pi * order * root) + np.log(series)
        return debye
    scaled = ive(order, z)
    small = order * np.log(z / 2) - gammaln(order + 1) + np.log1p(z**2 / 4 / (order + 1))
    with np.errstate(divide="ignore"):
        found: Vector = np.where(scaled > 1e-290, np.log(scaled) + z, small)
    return found


def _log_gammainc(a: Vector, y: float) -> Vector:
    """Return log P(a, y) of the regularised lower incomplete gamma function, also where it is below 1e-308."""
    from scipy.special import gammainc, gammaln

    with np.errstate(divide="ignore"):
        found: Vector = np.log(gammainc(a, y))
    deep = found < -600
    rest = a[deep]
    term, total = np.ones_like(rest), np.ones_like(rest)
    for n in range(
        1, 2000
    ):  # sum over n of y^n / ((a + 1) ... (a + n)), which falls from the start where y < a
        if np.all(term < 1e-16 * total):
            break
        term = term * y / (rest + n)
        total = total + term
    found[deep] = rest * math.log(y) - y - gammaln(rest + 1) + np.log(total)
    return found


@dataclass(frozen=True)
class Noncentral:
    """scale * X of a non-central chi-square X with `k` degrees of freedom and noncentrality `l`."""

    k: float
    l: float  # noqa: E741 - the distribution's own symbol stands in the formulas
    scale: float

    @property
    def mean(self) -> float:
        """scale (k + l)."""
        return self.scale * (self.k + self.l)

    def log_density(self, x: Vector) -> Vector:
        """Return the logarithm of the density at x > 0."""
        from scipy.stats import chi2

        z = np.asarray(x, dtype=np.float64) / self.scale
        if self.l < 1e-10:
            central: Vector = chi2.logpdf(z, self.k) - math.log(self.scale)
            return central
        bessel = _log_bessel(self.k / 2 - 1, np.sqrt(self.l * z))
        power = (self.k / 4 - 0.5) * np.log(z / self.l)
        found: Vector = power - (z + self.l) / 2 + bessel - math.log(2 * self.scale)
        return found

    def log_cdf(self, x: float) -> float:
        """Return log P(X <= x), exact also where the probability is far below 1e-308."""
        from scipy.special import gammaln, logsumexp
        from scipy.stats import ncx2

        if x <= 0:
            return -math.inf
        z, half = x / self.scale, self.l / 2
        direct = float(ncx2.cdf(z, self.k, self.l)) if self.l > 1e-10 else 0.0
        if direct > 1e-200:
            return math.log(min(direct, 1.0))
        if half < 1e-10:
            return float(_log_gammainc(np.array([self.k / 2]), z / 2)[0])

        def terms(js: Vector) -> Vector:
            weights = js * math.log(half) - half - gammaln(js + 1)
            found: Vector = weights + _log_gammainc(self.k / 2 + js, z / 2)
            return found

        most = half + 12 * math.sqrt(half + 1) + 20  # terms have one peak: a coarse look finds it
        coarse = np.unique(np.concatenate([np.arange(64.0), np.floor(np.geomspace(64, 64 + most, 400))]))
        values = terms(coarse)
        near = coarse[values > values.max() - 50]
        first = coarse[max(np.searchsorted(coarse, near[0]) - 1, 0)]
        last = coarse[min(np.searchsorted(coarse, near[-1]) + 1, len(coarse) - 1)]
        return float(logsumexp(terms(np.arange(first, last + 1))))

    def sankaran(self, x: float) -> float:
        """Return log P(X <= x) by Sankaran's normal approximation, the authors' where the former underflows.

        Close near the mean; deep in the lower tail it stays finite where the truth does not.
        """
        from scipy.special import log_ndtr

        k, l = self.k, self.l  # noqa: E741
        h = 1 - 2 * (k + l) * (k + 3 * l) / (3 * (k + 2 * l) ** 2)
        p = (k + 2 * l) / (k + l) ** 2
        m = (h - 1) * (1 - 3 * h)
        centre = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
        z = ((x / self.mean) ** h - centre) / (h * math.sqrt(2 * p) * (1 + 0.5 * m * p))
        return float(log_ndtr(z))


def by_moments(x: Vector) -> Noncentral:
    """Return the distribution with the first three cumulants of `x`; central where the skewness asks for more.

    With a = mean, b = variance / 2 and c = third cumulant / 8, 1 / scale solves c u^2 - 2 b u + a = 0.
    """
    a, b = float(x.mean()), float(x.var()) / 2
    c = float(((x - x.mean()) ** 3).mean()) / 8
    central = Noncentral(a * a / b, 0.0, b / a)
    if c <= 0 or b * b <= a * c:
        return central
    # the smaller u alone leaves k = u (a - l / u) >= 0
    best = central
    for u in ((b - math.sqrt(b * b - a * c)) / c, (b + math.sqrt(b * b - a * c)) / c):
        shift = b * u - a  # scale * l
        if u > 0 and 0 < shift < a:
            best = Noncentral(u * (a - shift), u * shift, 1 / u)
    return best


def fit(x: Vector, start: Noncentral | None = None, steps: int = 600) -> Noncentral:
    """Return the scaled non-central chi-square of the greatest likelihood for `x` (N,), all above 0.

    More than a thousand values count as the means of a thousand equal parts of the sorted ones.  Searched from the
    moments, from a mostly central and a mostly non-central start, or from `start` alone.

    Raises:
        WorkingPapersError: for fewer than 10 values, values that are not above 0, or all the same.
    """
    x = np.sort(np.asarray(x, dtype=np.float64))
    if x.ndim != 1 or len(x) < 10 or not np.isfinite(x).all() or x[0] <= 0:
        raise WorkingPapersError("a loss distribution needs at least 10 finite losses above 0")
    if x[-1] - x[0] <= 1e-12 * x[-1]:
        raise WorkingPapersError("all losses are the same, so they have no distribution")
    unit = float(x.mean())
    scaled = np.array([block.mean() for block in np.array_split(x, min(len(x), BLOCKS))]) / unit
    if start is not None:
        starts = [Noncentral(start.k, start.l, start.scale / unit)]
    else:
        ratio = 2 / float(scaled.var())
        moments = by_moments(scaled)
        starts = [moments, Noncentral(ratio, 0.02 * ratio, 1 / (1.02 * ratio))]
        starts.append(Noncentral(0.2 * ratio, 2 * ratio, 1 / (2.2 * ratio)))
    best = max((_climb(scaled, s, steps) for s in starts), key=lambda found: found[1])[0]
    return Noncentral(best.k, best.l, best.scale * unit)


def _climb(x: Vector, start: Noncentral, steps: int) -> tuple[Noncentral, float]:
    """Return the likeliest distribution near `start` and its mean log density (logarithms of parameters move)."""
    from scipy.optimize import minimize

    def of(theta: Vector) -> Noncentral:
        k, l, mean = np.exp(np.clip(theta, [-7, -25, -7], [16, 16, 7]))  # noqa: E741
        return Noncentral(float(k), float(l), float(mean / (k + l)))

    def miss(theta: Vector) -> float:
        value = float(of(theta).log_density(x).mean())
        return -value if math.isfinite(value) else 1e300

    first = np.log([start.k, max(start.l, 1e-3 * start.k), start.mean])
    options = {"maxiter": steps, "xatol": 1e-6, "fatol": 1e-10}
    found = minimize(miss, first, method="Nelder-Mead", options=options)
    return of(found.x), -float(found.fun)


def log_square_sum(spread: NDArray[Any], offset: NDArray[Any], bound: float) -> float:
    """Return log P( sum_i (sqrt(spread_i) z_i + offset_i)^2 <= bound ) for standard normal z, in the lower tail.

    By the saddlepoint formula of Lugannani and Rice, close to exact at any depth; 0 where the mean is in the bound.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    v, d2 = spread.astype(np.float64), offset.astype(np.float64) ** 2

    def slope(s: float) -> float:
        return float((v / (1 - 2 * s * v) + d2 / (1 - 2 * s * v) ** 2).sum())

    if slope(0.0) <= bound:
        return 0.0
    low = -1.0 / slope(0.0)
    while slope(low) > bound:
        low *= 4
        if low < -1e100:
            return -math.inf  # what does not vary lies outside
    s = float(brentq(lambda t: slope(t) - bound, low, 0.0, xtol=1e-16, rtol=1e-13))
    shrunk = 1 - 2 * s * v
    value = float((-0.5 * np.log(shrunk) + s * d2 / shrunk).sum())
    curvature = float((2 * (v / shrunk) ** 2 + 4 * d2 * v / shrunk**3).sum())
    w, u = -math.sqrt(max(2 * (s * bound - value), 1e-300)), s * math.sqrt(curvature)
    return min(float(log_ndtr(w + math.log(u / w) / w)), 0.0)

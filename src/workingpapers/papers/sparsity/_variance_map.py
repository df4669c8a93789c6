"""The Gaussian process that a wide net with clipped thresholds follows: its variance and correlation maps.

A pre-activation has variance q; x = sqrt(q) z, z standard normal.  The activation min(max(x - tau, 0), clip), or
with `soft` its odd continuation sign(x) min(max(|x| - tau, 0), clip), has closed moments:

    E[phi'^2]    = Phi(b) - Phi(a),                                 a = tau / sqrt(q), b = (tau + clip) / sqrt(q)
    E[phi^2]     = q int_a^b (z - a)^2 dPhi + clip^2 Phi(-b)
    E[phi phi''] = -clip * density of N(0, q) at tau + clip         (phi is 0 where it starts)

each twice for the odd one.  V(q) = sw2 E[phi^2] + sb2, V'(q) = sw2 (E[phi'^2] + E[phi phi'']).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from workingpapers.errors import WorkingPapersError

Floats = NDArray[np.float64]


def density(z: Floats | float) -> Floats:
    """Return the standard normal density."""
    return np.asarray(np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi))


def threshold(sparsity: float, q: float = 1.0, soft: bool = False) -> float:
    """Return tau that sets the share `sparsity` of inputs from N(0, q) to zero."""
    least = 0.0 if soft else 0.5
    if not least <= sparsity < 1:
        raise WorkingPapersError(
            f"this activation sets a share of {least:g} to 1 to zero; got sparsity={sparsity}"
        )
    return math.sqrt(q) * float(ndtri((1 + sparsity) / 2 if soft else sparsity))


@dataclass(frozen=True)
class Thresholded:
    """The activation with threshold `tau`, clipped at `clip` (inf: not at all), odd where `soft`."""

    tau: float
    clip: float = math.inf
    soft: bool = False

    def _bounds(self, q: float) -> tuple[float, float, float]:
        return self.tau / math.sqrt(q), (self.tau + self.clip) / math.sqrt(q), 2.0 if self.soft else 1.0

    def square(self, q: float) -> float:
        """Return E[phi^2]."""
        a, b, sides = self._bounds(q)
        if math.isinf(b):
            return sides * q * float((1 + a * a) * ndtr(-a) - a * density(a))
        inner = (1 + a * a) * (ndtr(-a) - ndtr(-b)) - a * density(a) + (2 * a - b) * density(b)
        return sides * float(q * inner + self.clip**2 * ndtr(-b))

    def slope_square(self, q: float) -> float:
        """Return E[phi'^2]."""
        a, b, sides = self._bounds(q)
        return sides * float(ndtr(-a) - ndtr(-b))

    def bend(self, q: float) -> float:
        """Return E[phi phi'']."""
        _, b, sides = self._bounds(q)
        return 0.0 if math.isinf(b) else -sides * self.clip * float(density(b)) / math.sqrt(q)

    def conditional_mean(self, mean: Floats, std: float) -> Floats:
        """Return E[phi(mean + std z)] for each mean."""

        def ramp(distance: Floats) -> Floats:
            if std == 0:
                return np.maximum(distance, 0.0)
            z = distance / std
            return np.asarray(std * (z * ndtr(z) + density(z)))

        def one_side(m: Floats) -> Floats:
            return ramp(m - self.tau) - (0.0 if math.isinf(self.clip) else ramp(m - self.tau - self.clip))

        return one_side(mean) - one_side(-mean) if self.soft else one_side(mean)

    def values(self, x: Floats) -> Floats:
        """Return the activation itself."""
        size = np.clip((np.abs(x) if self.soft else x) - self.tau, 0.0, self.clip)
        return np.asarray(np.sign(x) * size if self.soft else size)


@dataclass(frozen=True)
class EdgeOfChaos:
    """Weights N(0, sw2 / fan_in) and biases N(0, sb2) with V(q) = q and chi(q) = sw2 E[phi'^2] = 1 at `q`."""

    phi: Thresholded
    q: float
    sw2: float
    sb2: float

    @classmethod
    def at(cls, phi: Thresholded, q: float = 1.0) -> "EdgeOfChaos":
        """Solve for the two variances; raise where the bias's would be negative or no input gets through."""
        passing = phi.slope_square(q)
        if passing <= 0:
            raise WorkingPapersError(f"no input of variance q={q:g} gets past a threshold of {phi.tau:g}")
        sw2 = 1 / passing
        sb2 = q - sw2 * phi.square(q)
        if sb2 < -1e-9 * q:
            raise WorkingPapersError(
                f"the edge of chaos at q={q:g} needs a bias variance of {sb2:.3g}, which is negative"
            )
        return cls(phi, q, sw2, max(sb2, 0.0))

    def variance(self, q: float) -> float:
        """Return V(q), the variance a layer later."""
        return self.sw2 * self.phi.square(q) + self.sb2

    def chi(self, q: float) -> float:
        """Return sw2 E[phi'^2], by which small distances and gradients grow a layer."""
        return self.sw2 * self.phi.slope_square(q)

    def slope(self, q: float) -> float:
        """Return V'(q): below 1 the variance comes back to its fixed point."""
        return self.sw2 * (self.phi.slope_square(q) + self.phi.bend(q))

    def correlation(self, rho: float, q: float | None = None, points: int = 200) -> float:
        """Return the correlation a layer later of two inputs with correlation `rho`, both of variance `q`.

        Gauss-Legendre between the kinks over one input, in closed form over the other.
        """
        q = self.q if q is None else q
        std, phi = math.sqrt(q), self.phi
        kinks = [phi.tau, phi.tau + phi.clip]
        kinks += [-k for k in kinks] if phi.soft else []
        inner = sorted(k / std for k in kinks if abs(k / std) < 10)
        x, w = np.polynomial.legendre.leggauss(points)
        total = 0.0
        for low, high in zip([-10.0, *inner], [*inner, 10.0], strict=True):
            z = (high - low) / 2 * x + (high + low) / 2
            other = phi.conditional_mean(rho * std * z, std * math.sqrt(max(1 - rho * rho, 0.0)))
            total += (high - low) / 2 * float(w @ (phi.values(std * z) * other * density(z)))
        return (self.sw2 * total + self.sb2) / self.variance(q)


def choose_clip(sparsity: float, slope: float = 0.7, q: float = 1.0, soft: bool = False) -> float:
    """Return the clip at which the variance map's slope at its fixed point `q` is `slope`, in (0, 1)."""
    if not 0 < slope < 1:
        raise WorkingPapersError(f"clipping gives the variance map a slope between 0 and 1; got {slope}")
    tau, unit = threshold(sparsity, q, soft), math.sqrt(q)

    def excess(clip: float) -> float:
        phi = Thresholded(tau, clip, soft)
        return 1 + phi.bend(q) / phi.slope_square(q) - slope

    low, high = 1e-6 * unit, 8 * unit
    if excess(low) > 0 or excess(high) < 0:
        raise WorkingPapersError(f"no clip gives a slope of {slope:g} at sparsity {sparsity:g}")
    return float(brentq(excess, low, high, xtol=1e-13, rtol=1e-13))


def draw(edge: EdgeOfChaos) -> Any:
    """Draw the variance map up to three times its fixed point, and the correlation map there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    maps: tuple[tuple[str, Callable[[float], float], float], ...] = (
        ("variance", edge.variance, 3 * edge.q),
        ("correlation", edge.correlation, 1.0),
    )
    for axes, (name, map_, high) in zip(figure.subplots(1, 2), maps, strict=True):
        points = [high * i / 60 for i in range(1, 61)]
        axes.plot(points, [map_(p) for p in points])
        axes.plot(points, points, "--", color="0.6")
        axes.set_xlabel(name)
        axes.set_ylabel(f"{name} a layer later")
    return figure

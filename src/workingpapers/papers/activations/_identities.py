"""Convolution of activations with approximate identities: kernels K_n(t) = n K(n t) that shrink to a point.

A piecewise linear f is c + m x + sum_j d_j / 2 |x - k_j|, so that f * K_n follows from A(z), the mean of |z - t|
under K, alone; for the Poisson kernel, which has no mean, A is taken up to a constant that cancels.  Everything
else is integrated by quadrature.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial.hermite import hermgauss
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

NODES = 64

Rule = tuple[list[float], list[float]]


def _rule(nodes: NDArray[np.float64], weights: NDArray[np.float64]) -> Rule:
    return nodes.tolist(), (weights / weights.sum()).tolist()


def _bump_density(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-1 / (1 - t * t))


HERMITE, LEGENDRE, ANGLES = (
    hermgauss(NODES),
    leggauss(NODES),
    np.pi * ((np.arange(NODES) + 0.5) / NODES - 0.5),
)
BUMP_MASS = float(leggauss(400)[1] @ _bump_density(leggauss(400)[0]))
QUADRATURE = {  # nodes, and weights that add up to 1; the angles of the Cauchy law are uniform
    "gaussian": _rule(math.sqrt(2) * HERMITE[0], HERMITE[1]),
    "bump": _rule(LEGENDRE[0], LEGENDRE[1] * _bump_density(LEGENDRE[0])),
    "poisson": _rule(np.tan(ANGLES), np.ones(NODES)),
}
LEGENDRE_RULE = LEGENDRE[0].tolist(), LEGENDRE[1].tolist()


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous function, linear between its `knots`, with `slopes` from left to right, one more than knots.

    `value` is taken at the first knot.
    """

    knots: Sequence[float]
    slopes: Sequence[float]
    value: float = 0.0

    def __post_init__(self) -> None:
        if not self.knots or len(self.slopes) != len(self.knots) + 1:
            raise WorkingPapersError(
                f"a piecewise linear function has a slope more than it has knots, and a knot at least; "
                f"got {len(self.slopes)} slopes and {len(self.knots)} knots"
            )

    @property
    def jumps(self) -> list[float]:
        """How much the slope grows at each knot."""
        return [right - left for left, right in pairwise(self.slopes)]

    def mixed(self, distance: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return c + m x + sum_j d_j / 2 distance(x - k_j); it is the function itself where distance is |.|."""
        middle = (self.slopes[0] + self.slopes[-1]) / 2
        start = self.value - middle * self.knots[0]
        for knot, jump in zip(self.knots, self.jumps, strict=True):
            start -= jump / 2 * abs(self.knots[0] - knot)
        y = start + middle * x
        for knot, jump in zip(self.knots, self.jumps, strict=True):
            y = y + jump / 2 * distance(x - knot)
        return y

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function's values at `x`."""
        return self.mixed(torch.abs, x)


def smoothed(f: Callable[[Tensor], Tensor], kernel: str, n: float, x: Tensor) -> Tensor:
    """Return the mean of f(x - t / n) over t of the density `kernel`, at every `x`; `f` is elementwise.

    In closed form (but for the bump's one integral) where `f` is `PiecewiseLinear`, else by 64 nodes.
    """
    if isinstance(f, PiecewiseLinear):
        mean_distance = {"gaussian": _gaussian, "bump": _bump, "poisson": _poisson}[kernel]
        return f.mixed(lambda d: mean_distance(n * d) / n, x)
    nodes, weights = (x.new_tensor(v) for v in QUADRATURE[kernel])
    return f(x[..., None] - nodes / n) @ weights


def check(f: Callable[[Tensor], Tensor], kernel: str, n: float) -> None:
    """Raise one sentence where the convolution is not defined."""
    if kernel not in QUADRATURE:
        raise unknown("approximate identity", kernel, QUADRATURE)
    if not 0 < n < math.inf:
        raise WorkingPapersError(f"an approximate identity takes a sharpness n > 0; got {n}")
    if kernel == "poisson" and isinstance(f, PiecewiseLinear) and (f.slopes[0], f.slopes[-1]) != (0, 0):
        raise WorkingPapersError(
            f"the Poisson kernel has no mean, so that slopes {f.slopes[0]:g} and {f.slopes[-1]:g} at the two ends "
            "cannot be smoothed by it; they have to be 0"
        )


def _gaussian(z: Tensor) -> Tensor:
    near = z.clamp(-40, 40)
    density = torch.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
    return z * torch.erf(near / math.sqrt(2)) + 2 * density


def _bump(z: Tensor) -> Tensor:
    """Return 2 int_{-1}^u (u - t) K(t) dt - u for u in [-1, 1], and |z| beyond."""
    inside = z.abs() < 1
    u = torch.where(inside, z, 0)[..., None]
    points, weights = (z.new_tensor(v) for v in LEGENDRE_RULE)
    half = (u + 1) / 2
    t = half * (1 + points) - 1
    density = torch.exp(-1 / ((1 - t) * (1 + t)).clamp(min=1e-3)) / BUMP_MASS
    return torch.where(inside, ((2 * half * (u - t) * density) @ weights) - u[..., 0], z.abs())


def _poisson(z: Tensor) -> Tensor:
    return (2 * z * torch.atan(z) - torch.log1p(z * z)) / math.pi

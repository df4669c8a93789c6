"""Truncated moments of two standard normals with correlation rho, in closed form.

    G[m, n] = E (x - t)_+^m (y - s)_+^n / (m! n!),   with delta functions for m or n = -1

G[0, 0] is a probability (Owen's T function); the others follow by Stein's identity,
(m + 1) G[m+1, n] = G[m-1, n] + rho G[m, n-1] - t G[m, n].
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, owens_t

Array = NDArray[np.float64]


def density(x: Array) -> Array:
    """Return the standard normal density."""
    return np.asarray(np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


def probability(t: Array, s: Array, rho: Array) -> Array:
    """Return P(x > t, y > s); the arguments broadcast, |rho| < 1."""
    t, s, rho = np.broadcast_arrays(0.0 - t, 0.0 - s, rho)  # never -0, whose quotients have the other sign
    root = np.sqrt((1 - rho) * (1 + rho))
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where((t == 0) & (s == 0), (1 - rho) / root, (s - rho * t) / (t * root))
        a_s = np.where((t == 0) & (s == 0), (1 - rho) / root, (t - rho * s) / (s * root))
    apart = (t * s < 0) | ((t * s == 0) & (t + s < 0))
    return np.asarray((ndtr(t) + ndtr(s)) / 2 - owens_t(t, at) - owens_t(s, a_s) - apart / 2)


class Truncated:
    """The moments G[m, n] for thresholds t and s and correlations rho that broadcast, each computed once."""

    def __init__(self, t: Array, s: Array, rho: Array) -> None:
        self.t, self.s, self.rho = t, s, rho
        self.root = np.sqrt((1 - rho) * (1 + rho))
        self._known: dict[tuple[int, int], Array] = {}

    def __getitem__(self, orders: tuple[int, int]) -> Array:
        """Return G[m, n] for m, n from -1, not both -1."""
        if orders not in self._known:
            self._known[orders] = self._compute(*orders)
        return self._known[orders]

    def _compute(self, m: int, n: int) -> Array:
        if m == -1:
            return density(self.t) * self._given(self.rho * self.t - self.s, n)
        if n == -1:
            return density(self.s) * self._given(self.rho * self.s - self.t, m)
        if m == n == 0:
            return probability(self.t, self.s, self.rho)
        if m == 0:
            return (self[m, n - 2] + self.rho * self[m - 1, n - 1] - self.s * self[m, n - 1]) / n
        return (self[m - 2, n] + self.rho * self[m - 1, n - 1] - self.t * self[m - 1, n]) / m

    def _given(self, shift: Array, n: int) -> Array:
        """Return E (shift + root z)_+^n / n! for standard normal z."""
        z = shift / self.root
        before, value = density(z), np.asarray(ndtr(z))  # orders -1 and 0 at root 1
        for k in range(n):
            before, value = value, (before + z * value) / (k + 1)
        return np.asarray(value * self.root**n)

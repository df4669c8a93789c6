"""Shallow networks with gradients in closed form, many runs at once: diagonal linear ones and two-layer ReLU ones.

Parameters are rows theta (R, P), one for each run; inputs x (n, d) and targets y (n,) are shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Shallow(Protocol):
    """What a network here can do."""

    def outputs(self, theta: Array, x: Array) -> Array:
        """Return the outputs (R, n)."""

    def gradients(self, theta: Array, x: Array) -> Array:
        """Return the gradient of each output (R, n, P)."""


@dataclass(frozen=True)
class Diagonal:
    """f(x) = <u u - v v, x>, or <u v, x> with `product`; theta = (u, v), P = 2 d."""

    product: bool = False

    def predictor(self, theta: Array) -> Array:
        """Return the linear predictor (R, d)."""
        u, v = np.split(theta, 2, axis=1)
        return u * v if self.product else u * u - v * v

    def outputs(self, theta: Array, x: Array) -> Array:
        """Return the outputs (R, n)."""
        return self.predictor(theta) @ x.T

    def gradients(self, theta: Array, x: Array) -> Array:
        """Return the gradient of each output (R, n, 2 d)."""
        u, v = np.split(theta, 2, axis=1)
        slopes = np.concatenate([v, u] if self.product else [2 * u, -2 * v], axis=1)
        found: Array = slopes[:, None, :] * np.concatenate([x, x], axis=1)
        return found

    def trace(self, theta: Array, x: Array) -> Array:
        """Return mean_i |grad f(x_i)|^2 in closed form (R,)."""
        u, v = np.split(theta, 2, axis=1)
        found: Array = ((1 if self.product else 4) * (u * u + v * v)) @ np.square(x).mean(0)
        return found


@dataclass(frozen=True)
class TwoLayer:
    """f(x) = sum_j a_j relu(w_j . x) with `width` neurons; theta = (a, w row by row), P = width (d + 1)."""

    width: int

    def _parts(self, theta: Array) -> tuple[Array, Array]:
        return theta[:, : self.width], theta[:, self.width :].reshape(len(theta), self.width, -1)

    def outputs(self, theta: Array, x: Array) -> Array:
        """Return the outputs (R, n)."""
        a, w = self._parts(theta)
        hidden: Array = np.maximum(x @ w.transpose(0, 2, 1), 0)
        return np.asarray((hidden @ a[:, :, None])[:, :, 0])

    def gradients(self, theta: Array, x: Array) -> Array:
        """Return the gradient of each output (R, n, P)."""
        a, w = self._parts(theta)
        z = x @ w.transpose(0, 2, 1)
        inner = (a[:, None] * (z > 0))[..., None] * x[:, None, :]
        return np.concatenate([np.maximum(z, 0), inner.reshape(*z.shape[:2], -1)], axis=2)

    def trace(self, theta: Array, x: Array) -> Array:
        """Return mean_i |grad f(x_i)|^2 = mean_i sum_j a_j^2 [z_ij > 0] |x_i|^2 + relu(z_ij)^2 (R,)."""
        a, w = self._parts(theta)
        z = x @ w.transpose(0, 2, 1)
        outer = (np.square(a)[:, None] * (z > 0)).sum(2) * np.square(x).sum(1)
        return np.asarray((outer + np.square(np.maximum(z, 0)).sum(2)).mean(1))


def descend(
    net: Shallow,
    x: Array,
    y: Array,
    start: Array,
    rates: Sequence[float],
    steps: int,
    batch: int | None = None,
    seed: int = 0,
) -> Array:
    """Return theta (R, P) after `steps` of descent on 1/(2n) sum (f - y)^2 from `start` (P,) at each rate.

    With `batch`, each step takes that many examples at random, the same for all rates; else all examples.  A run
    that overflows is NaN.
    """
    generator = np.random.default_rng(seed)
    theta, lr = np.repeat(start[None], len(rates), axis=0), np.asarray(rates)[:, None]
    draws = None if batch is None else generator.integers(0, len(x), (steps, batch))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            xs, ys = (x, y) if draws is None else (x[draws[step]], y[draws[step]])
            left = net.outputs(theta, xs) - ys
            theta = theta - lr * (left[:, None, :] @ net.gradients(theta, xs))[:, 0] / len(xs)
    return theta


def train_loss(net: Shallow, theta: Array, x: Array, y: Array) -> Array:
    """Return 1/(2n) sum (f - y)^2 of each run (R,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.square(net.outputs(theta, x) - y).mean(1) / 2)


def top_eigenvalues(net: Shallow, theta: Array, x: Array) -> Array:
    """Return the largest eigenvalue of (1/n) sum g_i g_i' of each run (R,)."""
    g = net.gradients(theta, x)
    return np.asarray(np.linalg.eigvalsh(g @ g.transpose(0, 2, 1) / len(x))[:, -1])

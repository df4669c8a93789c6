"""Gaussian mixtures of experts with temperature-softmax gates: sampling, likelihood, scores, and EM.

    y | x  ~  sum_i pi_i(x) N(a_i x + b_i, v_i),   pi = softmax((s(beta1_i x) + beta0_i) / tau)

The last expert's gate has beta1 = beta0 = 0, for softmax does not see a common shift.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, ndtr

from workingpapers.errors import unknown

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


def _gelu(z: Array) -> Array:
    found: Array = z * ndtr(z)
    return found


def _gelu_slope(z: Array) -> Array:
    found: Array = ndtr(z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return found


# an activation of the gate's linear scores, and its derivative
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "linear": (lambda z: z, np.ones_like),
    "sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "gelu": (_gelu, _gelu_slope),
}


@dataclass(frozen=True)
class Mixture:
    """Parameters of a mixture with k experts of d inputs.

    Attributes:
        beta1 (k, d), beta0 (k,), tau: the gate; the last row of beta1 and the last beta0 are 0.
        a (k, d), b (k,), v (k,): slopes, intercepts and variances of the experts.
        activation: of the gate's linear scores, "linear" for the plain gate.
    """

    beta1: Array
    beta0: Array
    tau: float
    a: Array
    b: Array
    v: Array
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation of the gate", self.activation, ACTIVATIONS)


def log_gate(m: Mixture, x: Array) -> Array:
    """Return log pi (n, k) for inputs x (n, d)."""
    scores = (ACTIVATIONS[m.activation][0](x @ m.beta1.T) + m.beta0) / m.tau
    found: Array = log_softmax(scores, axis=1)
    return found


def log_joint(m: Mixture, x: Array, y: Array) -> Array:
    """Return log pi_i(x) + log N(y; a_i x + b_i, v_i), (n, k)."""
    residual = y[:, None] - x @ m.a.T - m.b
    return log_gate(m, x) - 0.5 * (np.log(2 * np.pi * m.v) + residual**2 / m.v)


def log_likelihood(m: Mixture, x: Array, y: Array) -> float:
    """Return the mean of log g(y | x)."""
    return float(logsumexp(log_joint(m, x, y), axis=1).mean())


def sample(m: Mixture, n: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Draw x uniform on [-1, 1]^d, (n, d), and y (n,)."""
    x = generator.uniform(-1, 1, (n, m.a.shape[1]))
    chosen = (generator.uniform(size=(n, 1)) > np.exp(log_gate(m, x)).cumsum(1)).sum(1)
    chosen = np.minimum(chosen, len(m.b) - 1)
    mean = (x * m.a[chosen]).sum(1) + m.b[chosen]
    return x, mean + np.sqrt(m.v[chosen]) * generator.standard_normal(n)


def scores(m: Mixture, x: Array, y: Array) -> dict[str, Array]:
    """Return the derivatives of log g(y | x) by each parameter: beta1 (n, k, d), beta0 (n, k), tau (n, 1), a, b, v.

    All experts' gates are included, also the last's.
    """
    joint = log_joint(m, x, y)
    shares = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    by_score = (shares - np.exp(log_gate(m, x))) / m.tau  # by s(beta1 x) + beta0
    linear = x @ m.beta1.T
    value, slope = (f(linear) for f in ACTIVATIONS[m.activation])
    residual = y[:, None] - x @ m.a.T - m.b
    by_mean = shares * residual / m.v
    return {
        "beta1": (by_score * slope)[:, :, None] * x[:, None, :],
        "beta0": by_score,
        "tau": -(by_score * (value + m.beta0)).sum(1, keepdims=True) / m.tau,
        "a": by_mean[:, :, None] * x[:, None, :],
        "b": by_mean,
        "v": 0.5 * shares * (residual**2 / m.v - 1) / m.v,
    }


def _pack(m: Mixture) -> Array:
    return np.concatenate([m.beta1[:-1].ravel(), m.beta0[:-1], [np.log(m.tau)]])


def _unpack(m: Mixture, theta: Array) -> Mixture:
    k, d = m.beta1.shape
    beta1 = np.vstack([theta[: (k - 1) * d].reshape(k - 1, d), np.zeros((1, d))])
    beta0 = np.append(theta[(k - 1) * d : -1], 0.0)
    return replace(m, beta1=beta1, beta0=beta0, tau=float(np.exp(theta[-1])))


def _gate_step(m: Mixture, x: Array, shares: Array, steps: int) -> Mixture:
    """Improve the gate's weighted log-likelihood by a few steps of L-BFGS; keep the old gate where that fails."""
    linear_of, slope_of = ACTIVATIONS[m.activation]

    def loss(theta: Array) -> tuple[float, Array]:
        moved = _unpack(m, theta)
        linear = x @ moved.beta1.T
        raw = linear_of(linear) + moved.beta0
        log_pi = log_softmax(raw / moved.tau, axis=1)
        by_raw = (shares - np.exp(log_pi)) / moved.tau / len(x)
        by_beta1 = (by_raw * slope_of(linear)).T @ x
        by_log_tau = -(by_raw * raw).sum()
        slope = np.concatenate([by_beta1[:-1].ravel(), by_raw.sum(0)[:-1], [by_log_tau]])
        return -float((shares * log_pi).sum() / len(x)), -slope

    start = _pack(m)
    found: Any = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps})
    return _unpack(m, found.x) if found.fun <= loss(start)[0] else m


def _expert_step(m: Mixture, x: Array, y: Array, shares: Array) -> Mixture:
    """Return the experts' weighted least squares and variances, in closed form."""
    design = np.hstack([x, np.ones((len(x), 1))])
    a, b, v = m.a.copy(), m.b.copy(), m.v.copy()
    for i, w in enumerate(shares.T):
        weighted = design * w[:, None]
        solution = np.linalg.lstsq(weighted.T @ design, weighted.T @ y, rcond=None)[0]
        a[i], b[i] = solution[:-1], solution[-1]
        v[i] = max((w * (y - design @ solution) ** 2).sum() / max(w.sum(), 1e-12), 1e-6)
    return replace(m, a=a, b=b, v=v)


def fit_em(
    start: Mixture, x: Array, y: Array, iterations: int = 300, tolerance: float = 1e-7, gate_steps: int = 5
) -> tuple[Mixture, list[float]]:
    """Fit by EM from `start`; return the mixture and the mean log-likelihood before and after each iteration.

    It stops where the relative change falls below `tolerance`.
    """
    m, trace = start, [log_likelihood(start, x, y)]
    for _ in range(iterations):
        joint = log_joint(m, x, y)
        shares = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        m = _gate_step(_expert_step(m, x, y, shares), x, shares, gate_steps)
        trace.append(log_likelihood(m, x, y))
        if abs(trace[-1] - trace[-2]) <= tolerance * abs(trace[-2]):
            break
    return m, trace


def perturbed(m: Mixture, size: float, generator: np.random.Generator) -> Mixture:
    """Return the mixture with every parameter moved by `size` times a uniform number of [-1, 1].

    Temperature and variances are moved in their logarithm, the last gate stays.
    """
    theta = _pack(m)
    moved = _unpack(m, theta + size * generator.uniform(-1, 1, theta.shape))
    a, b, v = (p + size * generator.uniform(-1, 1, p.shape) for p in (m.a, m.b, np.log(m.v)))
    return replace(moved, a=a, b=b, v=np.exp(v))


def voronoi_loss(m: Mixture, true: Mixture) -> float:
    """Return the distance of a fitted mixture from the true one, each expert counted to its nearest true one.

    Each true expert adds the difference of its weight exp(beta0 / tau) from its cell's sum, and the cell's
    weighted gaps in beta1, tau, a, b and v: to the first power where it has one expert, squared where more.
    """

    def rows(p: Mixture) -> Array:
        tau = np.full((len(p.b), 1), p.tau)
        return np.hstack([p.beta1, tau, p.a, p.b[:, None], p.v[:, None]])

    fitted, wanted = rows(m), rows(true)
    weight, goal = np.exp(m.beta0 / m.tau), np.exp(true.beta0 / true.tau)
    gaps = np.linalg.norm(fitted[:, None] - wanted[None], axis=2)
    cell = gaps.argmin(1)
    total = 0.0
    for j in range(len(goal)):
        inside = np.flatnonzero(cell == j)
        power = 1 if len(inside) <= 1 else 2
        each = np.abs(fitted[inside] - wanted[j]) ** power
        total += abs(weight[inside].sum() - goal[j]) + float((weight[inside][:, None] * each).sum())
    return float(total)


def hellinger(m: Mixture, true: Mixture, points: int = 100, values: int = 801) -> float:
    """Return the Hellinger distance of the densities of y given x, averaged over a grid of one-dimensional x."""
    x = np.linspace(-1, 1, points)[:, None]
    means = np.concatenate([(x @ p.a.T + p.b).ravel() for p in (m, true)])
    far = 8 * float(np.sqrt(max(m.v.max(), true.v.max())))
    y = np.linspace(means.min() - far, means.max() + far, values)
    xs, ys = np.repeat(x, values, 0), np.tile(y, points)
    roots = [np.exp(0.5 * logsumexp(log_joint(p, xs, ys), axis=1)).reshape(points, -1) for p in (m, true)]
    squares = 0.5 * np.trapezoid((roots[0] - roots[1]) ** 2, y, axis=1)
    return float(np.sqrt(squares.mean()))

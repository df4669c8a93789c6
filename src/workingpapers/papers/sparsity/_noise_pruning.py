"""What Lyapunov noise pruning stands on: noise covariances, Lyapunov exponents, chances to keep an edge, spread."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.papers.sparsity._spiking import HRSNN, softness

Array = NDArray[np.float64]


def jacobian(weight: Array, tau: Array) -> Array:
    """Return J = diag(1 / tau) (-1 + W), with what makes it stable taken off its diagonal."""
    found = (weight - np.eye(len(weight))) / tau[:, None]
    reach = float(np.linalg.eigvals(found).real.max())
    least = 0.05 / float(tau.mean())
    stable: Array = found - max(0.0, reach + least) * np.eye(len(weight))
    return stable


def covariance(stable: Array, sigma: float = 1.0) -> Array:
    """Return the covariance C of dx = J x dt + sigma dW: the solution of J C + C J^T = -sigma^2."""
    from scipy.linalg import solve_continuous_lyapunov

    found: Array = solve_continuous_lyapunov(stable, -(sigma**2) * np.eye(len(stable)))
    return (found + found.T) / 2


@torch.no_grad()
def exponents(model: HRSNN, steps: int = 60, every: int = 5, sigma: float = 0.5, seed: int = 0) -> Array:
    """Return the local Lyapunov exponents (N,), 1/ms, of the model driven by noise; not sorted.

    The product of the steps' Jacobians, with the surrogate in place of the threshold's derivative and without the
    reset, is made orthogonal `every` few steps (QR); the i-th direction began as the i-th neuron.
    """
    count = len(model.tau)
    generator = torch.Generator().manual_seed(seed)
    noise = sigma * torch.randn(1, steps, count, generator=generator)
    potentials, _ = model.run(torch.zeros(1, steps, model.inputs.shape[1]), noise)
    decay = torch.exp(-1 / model.tau).double()
    into = (1 - decay)[:, None] * model.coupling * (model.weight * model.mask).double()
    basis, total = torch.eye(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for number, v in enumerate(potentials[0].double(), 1):
        basis = decay[:, None] * basis + into @ (softness(v)[:, None] * basis)
        if number % every == 0 or number == steps:
            basis, upper = torch.linalg.qr(basis)
            total += upper.diagonal().abs().clamp_min(1e-300).log()
    return (total / steps).numpy()


def harmonic_means(on: NDArray[np.bool_], values: Array) -> Array:
    """Return for each pair (i, j) the harmonic mean of values over the neighbours of i or j; `on` is symmetric.

    Pairs without a neighbour get 1.
    """
    near = on.astype(np.float64)
    inverse = near / np.maximum(values, 1e-12)
    counts = near.sum(1)
    sums = inverse.sum(1)
    union = counts[:, None] + counts - near @ near.T
    whole = sums[:, None] + sums - inverse @ near.T
    found: Array = np.where(union > 0, union / np.where(union > 0, whole, 1.0), 1.0)
    return found


def scores(weight: Array, c: Array, lyapunov: Array) -> Array:
    """Return L_ij |W_ij| (C_ii + C_jj -+ 2 C_ij), minus for excitation, plus for inhibition; 0 without an edge.

    Edges get at least a hundredth of the mean, so that none is lost for sure.
    """
    on = weight != 0
    means = harmonic_means(on | on.T, np.abs(lyapunov))
    noise = np.diag(c)[:, None] + np.diag(c) - 2 * np.sign(weight) * c
    raw = means * np.abs(weight) * np.maximum(noise, 0)
    least = 0.01 * raw[on].mean() if on.any() else 0.0
    found: Array = np.where(on, np.maximum(raw, max(least, 1e-30)), 0.0)
    return found


def chances(score: Array, count: float) -> Array:
    """Return min(1, K score) with K such that they add up to `count` (or to all that there are)."""
    positive = score[score > 0]
    if count >= len(positive):
        return (score > 0).astype(np.float64)
    low, high = 0.0, 1.0 / float(positive.min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * positive).sum() < count else (low, middle)
    found: Array = np.minimum(1, high * score)
    return found


def sampled(weight: Array, chance: Array, seed: int) -> Array:
    """Return W with each entry kept by its chance and divided by it: W in expectation."""
    kept = np.random.default_rng(seed).random(weight.shape) < chance
    found: Array = np.where(kept, weight / np.where(chance > 0, chance, 1.0), 0.0)
    return found


def central(weight: Array, count: int) -> NDArray[np.int64]:
    """Return the `count` neurons of the largest betweenness centrality, rising; ties go to the strongest."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(weight)))
    graph.add_edges_from((int(j), int(i)) for i, j in zip(*np.nonzero(weight), strict=True))
    centrality = networkx.betweenness_centrality(graph)
    strength = np.abs(weight).sum(0) + np.abs(weight).sum(1)
    order = sorted(centrality, key=lambda n: (-centrality[n], -strength[n], n))
    return np.array(sorted(order[:count]), dtype=np.int64)


def participation(weight: Array, leading: int = 5) -> float:
    """Return the mean sum |u|^4 / (sum |u|^2)^2 of the leading eigenvectors u, from 1/N (spread out) to 1."""
    values, vectors = np.linalg.eig(weight)
    first = np.abs(vectors[:, np.argsort(-np.abs(values), kind="stable")[:leading]])
    return float(((first**4).sum(0) / (first**2).sum(0) ** 2).mean())


def delocalised(
    weight: Array, inhibits: NDArray[np.bool_], target: float, seed: int, rounds: int = 20
) -> Array:
    """Add weak random edges between weakly coupled neurons until `participation` is at most the target.

    A tenth of the mean weight each, N / 4 edges a round; stops after `rounds`.  `inhibits` (N,) gives their signs.
    """
    chance, found, size = np.random.default_rng(seed), weight.copy(), len(weight)
    on = np.abs(weight[weight != 0])
    weak = 0.1 * (float(on.mean()) if len(on) else 1 / math.sqrt(size))
    for _ in range(rounds):
        if participation(found) <= target:
            break
        strength = np.abs(found).sum(0) + np.abs(found).sum(1)
        odds = 1 / (strength + strength.mean() + 1e-12)
        pairs = chance.choice(size, (math.ceil(size / 4), 2), p=odds / odds.sum())
        for i, j in pairs:
            if i != j and found[i, j] == 0:
                found[i, j] = -weak if inhibits[j] else weak
    return found


def bayesian(objective: Callable[[Array], float], start: Array, budget: int, seed: int) -> Array:
    """Return the best of `budget` points of [-1, 1]^d: a Gaussian process and the largest expected improvement.

    Kernel of length 0.5 on standardised values; `start` comes first, then two random points.
    """
    from scipy.stats import norm

    chance = np.random.default_rng(seed)
    points, values = [start], [objective(start)]
    while len(points) < budget:
        new = chance.uniform(-1, 1, (200, len(start)))
        if len(points) < 3:
            points.append(new[0])
        else:
            x, y = np.array(points), np.array(values)
            scale = y.std() + 1e-12
            y = (y - y.mean()) / scale
            gram = _kernel(x, x) + 1e-4 * np.eye(len(x))
            cross = _kernel(new, x)
            mean = cross @ np.linalg.solve(gram, y)
            spread = np.sqrt(np.maximum(1 - (cross * np.linalg.solve(gram, cross.T).T).sum(1), 1e-12))
            z = (mean - y.max()) / spread
            points.append(new[int((spread * (z * norm.cdf(z) + norm.pdf(z))).argmax())])
        values.append(objective(points[-1]))
    return points[int(np.argmax(values))]


def _kernel(a: Array, b: Array) -> Array:
    found: Array = np.exp(-((a[:, None] - b) ** 2).sum(2) / (2 * 0.5**2))
    return found


def similarity(found: Array, wanted: Array, levels: int = 20) -> float:
    """Return minus the mean difference of two spectra's quantiles and the size of the first one's largest value."""
    at = np.linspace(0, 1, levels)
    return float(-np.abs(np.quantile(found, at) - np.quantile(wanted, at)).mean() - abs(found.max()))


def largest(model: HRSNN, seed: int = 0) -> float:
    """Return the largest local Lyapunov exponent."""
    return float(exponents(model, seed=seed).max())


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as float64 numbers."""
    return tensor.detach().double().cpu().numpy()  # type: ignore[no-any-return]

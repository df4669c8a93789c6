"""The density of a symmetric operator's eigenvalues, by stochastic Lanczos quadrature.

Lanczos from a random unit vector gives a Gauss quadrature of the spectrum as that vector sees it; the mean over
vectors of random signs sees every eigenvalue alike (Ghorbani et al., 2019, Section 3.1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.spectra.operator import Operator, finite, signs
from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Density:
    """A spectrum as points with weights: `nodes` (n,) rising and `weights` (n,) that sum to 1, float64.

    `size` is the number of eigenvalues that the density is of.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def moment(self, power: int) -> float:
        """Return the mean of eigenvalue^power; up to twice the Lanczos steps, exact but for the random vectors."""
        return float((self.weights * self.nodes**power).sum())

    def share(self, low: float, high: float) -> float:
        """Return the share of eigenvalues in [low, high]."""
        return float(self.weights[(self.nodes >= low) & (self.nodes <= high)].sum())

    def on(self, grid: Tensor, width: float | None = None) -> Tensor:
        """Return the density at the points `grid` (m,), each node a normal curve of deviation `width`.

        By default the width is a hundredth of the range of the nodes.
        """
        span = float(self.nodes[-1] - self.nodes[0])
        width = width or max(span / 100, 1e-12 * max(1.0, float(self.nodes.abs().max())))
        apart = (grid.double()[:, None] - self.nodes) / width
        return torch.exp(-apart.square() / 2) @ self.weights / (width * math.sqrt(2 * math.pi))


def spectral_density(operator: Operator, *, probes: int = 8, steps: int = 60, seed: int = 0) -> Density:
    """Return the density of the eigenvalues of `operator` from `probes` random vectors of `steps` products each.

    `steps` vectors are held at a time.
    """
    if probes < 1 or steps < 1:
        raise WorkingPapersError(f"a density needs at least 1 probe and 1 step; got {probes} and {steps}")
    generator = torch.Generator().manual_seed(seed)
    pairs = [_quadrature(operator, min(steps, operator.size), generator) for _ in range(probes)]
    nodes, weights = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    order = nodes.argsort()
    return Density(nodes[order], weights[order] / probes, operator.size)


def _quadrature(operator: Operator, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the Gauss quadrature that one random vector gives."""
    v = signs(operator, generator) / math.sqrt(operator.size)
    vectors = torch.zeros(steps, operator.size, dtype=v.dtype, device=v.device)
    diagonal, beside = [], []
    largest = 0.0
    for j in range(steps):
        vectors[j] = v
        w = finite(operator @ v)
        diagonal.append(float(v.double() @ w.double()))
        for _ in range(2):
            w = w - (vectors[: j + 1] @ w) @ vectors[: j + 1]
        length = float(w.double().norm())
        largest = max(largest, abs(diagonal[-1]), length)
        if length <= largest * 100 * torch.finfo(v.dtype).eps:
            break  # the vector lies in an invariant space: the quadrature is complete
        beside.append(length)
        v = w / length
    size = len(diagonal)
    off = torch.tensor(beside[: size - 1], dtype=torch.float64)
    matrix = (
        torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    )
    values, rotation = torch.linalg.eigh(matrix)
    return values, rotation[0].square()

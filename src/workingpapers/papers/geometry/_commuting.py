"""Which matrices a pointwise activation commutes with, found from its values alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.errors import WorkingPapersError

Activation = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]

CLOSE = 1e-9  # of values, beside the largest
GRID = torch.linspace(-4, 4, 34, dtype=torch.float64)  # without 0

FAMILIES = {
    "all": "every matrix",
    "row sums one": "every matrix whose rows sum to 1",
    "permutation": "one entry in a row, 1",
    "signed permutation": "one entry in a row, 1 or -1",
    "scaled permutation": "one entry in a row, positive",
}


def values(act: Activation, x: Array | Tensor) -> Tensor:
    """Return act(x) in float64, elementwise."""
    with torch.no_grad():
        found = act(torch.as_tensor(x, dtype=torch.float64))
    if not torch.isfinite(found).all():
        raise WorkingPapersError(
            "an activation with values that are not finite commutes with no class of matrices"
        )
    return found.double()


@dataclass(frozen=True)
class Commuting:
    """The matrices M with act(M x) = M act(x) for all x: a family of `FAMILIES`, and whether rows may be 0."""

    family: str
    zero_rows: bool

    @property
    def signs(self) -> bool:
        """Whether -1 is among the entries of monomial matrices."""
        return self.family == "signed permutation"

    def contains(self, matrices: Array, tolerance: float = CLOSE) -> bool:
        """Tell whether all matrices (..., rows, columns) belong to it, to a tolerance of their entries."""
        m = np.asarray(matrices, np.float64)
        if self.family == "all":
            return True
        if self.family == "row sums one":
            return bool((np.abs(m.sum(-1) - 1) <= tolerance).all())
        entries = np.abs(m) > tolerance
        alone = np.where(entries, m, 0).sum(-1)  # the entry, where it is the only one
        fits = {
            "permutation": np.abs(alone - 1) <= tolerance,
            "signed permutation": np.abs(np.abs(alone) - 1) <= tolerance,
            "scaled permutation": alone > tolerance,
        }[self.family]
        count = entries.sum(-1)
        return bool((((count == 1) & fits) | ((count == 0) & self.zero_rows)).all())


def commuting_class(act: Activation) -> Commuting:
    """Find the matrices that a continuous activation commutes with, from its values on [-12, 12].

    For f = act - act(0), a row m of such a matrix has f(m_1 x_1 + ...) = m_1 f(x_1) + ...; so either f is additive,
    hence linear, or there is one entry c, with f(c x) = c f(x).  Where act(0) is not 0, rows also sum to 1.  The
    c form a closed group: 1 alone, signs, all positive numbers (tried by 2 and 3, whose products are dense in
    them), or powers of one number, which are not looked for.  Signs and positive numbers together: linear again.
    """
    origin = values(act, torch.zeros(1))
    f = values(act, GRID) - origin
    scale = CLOSE * max(1.0, float(f.abs().max()), float(origin.abs()))

    def holds(found: Tensor, wanted: Tensor) -> bool:
        return float((found - origin - wanted).abs().max()) <= scale

    zero = float(origin.abs()) <= scale
    if holds(values(act, GRID[:, None] + GRID), f[:, None] + f):
        return Commuting("all" if zero else "row sums one", zero)
    if not zero:
        return Commuting("permutation", False)
    if holds(values(act, -GRID), -f):
        return Commuting("signed permutation", True)
    if all(holds(values(act, c * GRID), c * f) for c in (2, 3, 1 / 3)):
        return Commuting("scaled permutation", True)
    return Commuting("permutation", True)


def commutes(act: Activation, matrix: Array, points: int = 200, seed: int = 0) -> bool:
    """Tell whether act(M x) = M act(x) at random points, whatever the class, for one matrix (rows, columns)."""
    m = torch.as_tensor(np.asarray(matrix, np.float64))
    x = 2 * torch.randn(
        points, m.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    one, other = values(act, x @ m.T), values(act, x) @ m.T
    return float((one - other).abs().max()) <= CLOSE * max(1.0, float(other.abs().max()))

"""The eigenvalues at both ends of a symmetric operator, by Lanczos with full reorthogonalisation.

The projection onto the basis is kept as a full matrix, so that a restart is a change of basis to the best Ritz
vectors (thick restart; Wu & Simon, 2000).  A Ritz value is within its residual of an eigenvalue.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.spectra.operator import Operator, finite
from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Extremes:
    """Eigenvalues at the ends of a spectrum.

    Attributes:
        top: largest eigenvalues, falling, float64 on the CPU.
        bottom: smallest eigenvalues, rising.
        vectors: unit eigenvectors (size, top + bottom), those of `top` first, in the operator's dtype.
        residuals: |A v - value v| of each, in the same order; each value is that near to an eigenvalue.
        products: how often the operator was applied.
        converged: whether all residuals came below the tolerance.
    """

    top: Tensor
    bottom: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def extremes(
    operator: Operator,
    top: int = 1,
    bottom: int = 0,
    *,
    tolerance: float = 1e-3,
    most: int = 300,
    basis: int | None = None,
    seed: int = 0,
) -> Extremes:
    """Return the `top` largest and `bottom` smallest eigenvalues of `operator` with their vectors.

    Args:
        tolerance: residual relative to the size of each value at which to stop.  The error of an eigenvalue that
            stands apart is about the square of that.
        most: products at most; what was found by then is returned with `converged=False`.
        basis: vectors held at a time; by default 40, or as many as fit into one GiB, but at least 12.
        seed: decides the start vector.

    Raises:
        WorkingPapersError: where more values are asked for than the operator has, or products are not finite.
    """
    wanted, n = top + bottom, operator.size
    if top < 0 or bottom < 0 or not 1 <= wanted <= n:
        raise WorkingPapersError(f"between 1 and {n} eigenvalues can be asked for; got {top} and {bottom}")
    if basis is None:
        basis = min(40, max(12, 2**30 // (n * operator.dtype.itemsize)))
    basis = min(max(basis, 2 * wanted + 8), n)
    space = _Space(operator, basis, seed)
    while True:
        space.grow()
        if space.size < wanted:
            continue
        values, rotation = torch.linalg.eigh(space.projection())
        chosen = [*range(space.size - 1, space.size - 1 - top, -1), *range(bottom)]
        residuals = (space.coupling * rotation[-1]).abs()
        floor = values.abs().max() * (1e-9 if operator.dtype == torch.float64 else 3e-6)
        done = bool((residuals[chosen] <= (tolerance * values[chosen].abs()).clamp(min=float(floor))).all())
        exhausted = space.size == n or space.coupling <= 1e-3 * floor
        if done or exhausted or space.products >= most:
            vectors = space.vectors[: space.size].T @ rotation[:, chosen].to(space.vectors)
            return Extremes(
                values[chosen[:top]],
                values[chosen[top:]],
                vectors,
                residuals[chosen],
                space.products,
                done or exhausted,
            )
        if space.size == basis:
            kept = min(wanted + (basis - wanted) // 2, basis - 2)
            share = max(1, min(kept - 1, round(kept * top / wanted))) if bottom and top else kept * (top > 0)
            space.restart(values, rotation, [*range(basis - share, basis), *range(kept - share)])


class _Space:
    """An orthonormal basis that grows by Krylov's next vector, and the operator's projection onto it."""

    def __init__(self, operator: Operator, basis: int, seed: int) -> None:
        self.operator = operator
        options = {"dtype": operator.dtype, "device": operator.device}
        self.vectors = torch.zeros(basis + 1, operator.size, **options)  # type: ignore[call-overload]
        self.matrix = torch.zeros(basis, basis, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(operator.size, generator=generator, dtype=torch.float32).to(self.vectors)
        self.vectors[0] = start / start.norm()
        self.size, self.products, self.coupling = 0, 0, 0.0

    def projection(self) -> Tensor:
        """Return the operator's matrix (size, size) in the basis."""
        return self.matrix[: self.size, : self.size]

    def grow(self) -> None:
        """Take the waiting vector into the basis and make the next one wait."""
        j = self.size
        own = self.vectors[: j + 1]
        w = finite(self.operator @ own[j])
        self.products += 1
        column = torch.zeros(j + 1, dtype=torch.float64)
        for _ in range(2):  # once leaves what rounding lost
            parts = own @ w
            w = w - parts @ own
            column += parts.double().cpu()
        self.matrix[: j + 1, j] = self.matrix[j, : j + 1] = column
        self.size, self.coupling = j + 1, float(w.double().norm())
        self.vectors[j + 1] = w / self.coupling if self.coupling else 0.0

    def restart(self, values: Tensor, rotation: Tensor, kept: list[int]) -> None:
        """Shrink the basis to the Ritz vectors `kept`; the waiting vector goes on waiting."""
        count, size = len(kept), self.size
        self.vectors[:count] = rotation[:, kept].T.to(self.vectors) @ self.vectors[:size]
        self.vectors[count] = self.vectors[size].clone()
        self.matrix.zero_()
        self.matrix[range(count), range(count)] = values[kept]
        self.size = count

"""Symmetric linear maps that are known by what they do to a vector."""

from collections.abc import Callable

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError


class Operator:
    """A symmetric linear map of vectors (size,) onto such; `operator @ v` applies it.

    Args:
        apply: the map, from a vector of the operator's dtype on its device to one like it.
        size: the length of the vectors.
        dtype, device: of the vectors that `apply` takes; others are converted on the way in.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        size: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | None = None,
    ) -> None:
        self.apply, self.size, self.dtype = apply, size, dtype
        self.device = device or torch.device("cpu")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, dtype={self.dtype}, device={self.device})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the map of a vector (size,), or of each column of (size, k)."""
        if v.shape[:1] != (self.size,) or v.ndim > 2:
            raise WorkingPapersError(
                f"the operator is of vectors ({self.size},) or columns ({self.size}, k); got {tuple(v.shape)}"
            )
        v = v.to(self.device, self.dtype)
        return self.apply(v) if v.ndim == 1 else torch.stack([self.apply(c) for c in v.unbind(1)], 1)

    def dense(self) -> Tensor:
        """Return the matrix (size, size), made symmetric; only for small operators."""
        matrix = self @ torch.eye(self.size, dtype=self.dtype, device=self.device)
        return (matrix + matrix.T) / 2


def of_matrix(matrix: Tensor) -> Operator:
    """Return the operator of a symmetric matrix (n, n)."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise WorkingPapersError(f"an operator is made of a square matrix; got {tuple(matrix.shape)}")
    return Operator(lambda v: matrix @ v, len(matrix), matrix.dtype, matrix.device)


def signs(operator: Operator, generator: torch.Generator) -> Tensor:
    """Return a vector (size,) of random signs, drawn on the CPU so that every device sees the same."""
    drawn = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(operator.device, operator.dtype)


def finite(v: Tensor) -> Tensor:
    """Return `v`, or raise one sentence where it holds NaN or infinities."""
    if not torch.isfinite(v).all():
        raise WorkingPapersError(
            "the curvature is not finite here: the loss, its gradient or a weight overflows"
        )
    return v

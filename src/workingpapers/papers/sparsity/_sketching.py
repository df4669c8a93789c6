"""Sketching sparse matrices: Y = A W B^T with random sparse 0/1 matrices A and B, undone by a linear program.

A matrix with at most j non-zeros in each row and column ("distributed sparse") is, with high probability, the one
matrix of least absolute sum among those with the same sketch of about c sqrt(j p) log p rows and columns
(Dasarathy, Shah, Bhaskar & Nowak, "Sketching Sparse Matrices, Covariances, and Graphs via Tensor Products", 2015).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import WorkingPapersError

Array = NDArray[np.float64]


def spread(matrix: Array) -> int:
    """Return j, the largest number of non-zeros in a row or a column."""
    on = matrix != 0
    return int(max(on.sum(0).max(), on.sum(1).max()))


def sketch_size(p: int, j: int, c: float = 1.0) -> int:
    """Return m = ceil(c sqrt(j p) log p) for p rows (or columns) with at most j non-zeros, never more than p."""
    return min(p, math.ceil(c * math.sqrt(j * p) * math.log(max(p, 2))))


def ones_matrix(m: int, p: int, ones: int, seed: int) -> Array:
    """Return an m x p matrix with `ones` ones in each column, at random places."""
    chance = np.random.default_rng(seed)
    matrix = np.zeros((m, p))
    for column in range(p):
        matrix[chance.choice(m, min(ones, m), replace=False), column] = 1
    return matrix


@dataclass(frozen=True)
class Sketch:
    """A sketch of p x k matrices by m rows and n columns: W -> A W B^T, with A (m, p) and B (n, k)."""

    a: Array
    b: Array

    @classmethod
    def draw(
        cls, shape: tuple[int, int], size: tuple[int, int], seed: int = 0, ones: int | None = None
    ) -> "Sketch":
        """Draw A and B for matrices of `shape` and sketches of `size`.

        `ones` in each column of A and of B; by default ceil(log p) of p rows, and so for the columns.
        """
        counts = [ones or math.ceil(math.log(max(p, 2))) for p in shape]
        seeds = (2 * seed, 2 * seed + 1)
        a, b = (ones_matrix(*args) for args in zip(size, shape, counts, seeds, strict=True))
        return cls(a, b)

    def __call__(self, matrix: Array) -> Array:
        """Return the sketch (m, n) of a matrix (p, k)."""
        found: Array = self.a @ matrix @ self.b.T
        return found

    def decode(self, y: Array) -> Array:
        """Return the matrix of least absolute sum whose sketch is `y`: a linear program, for small layers.

        Raises:
            WorkingPapersError: where no matrix has this sketch.
        """
        from scipy import sparse
        from scipy.optimize import linprog

        rows = sparse.kron(sparse.csr_matrix(self.a), sparse.csr_matrix(self.b), format="csc")
        size = rows.shape[1]
        both = sparse.hstack([rows, -rows], format="csc")  # W = U - V with U, V >= 0
        found = linprog(np.ones(2 * size), A_eq=both, b_eq=y.ravel(), bounds=(0, None), method="highs")
        if found.x is None:
            raise WorkingPapersError(f"no matrix has this sketch: {found.message}")
        matrix: Array = (found.x[:size] - found.x[size:]).reshape(self.a.shape[1], self.b.shape[1])
        return matrix


def distributed_sparse(p: int, j: int, seed: int) -> Array:
    """Return a random p x p matrix with exactly j normal non-zeros in each row and column."""
    chance = np.random.default_rng(seed)
    on = np.zeros((p, p), bool)
    for _ in range(j):
        order = chance.permutation(p)
        while on[np.arange(p), order].any():
            order = chance.permutation(p)
        on[np.arange(p), order] = True
    drawn: Array = np.where(on, chance.standard_normal((p, p)), 0.0)
    return drawn


def same(found: Array, matrix: Array, tolerance: float = 1e-6) -> bool:
    """Tell whether a decoded matrix has the support and, within the tolerance, the values of the original."""
    return bool(
        np.array_equal(np.abs(found) > tolerance, np.abs(matrix) > tolerance)
        and np.abs(found - matrix).max() <= tolerance
    )

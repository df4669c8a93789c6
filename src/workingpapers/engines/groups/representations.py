"""Representations by the matrices of generators: of all elements, induced ones, and the maps between them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workingpapers.engines.groups.finite import FiniteGroup, Matrices, Subgroup, coset_of, cosets
from workingpapers.errors import WorkingPapersError

TOLERANCE = 1e-9  # singular values below this share of the largest count as 0


def permutation_matrices(permutations: Sequence[Sequence[int]]) -> Matrices:
    """Return the matrices (k, n, n) that take entry i of a vector to entry p[i], for each permutation p."""
    found = []
    for p in permutations:
        if sorted(p) != list(range(len(p))):
            raise WorkingPapersError(f"a permutation has each number from 0 once; got {list(p)}")
        found.append(np.eye(len(p))[:, list(p)])
    return np.stack(found)


def cyclic(n: int) -> Matrices:
    """Return the shift of n places by one, as the generator (1, n, n) of the cyclic group."""
    return permutation_matrices([[(i + 1) % n for i in range(n)]])


def dihedral(n: int) -> Matrices:
    """Return shift and mirror image of the corners of a regular polygon, generators (2, n, n) of 2 n elements."""
    return permutation_matrices([[(i + 1) % n for i in range(n)], [-i % n for i in range(n)]])


def symmetric(n: int) -> Matrices:
    """Return the exchange of the first two of n places and the shift by one, (2, n, n), of all n! orders."""
    swap = [1, 0, *range(2, n)] if n > 1 else [0]
    return permutation_matrices([swap, [(i + 1) % n for i in range(n)]])


def extend(group: FiniteGroup, generators: Matrices) -> Matrices:
    """Return the matrix of each element (N, d, d) from those of the group's generators (k, d, d).

    Raises:
        WorkingPapersError: where the matrices do not multiply as the group does.
    """
    gens = np.asarray(generators, np.float64)
    if gens.ndim != 3 or len(gens) != len(group.generators) or gens.shape[1] != gens.shape[2]:
        raise WorkingPapersError(
            f"a representation has a square matrix for each of the {len(group.generators)} generators; "
            f"got the shape {gens.shape}"
        )
    found = [np.eye(gens.shape[1])]
    for k, before in group.steps[1:]:
        found.append(gens[k] @ found[before])
    every = np.stack(found)
    for gen, place in zip(gens, group.generators, strict=True):
        wanted = every[group.table[place]]
        if np.abs(gen @ every - wanted).max() > 1e-6 * max(1.0, float(np.abs(every).max())):
            raise WorkingPapersError(
                "the matrices are no representation: they do not multiply as the group does"
            )
    return every


def character(matrices: Matrices) -> NDArray[np.float64]:
    """Return the trace of each matrix (N, d, d)."""
    found: NDArray[np.float64] = np.trace(matrices, axis1=1, axis2=2)
    return found


def induced(group: FiniteGroup, subgroup: Subgroup, kernel: Subgroup | None = None) -> Matrices:
    """Return how each element moves the cosets of H, (N, M, M): permutations, or signed ones.

    `kernel` is a subgroup of index 2 in H; elements of H outside it then change the sign of the coset of 1.
    """
    first, moved = coset_of(group, subgroup)[0], cosets(group, subgroup)
    every, here = np.arange(group.order)[:, None], np.arange(len(first))
    # g t = t' h with t, t' of the cosets' own elements
    inner = group.table[group.inverse[first[moved]], group.table[:, first]]
    signs = np.ones(inner.shape) if kernel is None else np.where(np.isin(inner, kernel), 1.0, -1.0)
    found = np.zeros((group.order, len(first), len(first)))
    found[every, moved, here] = signs
    return found


def equivariant_basis(rho_in: Matrices, rho_out: Matrices) -> Matrices:
    """Return an orthonormal basis (r, w, v) of the linear maps A with rho_out(g) A = A rho_in(g).

    `rho_in` (k, v, v) and `rho_out` (k, w, w) are the matrices of the same generators, of a finite group or, which
    is the same equation, of a Lie algebra.  It is the null space of all equations, by one decomposition of
    (k v w, v w) numbers.
    """
    one, other = np.asarray(rho_in, np.float64), np.asarray(rho_out, np.float64)
    if one.ndim != 3 or other.ndim != 3 or len(one) != len(other):
        raise WorkingPapersError(
            f"both representations have a matrix for each generator; got the shapes {one.shape} and {other.shape}"
        )
    v, w = one.shape[1], other.shape[1]
    rows = [np.kron(b, np.eye(v)) - np.kron(np.eye(w), a.T) for a, b in zip(one, other, strict=True)]
    _, s, basis = np.linalg.svd(np.concatenate(rows))
    rank = int((s > TOLERANCE * max(1.0, float(s[0]))).sum())
    return basis[rank:].reshape(-1, w, v)


def fixed_vectors(rho: Matrices) -> NDArray[np.float64]:
    """Return an orthonormal basis (r, d) of the vectors that every generator (k, d, d) leaves as they are."""
    trivial = np.ones((len(rho), 1, 1))
    return equivariant_basis(trivial, rho)[:, :, 0]

"""Equivariant architectures on blocks R[G/H]: what their labels are refined to, and random networks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray

from workingpapers.engines.groups import (
    FiniteGroup,
    Subgroup,
    conjugate,
    coset_of,
    cosets,
    cyclic,
    dihedral,
    double_cosets,
    fixed_vectors,
    generate,
    symmetric,
)
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry._commuting import Activation

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

DECIMALS = 8  # to which values of linear functionals are compared


@dataclass(frozen=True)
class Architecture:
    """Hidden layers of blocks R[G/H], each of any width, and an invariant sum at the end.

    `moves` (N, d, d) is the group on the inputs.  `first` has for each block the functionals (cosets, r, d) that a
    first layer can combine, `later` for each block the pairs (block before, its cosets (cosets, size)) that a later
    layer can sum over, one for each orbit of H.
    """

    name: str
    moves: Array
    first: tuple[Array, ...]
    later: tuple[tuple[tuple[int, Indices], ...], ...]


def architecture(
    group: FiniteGroup,
    moves: Array,
    blocks: Sequence[Subgroup],
    reach: Sequence[int] | None = None,
    name: str = "blocks",
) -> Architecture:
    """Build an architecture with every equivariant layer, or with filters of limited reach.

    Args:
        group: a finite group.
        moves: the matrix of each element on the inputs (N, d, d).
        blocks: the subgroups H of the blocks in every hidden layer.
        reach: inputs that the filter at the identity sees, where the group moves as many inputs as it has elements
            simply; by default all.  It holds between inputs and blocks with trivial H.
    """
    if not blocks:
        raise WorkingPapersError("an architecture has at least one block")
    if reach is not None and moves.shape[0] != moves.shape[1]:
        raise WorkingPapersError("only filters of a group with as many elements as inputs have a reach")
    seen = None if reach is None else sorted(set(reach))
    first = tuple(_functionals(group, moves, h, seen if len(h) == 1 else None) for h in blocks)
    later = []
    for h in blocks:
        sums: list[tuple[int, Indices]] = []
        for place, before in enumerate(blocks):
            limited = seen is not None and len(h) == len(before) == 1
            for orbit in double_cosets(group, h, before):
                if limited and int(moves[coset_of(group, before)[0][orbit[0]], :, 0].argmax()) not in (
                    seen or []
                ):
                    continue
                sums.append((place, cosets(group, before)[coset_of(group, h)[0]][:, list(orbit)]))
        later.append(tuple(sums))
    return Architecture(name, moves, first, tuple(later))


def _functionals(group: FiniteGroup, moves: Array, h: Subgroup, seen: list[int] | None) -> Array:
    """Return a basis of the functionals that H leaves alone, moved to each coset: (cosets, r, d)."""
    inside = moves[list(h)]
    if np.isin(moves, (0.0, 1.0)).all():
        orbits = {tuple(np.flatnonzero(column)) for column in inside.sum(0).T}
        chosen = [o for o in sorted(orbits) if seen is None or set(o) <= set(seen)]
        basis = np.array([np.isin(np.arange(moves.shape[1]), o).astype(float) for o in chosen])
    else:
        basis = fixed_vectors(inside.transpose(0, 2, 1))
    if len(basis) == 0:
        basis = np.zeros((1, moves.shape[1]))  # nothing but the bias
    there = moves[group.inverse[coset_of(group, h)[0]]]
    return np.asarray(basis @ there)


def stabiliser(moves: Array, *places: int) -> Subgroup:
    """Return the elements that leave each of the given coordinates where it is."""
    kept = np.all([moves[:, p, p] == 1 for p in places], axis=0)
    return tuple(int(i) for i in np.flatnonzero(kept))


def convolutional(n: int, width: int, invariant: bool = False) -> Architecture:
    """Strings around a circle of n places, filters of `width`, with invariant channels beside them or not."""
    group, moves = generate(cyclic(n))
    whole = [tuple(range(n))] if invariant else []
    return architecture(group, moves, [(0,), *whole], range(width), f"convolutions of width {width}")


def sets(n: int) -> Architecture:
    """Sets of n numbers, one hidden number of each width for each element (Deep Sets)."""
    group, moves = generate(symmetric(n))
    return architecture(group, moves, [stabiliser(moves, 0)], name="sets")


def graphs(n: int) -> Architecture:
    """Matrices (n, n) as n^2 numbers, with hidden matrices (invariant graph networks of order 2)."""
    group, moves = generate(symmetric(n))
    pairs = np.stack([np.kron(m, m) for m in moves])
    blocks = [stabiliser(moves, 0, 1), stabiliser(moves, 0)]
    return architecture(group, pairs, blocks, name="graphs")


def polygons(n: int, corners: bool = False) -> Architecture:
    """Numbers on a polygon's corners, up to turns and mirror images; hidden layers on all moves, or on corners."""
    group, moves = generate(dihedral(n))
    return architecture(group, moves, [stabiliser(moves, 0) if corners else (0,)], name="polygons")


def separates_as_much(group: FiniteGroup, one: Subgroup, other: Subgroup) -> bool:
    """Tell whether `one` lies in a conjugate of `other`, so that R[G/one] separates all that R[G/other] does."""
    return any(set(one) <= set(conjugate(group, other, g)) for g in range(group.order))


def _numbered(rows: NDArray[np.number]) -> Indices:
    """Return a number for each row, the same for equal ones, counted in the order in which they come."""
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    found: Indices = np.argsort(np.argsort(first))[number.reshape(-1)]
    return found


def _pooled(labels: list[Indices]) -> Indices:
    """Return the class of each input: its multiset of labels in every block."""
    return _numbered(np.concatenate([np.sort(block, axis=1) for block in labels], axis=1))


def refine(arch: Architecture, x: Array, depth: int | None = None) -> tuple[list[Indices], int]:
    """Return the classes of inputs (N, d) that networks of 1, 2, ... hidden layers cannot part, and the threshold.

    Each is (N,), for non-polynomial activations and any width.  A label of a coset is at first the value of every
    functional there, then the multisets of labels in every orbit that a layer sums over; classes are multisets of
    labels.  The threshold is the first depth from which classes stay; `depth` goes on to that many layers at least.
    """
    labels = []
    for functionals in arch.first:
        seen = np.round(np.einsum("crd,nd->ncr", functionals, x), DECIMALS) + 0.0
        labels.append(_numbered(seen.reshape(-1, seen.shape[2])).reshape(seen.shape[:2]))
    found = [_pooled(labels)]
    while True:
        new = []
        for sums in arch.later:
            parts = np.concatenate([np.sort(labels[b][:, places], axis=2) for b, places in sums], axis=2)
            new.append(_numbered(parts.reshape(-1, parts.shape[2])).reshape(parts.shape[:2]))
        stays = all(
            np.array_equal(_numbered(a.reshape(-1, 1)), b.reshape(-1))
            for a, b in zip(labels, new, strict=True)
        )
        if stays and len(found) >= (depth or 1):
            break
        labels = new
        found.append(_pooled(labels))
    threshold = next(i for i, classes in enumerate(found, 1) if np.array_equal(classes, found[-1]))
    return found, threshold


def moment_classes(arch: Architecture, x: Array, degree: int) -> Indices:
    """Return the classes (N,) of inputs for one hidden layer with a polynomial activation of a degree.

    A sum over cosets of (w f + b)^degree, f the functionals there, sees the moments of f up to that degree.
    """
    found = []
    for functionals in arch.first:
        f = np.einsum("crd,nd->ncr", functionals, x)
        for order in range(1, degree + 1):
            every = combinations_with_replacement(range(f.shape[2]), order)
            found += [f[:, :, list(chosen)].prod(2).sum(1) for chosen in every]
    return _numbered(np.round(np.stack(found, 1), DECIMALS - 2) + 0.0)


def orbit_classes(arch: Architecture, x: Array) -> Indices:
    """Return the orbit (N,) of each input under the group: the most that an invariant function separates."""
    every = np.round(np.einsum("gij,nj->ngi", arch.moves, x), DECIMALS) + 0.0
    least = np.stack([rows[np.lexsort(rows.T[::-1])[0]] for rows in every])
    return _numbered(least)


def random_outputs(
    arch: Architecture,
    x: Array,
    act: Activation,
    depth: int = 1,
    width: int = 8,
    nets: int = 50,
    seed: int = 0,
) -> torch.Tensor:
    """Return the outputs (nets, N) of random networks in float64, of Gaussian weights and means over orbits."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    seen = [torch.from_numpy(np.einsum("crd,nd->ncr", f, x)) for f in arch.first]
    seen = [f / f.square().mean().sqrt().clamp_min(1e-12) for f in seen]
    outputs = []
    for _ in range(nets):
        h = [act(f @ drawn(f.shape[2], width) / f.shape[2] ** 0.5 + drawn(width)) for f in seen]
        for _ in range(depth - 1):
            new = []
            for sums in arch.later:
                scale = (width * len(sums)) ** -0.5
                total = sum(h[b][:, torch.from_numpy(p)].mean(2) @ drawn(width, width) for b, p in sums)
                new.append(act(scale * total + drawn(width)))
            h = new
        outputs.append(torch.stack([block.mean(1) @ drawn(width) for block in h]).sum(0))
    return torch.stack(outputs)


def separated(outputs: torch.Tensor, pairs: Indices) -> NDArray[np.bool_]:
    """Tell of pairs (P, 2) whether some network's outputs (nets, N) differ by 1e-8 of the largest, or of 1."""
    found = np.zeros(len(pairs), bool)
    for one in outputs.numpy():
        found |= np.abs(one[pairs[:, 0]] - one[pairs[:, 1]]) > 1e-8 * max(1.0, float(np.abs(one).max()))
    return found


def separated_pairs(classes: Indices) -> int:
    """Return how many pairs of inputs lie in different classes (N,)."""
    sizes = np.bincount(classes)
    n = len(classes)
    return n * (n - 1) // 2 - int((sizes * (sizes - 1) // 2).sum())

"""Coordinates in which a representation is monomial, so that a pointwise activation commutes with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from workingpapers.engines.groups import (
    FiniteGroup,
    Subgroup,
    character,
    conjugate,
    double_cosets,
    equivariant_basis,
    fixed_vectors,
    generate,
    index_two,
    induced,
    subgroup_classes,
    symmetric,
)
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry._commuting import CLOSE, Activation, Array, Commuting, commuting_class

Generators = Array | Tensor | Mapping[str, Any]


def stacked(generators: Generators) -> Array:
    """Return the matrices of generators (k, d, d), given so or by name, in float64."""
    found = list(generators.values()) if isinstance(generators, Mapping) else generators
    matrices = np.asarray([np.asarray(m, np.float64) for m in found])
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or len(matrices) == 0:
        raise WorkingPapersError(
            f"a representation is given by one square matrix or more (k, d, d); got the shape {matrices.shape}"
        )
    return matrices


@dataclass(frozen=True)
class Verdict:
    """Whether coordinates exist in which act(rho(g) x) = rho(g) act(x).

    `here` says that the given ones are such; `basis` (d, d), or None, has such coordinates' vectors as columns;
    `blocks` describes the parts of rho in them, and `order` is that of the group, 0 where it was not needed.
    """

    commuting: Commuting
    here: bool
    basis: Array | None
    blocks: tuple[str, ...]
    order: int

    @property
    def admissible(self) -> bool:
        """Whether there are such coordinates at all."""
        return self.basis is not None


def decide(rho: Generators, act: Activation, algebra: Generators | None = None, seed: int = 0) -> Verdict:
    """Search for coordinates in which an activation is equivariant.

    Args:
        rho: matrices of a finite group's generators (k, d, d), or of the components of a compact one.
        act: a continuous function of tensors, applied to each coordinate.
        algebra: matrices (l, d, d) of the Lie algebra of a compact group's identity component, if there is one.
        seed: decides which of the possible coordinates are found.

    A finite group is searched completely: the representation must have the character of a sum of representations
    induced from subgroups' trivial characters (permutations), or characters of signs for an odd activation.
    Positive scalings add nothing, as a finite group's can be scaled away.  A connected component can only move
    coordinates continuously, so it must not move them at all, unless the activation is affine.
    """
    gens, commuting = stacked(rho), commuting_class(act)
    d = gens.shape[1]
    fields = np.zeros((0, d, d)) if algebra is None else stacked(algebra)
    moved = bool((np.abs(fields) > CLOSE).any())
    if commuting.family in ("all", "row sums one"):
        basis = np.eye(d) if commuting.family == "all" else _ones_fixed(gens, fields)
        ones = np.ones(d)
        still = not moved or commuting.family == "all" or bool((np.abs(fields @ ones) <= CLOSE).all())
        here = still and commuting.contains(gens)
        return Verdict(commuting, here, np.eye(d) if here else basis, (), 0)
    if moved:
        return Verdict(commuting, False, None, (), 0)
    group, every = generate(gens)
    here = commuting.contains(every, tolerance=1e-7)
    chosen = _decompose(group, character(every), commuting.signs)
    if chosen is None:
        return Verdict(commuting, here, None, (), group.order)
    blocks = tuple(_described(group, *block) for block in chosen)
    if here:
        return Verdict(commuting, True, np.eye(d), blocks, group.order)
    target = _direct_sum([induced(group, *block)[group.generators] for block in chosen])
    return Verdict(commuting, False, _intertwiner(target, gens, seed), blocks, group.order)


def _ones_fixed(gens: Array, fields: Array) -> Array | None:
    """Return coordinates in which a vector that the group leaves alone is (1, ..., 1), or None."""
    d = gens.shape[1]
    equations = np.concatenate([gens - np.eye(d), fields]).reshape(-1, d)
    _, s, right = np.linalg.svd(equations)
    if len(s) == d and s[-1] > CLOSE * max(1.0, float(s[0])):
        return None
    vector = right[-1]
    # columns that sum to the vector, and are otherwise the unit vectors of a turned frame
    frame = np.linalg.qr(np.concatenate([vector[:, None], np.eye(d)], 1))[0][:, :d]
    frame[:, 0] = vector - frame[:, 1:].sum(1)
    return np.asarray(frame)


Block = tuple[Subgroup, Subgroup | None]


def _decompose(group: FiniteGroup, wanted: Array, signs: bool) -> list[Block] | None:
    """Return the fewest (subgroup, kernel) whose induced representations have the character, or None."""
    from scipy.optimize import LinearConstraint, milp

    candidates: dict[tuple[int, ...], Block] = {}
    for h in subgroup_classes(group):
        for kernel in (None, *(index_two(group, h) if signs else ())):
            key = tuple(int(v) for v in character(induced(group, h, kernel)).round())
            candidates.setdefault(key, (h, kernel))
    if np.abs(wanted - wanted.round()).max() > 1e-6:
        return None
    table = np.unique(np.concatenate([np.array(list(candidates)).T, wanted.round()[:, None]], 1), axis=0)
    found = milp(
        np.ones(len(candidates)),
        constraints=LinearConstraint(table[:, :-1], table[:, -1], table[:, -1]),
        integrality=np.ones(len(candidates)),
    )
    if found.x is None:
        return None
    counts = found.x.round().astype(int)
    return [block for block, n in zip(candidates.values(), counts, strict=True) for _ in range(n)]


def _described(group: FiniteGroup, subgroup: Subgroup, kernel: Subgroup | None) -> str:
    size = group.order // len(subgroup)
    what = "permutation" if kernel is None else "signed permutation"
    return f"{what} of {size}, stabiliser of order {len(subgroup)}"


def _direct_sum(parts: list[Array]) -> Array:
    size = sum(p.shape[1] for p in parts)
    found, at = np.zeros((len(parts[0]), size, size)), 0
    for part in parts:
        found[:, at : at + part.shape[1], at : at + part.shape[1]] = part
        at += part.shape[1]
    return found


def _intertwiner(target: Array, rho: Array, seed: int) -> Array:
    """Return the best conditioned of some random invertible P with rho P = P target."""
    maps, draw = equivariant_basis(target, rho), np.random.default_rng(seed)
    tried = [np.tensordot(draw.standard_normal(len(maps)), maps, 1) for _ in range(20)]
    best: Array = min(tried, key=np.linalg.cond)
    return best


@dataclass(frozen=True)
class HiddenSpace:
    """R[S_n / H]: |H|, how many cosets, and the equivariant linear maps to it from nodes, edges and itself.

    `fixing` is j where H leaves j of the n things alone and permutes the others freely, as in layers on tensors of
    order j; None for the spaces beyond those.
    """

    order: int
    size: int
    from_nodes: int
    from_edges: int
    from_itself: int
    fixing: int | None


def hidden_spaces(n: int) -> list[HiddenSpace]:
    """Return the permutation spaces that a ReLU network equivariant under S_n may have, for n up to 4 or so.

    Nodes are R^n, edges R^(n x n); the maps are counted by double cosets, and by Burnside for edges.
    """
    group, every = generate(symmetric(n))
    nodes = character(every)
    # the stabiliser of the first j things, for every j
    free = [
        tuple(int(g) for g in np.flatnonzero((every[:, :j, :j] == np.eye(j)).all((1, 2))))
        for j in range(n + 1)
    ]
    found = []
    for h in subgroup_classes(group):
        chi = character(induced(group, h))
        counts = [round(float((chi * other).mean())) for other in (nodes, nodes**2)]
        alike = {conjugate(group, h, g) for g in range(group.order)}
        fixing = next((j for j, one in enumerate(free) if one in alike), None)
        itself = len(double_cosets(group, h, h))
        found.append(HiddenSpace(len(h), group.order // len(h), counts[0], counts[1], itself, fixing))
    return found


def layer_sizes(rho_in: Generators, rho_out: Generators) -> tuple[int, int]:
    """Return how many free weights and biases an equivariant affine layer between two representations has."""
    one, other = stacked(rho_in), stacked(rho_out)
    return len(equivariant_basis(one, other)), len(fixed_vectors(other))

"""Finite groups and representations: orders, subgroups counted by others, Burnside, Schur, Frobenius, refusals."""

import math
from typing import Any

import numpy as np
import pytest

from workingpapers.engines.groups import (
    character,
    conjugate,
    cosets,
    cyclic,
    dihedral,
    double_cosets,
    equivariant_basis,
    extend,
    fixed_vectors,
    generate,
    index_two,
    induced,
    permutation_matrices,
    subgroup_classes,
    subgroups,
    symmetric,
)
from workingpapers.errors import WorkingPapersError


@pytest.mark.parametrize(
    ("generators", "order", "all_of_them", "classes"),
    [
        (cyclic(1), 1, 1, 1),
        (cyclic(12), 12, 6, 6),  # one for each divisor
        (dihedral(4), 8, 10, 8),
        (dihedral(5), 10, 8, 4),
        (symmetric(3), 6, 6, 4),
        (symmetric(4), 24, 30, 11),  # OEIS A005432, A000638
    ],
)
def test_orders_and_subgroups(generators: Any, order: int, all_of_them: int, classes: int) -> None:
    group, matrices = generate(generators)
    assert group.order == order
    assert len(subgroups(group)) == all_of_them
    assert len(subgroup_classes(group)) == classes
    for a in range(0, order, 3):
        for b in range(order):
            assert np.array_equal(matrices[a] @ matrices[b], matrices[group.table[a, b]])
    assert np.array_equal(group.table[np.arange(order), group.inverse], np.zeros(order))
    assert [matrices[g].tolist() for g in group.generators] == [g.tolist() for g in generators]


def test_subgroups_are_closed_and_all_of_lagrange() -> None:
    group, _ = generate(symmetric(4))
    for h in subgroups(group):
        assert set(group.table[np.ix_(h, h)].ravel()) == set(h)
        assert 24 % len(h) == 0
        assert len(conjugate(group, h, 5)) == len(h)
    assert len({h for h in subgroups(group) if len(h) == 12}) == 1
    whole = tuple(range(24))
    assert [len(k) for k in index_two(group, whole)] == [12]


def test_groups_of_rotations_in_any_basis() -> None:
    turn = 2 * math.pi / 7
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    basis = np.array([[1.0, 2.0], [0.3, -0.5]])
    group, _ = generate((basis @ rotation @ np.linalg.inv(basis))[None])
    assert group.order == 7
    assert np.array_equal(group.table, group.table.T)


def test_cosets_are_moved_as_the_group_moves() -> None:
    group, _ = generate(symmetric(4))
    for h in subgroup_classes(group):
        moved = cosets(group, h)
        assert moved.shape == (24, 24 // len(h))
        for a, b in ((3, 7), (11, 20)):
            assert np.array_equal(moved[group.table[a, b]], moved[a][moved[b]])
        fixed = (moved == np.arange(moved.shape[1])).sum() / 24
        assert fixed == 1  # Burnside: one orbit


def test_induced_representations_multiply() -> None:
    group, _ = generate(dihedral(4))
    for h in subgroup_classes(group):
        for kernel in (None, *index_two(group, h)):
            rho = induced(group, h, kernel)
            assert np.array_equal(extend(group, rho[group.generators]), rho)
            entries = np.abs(rho)
            assert (entries.sum(1) == 1).all()
            # Frobenius: a nontrivial character of H has no vector that G leaves alone
            assert len(fixed_vectors(rho[group.generators])) == (1 if kernel is None else 0)


def test_maps_between_cosets_are_double_cosets() -> None:
    group, _ = generate(symmetric(4))
    classes = subgroup_classes(group)
    for one in classes[2::3]:
        for other in classes[1::4]:
            maps = equivariant_basis(
                induced(group, other)[group.generators], induced(group, one)[group.generators]
            )
            assert len(maps) == len(double_cosets(group, one, other))
            product = character(induced(group, one)) * character(induced(group, other))
            assert len(maps) == round(product.mean())


def test_equivariant_maps_of_sets_and_matrices() -> None:
    """2 maps of sets, 15 of matrices from n = 4 on (the number of partitions of four things)."""
    for n, wanted in ((3, 14), (4, 15)):
        rho = symmetric(n)
        pairs = np.stack([np.kron(g, g) for g in rho])
        assert len(equivariant_basis(rho, rho)) == 2
        maps = equivariant_basis(pairs, pairs)
        assert len(maps) == wanted
        for a in maps:
            assert np.allclose(pairs @ a, a @ pairs)
        assert np.allclose(np.einsum("iab,jab->ij", maps, maps), np.eye(wanted))
    assert len(fixed_vectors(np.stack([np.kron(g, g) for g in symmetric(4)]))) == 2


def test_schur() -> None:
    turn = np.array([[[0.0, -1], [1, 0]]])
    assert len(equivariant_basis(turn, turn)) == 2  # complex type
    assert len(equivariant_basis(turn, np.ones((1, 1, 1)))) == 0
    mirror = np.stack([turn[0], np.diag([1.0, -1])])
    assert len(equivariant_basis(mirror, mirror)) == 1  # real type
    skew = turn  # as a Lie algebra's generator the same rotations commute
    assert len(equivariant_basis(skew, skew)) == 2


def test_permutations_take_entries_to_their_places() -> None:
    (p,) = permutation_matrices([[2, 0, 1]])
    assert (p @ [10, 20, 30]).tolist() == [20, 30, 10]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: generate(np.zeros((0, 2, 2))), "at least one"),
        (lambda: generate(np.zeros((1, 2, 2))), "invertible"),
        (lambda: generate(np.array([[[2.0]]])), "more than 2000"),
        (lambda: permutation_matrices([[0, 0]]), "each number"),
        (lambda: extend(generate(cyclic(3))[0], np.array([[[-1.0]]])), "no representation"),
        (lambda: extend(generate(cyclic(3))[0], np.ones((2, 1, 1))), "each of the 1"),
        (lambda: equivariant_basis(cyclic(3), dihedral(3)), "each generator"),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value)

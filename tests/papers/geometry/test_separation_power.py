"""Separation: windows, multisets and colour refinement by hand, random networks, orders of blocks, refusals."""

from collections import Counter
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pytest
import torch

from workingpapers.catalog import claims, record
from workingpapers.engines.groups import cyclic, generate, subgroup_classes, symmetric
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry._separation import (
    architecture,
    convolutional,
    graphs,
    moment_classes,
    orbit_classes,
    polygons,
    random_outputs,
    refine,
    separated,
    separated_pairs,
    separates_as_much,
    sets,
    stabiliser,
)
from workingpapers.papers.geometry.separation_power import (
    ACTIVATIONS,
    agreement,
    empirical_separates,
    hierarchy,
    indistinguishable,
    necklaces,
    pairs_of_interest,
    separation_power,
    small_inputs,
)


def strings(n: int, letters: int) -> Any:
    return np.array(list(product(range(letters), repeat=n)), float)


def numbered(keys: list[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(key, len(known)) for key in keys]


def windows(row: Any, width: int) -> Any:
    n = len(row)
    return frozenset(Counter(tuple(row[(i + j) % n] for j in range(width)) for i in range(n)).items())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_convolutions_see_windows_that_grow_with_depth(width: int) -> None:
    x = strings(6, 2)
    classes, _ = refine(convolutional(6, width), x, depth=3)
    for depth in (1, 2, 3):
        seen = 1 + depth * (width - 1)
        assert classes[depth - 1].tolist() == numbered([windows(row, min(seen, 6)) for row in x])


def test_a_group_acting_on_itself_separates_orbits_at_once() -> None:
    x = strings(6, 2)
    group, moves = generate(cyclic(6))
    for arch in (architecture(group, moves, [(0,)]), polygons(6)):
        classes, threshold = refine(arch, x)
        assert threshold == 1
        assert classes[0].tolist() == orbit_classes(arch, x).tolist()
    shifts = numbered([min(tuple(np.roll(row, i)) for i in range(6)) for row in x])
    assert orbit_classes(architecture(group, moves, [(0,)]), x).tolist() == shifts
    assert orbit_classes(polygons(6), x).max() + 1 == 13  # bracelets; necklaces are 14
    assert max(shifts) + 1 == 14


def test_invariant_blocks_see_sums() -> None:
    x = strings(5, 3)
    group, moves = generate(cyclic(5))
    whole = tuple(range(5))
    classes, _ = refine(architecture(group, moves, [whole]), x, depth=3)
    assert classes[0].tolist() == classes[2].tolist() == numbered(list(x.sum(1)))


def test_width_two_cannot_part_strings_with_equal_neighbours() -> None:
    found = None
    for a, b in combinations(necklaces(6, 2), 2):
        if windows(a, 2) == windows(b, 2):
            found = a, b
            break
    assert found is not None
    arch = convolutional(6, 2)
    assert indistinguishable(arch, *found)
    assert not empirical_separates(arch, *found, torch.relu)
    assert not indistinguishable(arch, *found, depth=5)
    assert empirical_separates(arch, *found, torch.relu, depth=5)
    assert orbit_classes(arch, np.stack(found)).tolist() == [0, 1]


def test_sets_are_separated_as_multisets_and_by_moments() -> None:
    x = strings(4, 5)
    arch = sets(4)
    assert refine(arch, x)[0][0].tolist() == numbered([tuple(sorted(row)) for row in x])
    for p in (1, 2, 3):
        moments = [tuple(int((row**k).sum()) for k in range(1, p + 1)) for row in x]
        assert moment_classes(arch, x, p).tolist() == numbered(moments)
    alike = np.array([[0.0, 3, 3], [1, 1, 4]])
    assert (alike.sum(1) == 6).all()
    assert ((alike**2).sum(1) == 18).all()
    assert not empirical_separates(sets(3), *alike, ACTIVATIONS["square"])
    assert empirical_separates(sets(3), *alike, ACTIVATIONS["cube"])
    assert empirical_separates(sets(3), *alike, torch.relu)


def colour_refinement(a: Any) -> Any:
    """Classic 1-WL on an adjacency matrix, names as nested tuples."""
    colours: list[Any] = [0] * len(a)
    for _ in range(len(a)):
        colours = [
            (colours[i], tuple(sorted(colours[j] for j in np.flatnonzero(a[i])))) for i in range(len(a))
        ]
    return tuple(sorted(map(str, colours)))


def test_graphs_are_separated_as_by_colour_refinement() -> None:
    arch = graphs(4)
    every = []
    for bits in product((0, 1), repeat=6):
        a = np.zeros((4, 4))
        a[np.triu_indices(4, 1)] = bits
        every.append(a + a.T)
    x = np.stack(every).reshape(-1, 16)
    classes, threshold = refine(arch, x)
    assert classes[threshold - 1].tolist() == numbered([colour_refinement(a) for a in every])
    assert classes[-1].tolist() == orbit_classes(arch, x).tolist()
    assert classes[-1].max() + 1 == 11


def test_two_triangles_and_a_hexagon_are_one_to_graph_networks() -> None:
    ring, triangles = np.zeros((6, 6)), np.zeros((6, 6))
    for i in range(6):
        ring[i, (i + 1) % 6] = ring[(i + 1) % 6, i] = 1
        for j in range(6):
            triangles[i, j] = float(i != j and i // 3 == j // 3)
    arch = graphs(6)
    pair = np.stack([ring.reshape(-1), triangles.reshape(-1)])
    classes, _ = refine(arch, pair, depth=4)
    assert all(c.tolist() == [0, 0] for c in classes)
    assert orbit_classes(arch, pair).tolist() == [0, 1]


def test_labels_do_not_depend_on_the_order_of_things() -> None:
    a = np.random.default_rng(0).integers(0, 3, (4, 4)).astype(float)
    moved = np.stack([a[np.ix_(p, p)].reshape(-1) for p in permutations(range(4))])
    for classes in refine(graphs(4), moved, depth=3)[0]:
        assert set(classes) == {0}
    assert refine(graphs(4), np.stack([a.reshape(-1), a.T.reshape(-1)]))[0][0].tolist() == [0, 1]


def test_smaller_subgroups_separate_more() -> None:
    group, moves = generate(symmetric(3))
    x = strings(3, 4)
    classes = subgroup_classes(group)
    for one, other in product(classes, classes):
        if separates_as_much(group, one, other):
            fine, coarse = (refine(architecture(group, moves, [h]), x, 1)[0][0] for h in (one, other))
            assert len(set(zip(fine, coarse, strict=True))) == len(set(fine))
    assert separates_as_much(group, (0,), tuple(range(6)))
    assert not separates_as_much(group, tuple(range(6)), (0,))
    assert separates_as_much(group, stabiliser(moves, 1), stabiliser(moves, 2))


def test_the_hierarchy_of_blocks() -> None:
    """Of S_3: 1 below everything, the swap and the turns side by side, the group above; of C_12 divisors."""
    found = hierarchy(symmetric(3))
    assert found.numbers == {"order": 6, "blocks": 4, "ordered": 5}
    assert found.details["separates"].tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    divisors = [1, 2, 3, 4, 6, 12]
    pairs = sum(b % a == 0 for a, b in combinations(divisors, 2))
    assert hierarchy(cyclic(12)).numbers == {"order": 12, "blocks": 6, "ordered": pairs}


def test_several_blocks_are_the_intersection() -> None:
    group, moves = generate(symmetric(4))
    x = np.random.default_rng(1).integers(0, 3, (200, 4)).astype(float)
    blocks = [h for h in subgroup_classes(group) if len(h) in (6, 24)]
    both = refine(architecture(group, moves, blocks), x, 1)[0][0]
    parts = [refine(architecture(group, moves, [h]), x, 1)[0][0] for h in blocks]
    assert both.tolist() == numbered(list(zip(*(p.tolist() for p in parts), strict=True)))


def test_groups_of_matrices() -> None:
    """Turns of the plane by a fifth: a hidden layer on the group separates orbits."""
    turn = 2 * np.pi / 5
    rotation = np.array([[[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]])
    group, moves = generate(rotation)
    arch = architecture(group, moves, [(0,)])
    x = np.random.default_rng(0).standard_normal((6, 2))
    both = np.concatenate([x, x @ rotation[0].T, 1.001 * x])
    classes = refine(arch, both)[0][0]
    assert classes.tolist() == [*range(6), *range(6), *range(6, 12)]
    assert refine(architecture(group, moves, [tuple(range(5))]), both)[0][0].max() == 0  # nothing stays


def test_random_networks_are_invariant_and_agree() -> None:
    for arch, x in (
        (convolutional(5, 2), strings(5, 2)),
        (convolutional(5, 2, invariant=True), strings(5, 2)),
        (polygons(4, corners=True), strings(4, 3)),
    ):
        pairs = np.array(list(combinations(range(len(x)), 2)))
        classes, threshold = refine(arch, x)
        for depth in (1, threshold):
            found = separated(random_outputs(arch, x, torch.tanh, depth, nets=20), pairs)
            assert (found == (classes[depth - 1][pairs[:, 0]] != classes[depth - 1][pairs[:, 1]])).all()


def test_invariant_channels_add_nothing() -> None:
    x = necklaces(7, 2)
    for depth, (one, other) in enumerate(
        zip(refine(convolutional(7, 2), x, 4)[0], refine(convolutional(7, 2, True), x, 4)[0], strict=False), 1
    ):
        assert one.tolist() == other.tolist(), depth


def test_activations_agree_where_they_should() -> None:
    for name, (arch, x) in small_inputs(0).items():
        pairs = pairs_of_interest(arch, x, 45, seed=0)
        assert (pairs[:, 0] != pairs[:, 1]).all()
        exact, found = agreement(arch, x, pairs, ACTIVATIONS, nets=20)
        for act in ("relu", "sigmoid", "tanh", "sin", "exp"):
            assert (found[act] == exact).all(), (name, act)
        for act, degree in (("square", 2), ("cube", 3)):
            moments = moment_classes(arch, x, degree)
            assert (found[act] == (moments[pairs[:, 0]] != moments[pairs[:, 1]])).all(), (name, act)


def test_counting_pairs() -> None:
    classes = np.array([0, 1, 1, 2, 0, 1])
    assert separated_pairs(classes) == sum(a != b for a, b in combinations(classes, 2))
    assert len(necklaces(8, 2)) == 36
    assert len(necklaces(6, 3)) == 130


def test_finding() -> None:
    x = necklaces(8, 2)
    found = separation_power(convolutional(8, 2), x, torch.tanh, nets=20)
    assert found.numbers["orbits"] == 36
    assert found.numbers["threshold"] == 4  # two strings share all windows of 4 and not all of 5
    assert found.numbers["missed"] == found.numbers["disagree"] == 0
    assert found.numbers["classes at 3"] < found.numbers["classes at 4"] == 36
    whole = separation_power(convolutional(8, 1), x)
    assert whole.numbers["classes at 1"] == 9
    assert whole.numbers["missed"] > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: separation_power(convolutional(5, 2), np.zeros((3, 4))), "(N, 5)"),
        (lambda: separation_power(convolutional(5, 2), np.zeros((1, 5))), "two at least"),
        (lambda: architecture(*generate(cyclic(3)), []), "at least one block"),
        (lambda: architecture(*generate(symmetric(3)), [(0,)], reach=[0]), "have a reach"),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value)


def test_the_claims_are_the_records() -> None:
    own = claims("separation_power").values()
    assert [c.says for c in own] == [c["says"] for c in record("separation_power").claims]

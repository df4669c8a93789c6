"""Separation power: which inputs no network of an equivariant architecture can tell apart.

    one hidden layer R[G/H]:  x ~ y  iff  {pi_H(g^-1 x) : gH in G/H} = {pi_H(g^-1 y) : gH in G/H}  as multisets

pi_H projects on what H leaves alone.  A sum of act(w pi_H(g^-1 x) + b) over cosets determines the multiset if act
is no polynomial, whichever it is; a polynomial of degree p sees moments up to p.  Further layers refine the labels
pi_H(g^-1 x) of cosets by the multisets of labels that they sum over, as colour refinement does, up to a depth.

Paper: "Separation Power of Equivariant Neural Networks" (2024), arXiv 2406.08966; the recursion in depth is our
reading of its characterisation, held against random networks.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.catalog import claim, paper
from workingpapers.engines.groups import generate, subgroup_classes, symmetric
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.geometry._commuting import Activation
from workingpapers.papers.geometry._separation import (
    Architecture,
    Array,
    Indices,
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
)
from workingpapers.tasks import Budget

ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "exp": torch.exp,
    "square": torch.square,
    "cube": lambda x: x**3,
}


def indistinguishable(arch: Architecture, x: Array | Tensor, y: Array | Tensor, depth: int = 1) -> bool:
    """Tell whether no network of `depth` hidden layers of an architecture parts two inputs (d,)."""
    pair = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    classes = refine(arch, pair, depth)[0][depth - 1]
    return bool(classes[0] == classes[1])


def empirical_separates(
    arch: Architecture, x: Array | Tensor, y: Array | Tensor, act: Activation, nets: int = 50, depth: int = 1
) -> bool:
    """Tell whether some of `nets` random networks in float64 gives two inputs (d,) different outputs."""
    pair = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    return bool(separated(random_outputs(arch, pair, act, depth, nets=nets), np.array([[0, 1]]))[0])


def _all_pairs(n: int) -> Indices:
    return np.stack(np.triu_indices(n, 1), 1).astype(np.int64)


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    return convolutional(6, 2), torch.randint(2, (24, 6), generator=generator), torch.tanh


def _shifted(arch: Architecture, x: Tensor, act: Any) -> tuple[Any, ...]:
    return arch, torch.cat([row.roll(i)[None] for i, row in enumerate(x)]), act


def _reordered(arch: Architecture, x: Tensor, act: Any) -> tuple[Any, ...]:
    return arch, x.flip(0), act


@paper(
    "separation_power",
    example=_example,
    invariances={"moves of the group": _shifted, "order of the inputs": _reordered},
)
def separation_power(
    arch: Architecture, x: Array | Tensor, act: Activation | None = None, nets: int = 50, seed: int = 0
) -> Finding:
    """Count the inputs that an architecture with a non-polynomial activation separates, by depth.

    Args:
        arch: from `architecture` (one's own group and blocks), or `convolutional`, `sets`, `graphs`, `polygons`.
        x: inputs (N, d), two or more.
        act: an activation to hold against the exact answer in random networks: a pair is separated if one does.
        nets, seed: how many networks for each depth, and what they are drawn from.

    The numbers: `orbits` of the group among the inputs, `classes` at each depth up to one behind the `threshold`
    from which they stay, `missed` pairs of different orbits that none separates, and with `act` the pairs on which
    random networks `disagree`, over these depths.  `details["classes"]` has the class of each input by depth.
    """
    rows = np.asarray(x, np.float64)
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != arch.moves.shape[1]:
        raise WorkingPapersError(
            f"inputs (N, {arch.moves.shape[1]}) are needed, two at least; got the shape {rows.shape}"
        )
    threshold = refine(arch, rows)[1]
    by_depth = refine(arch, rows, threshold + 1)[0][: threshold + 1]
    orbits = orbit_classes(arch, rows)
    numbers = {"orbits": float(orbits.max() + 1), "threshold": float(threshold)}
    numbers |= {f"classes at {i}": float(c.max() + 1) for i, c in enumerate(by_depth, 1)}
    numbers["missed"] = float(separated_pairs(orbits) - separated_pairs(by_depth[-1]))
    if act is not None:
        pairs, wrong = _all_pairs(len(rows)), 0
        for depth, classes in enumerate(by_depth, 1):
            found = separated(random_outputs(arch, rows, act, depth, nets=nets, seed=seed), pairs)
            wrong += int((found != (classes[pairs[:, 0]] != classes[pairs[:, 1]])).sum())
        numbers["disagree"] = float(wrong)
    return Finding(
        numbers,
        f"Of {orbits.max() + 1} orbits among {len(rows)} inputs, {arch.name} part {by_depth[-1].max() + 1} from "
        f"depth {threshold} on, and miss {int(numbers['missed'])} pairs.",
        lambda: _draw(by_depth, numbers["orbits"]),
        {"classes": by_depth, "orbits": orbits},
    )


def _draw(by_depth: Sequence[Indices], orbits: float) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(range(1, len(by_depth) + 1), [c.max() + 1 for c in by_depth], "o-", label="classes")
    axes.axhline(orbits, color="k", linestyle="--", label="orbits")
    axes.set(xlabel="hidden layers", ylabel="inputs told apart", xticks=range(1, len(by_depth) + 1))
    axes.legend()
    return figure


def _blocks_example(generator: torch.Generator) -> tuple[Any, ...]:
    return (torch.from_numpy(symmetric(3)),)


@paper("separation_power", part="blocks", kind="analysis", example=_blocks_example)
def hierarchy(generators: Array | Tensor) -> Finding:
    """Order the hidden blocks R[G/H] of a group by how much they separate: one lies in a conjugate of the other.

    Args:
        generators: matrices (k, d, d) that generate a finite group of up to about a hundred elements.

    The numbers: `order` of the group, its `blocks`, one for each class of subgroups, and pairs that are `ordered`.
    `details` has a subgroup of each, `blocks`, the smallest and so the strongest first, and `separates` (blocks,
    blocks), whether the row's block separates all that the column's does.
    """
    group, _ = generate(np.asarray(generators, np.float64))
    blocks = subgroup_classes(group)
    table = np.array([[separates_as_much(group, one, other) for other in blocks] for one in blocks])
    ordered = int(table.sum()) - len(blocks)
    return Finding(
        {"order": float(group.order), "blocks": float(len(blocks)), "ordered": float(ordered)},
        f"The group of {group.order} elements has {len(blocks)} blocks, of which {ordered} pairs are ordered.",
        None,
        {"blocks": blocks, "separates": table},
    )


def agreement(
    arch: Architecture,
    x: Array,
    pairs: Indices,
    activations: Mapping[str, Activation],
    nets: int = 50,
    seed: int = 0,
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """Return what one hidden layer separates of pairs (P, 2) of inputs: in truth (P,), and by activation (P,)."""
    used, places = np.unique(pairs, return_inverse=True)
    rows, among = x[used], places.reshape(pairs.shape)
    classes = refine(arch, rows, 1)[0][0]
    found = {
        name: separated(random_outputs(arch, rows, act, nets=nets, seed=seed), among)
        for name, act in activations.items()
    }
    return classes[among[:, 0]] != classes[among[:, 1]], found


def small_inputs(seed: int) -> dict[str, tuple[Architecture, Array]]:
    """Return architectures with inputs: strings around a circle and a polygon, sets of 5, all graphs of 5 nodes."""
    draw = np.random.default_rng(seed)
    upper = np.triu_indices(5, 1)
    every = np.zeros((1024, 5, 5))
    every[:, upper[0], upper[1]] = np.array(list(product((0, 1), repeat=10)))
    return {
        "strings": (convolutional(6, 2), np.array(list(product((0, 1, 2), repeat=6)), float)),
        "polygons": (polygons(5, corners=True), np.array(list(product((0, 1, 2, 3), repeat=5)), float)),
        "sets": (sets(5), draw.integers(0, 5, (800, 5)).astype(float)),
        "graphs": (graphs(5), (every + every.transpose(0, 2, 1)).reshape(1024, 25)),
    }


def pairs_of_interest(arch: Architecture, x: Array, count: int, seed: int) -> Indices:
    """Return pairs (count, 2): two in three with the same moments up to 2 of what a filter sees, the rest any."""
    draw, chosen = np.random.default_rng(seed), []
    classes = moment_classes(arch, x, 2)
    members = [np.flatnonzero(classes == c) for c in range(classes.max() + 1)]
    alike = [m for m in members if len(m) > 1]
    for i in range(count):
        among = alike[draw.integers(len(alike))] if i % 3 else np.arange(len(x))
        chosen.append(draw.choice(among, 2, replace=False))
    return np.stack(chosen)


@claim(
    "separation_power",
    "All non-polynomial activations, ReLU and sigmoid included, are equally able to separate inputs and reach the "
    "maximum.",
    seeds=3,
    holds=all_of(at_least(0.995, of="agreement", by="every"), at_least(1, of="missed_by_square", by="every")),
)
def same_for_all_activations(budget: Budget, seed: int) -> Evidence:
    """Pairs of strings, polygons, sets and graphs, 50 random networks of each activation: the least agreement.

    That is the share of pairs on which relu, sigmoid, tanh, sin and the exact test agree, each with each; `exp`
    stands for itself.  `missed_by_square` are pairs that relu separates and the square does not.
    """
    count = budget.pick(quick=125, full=1000)
    truth, found = [], []
    for arch, x in small_inputs(seed).values():
        pairs = pairs_of_interest(arch, x, count, seed)
        exact, by_act = agreement(arch, x, pairs, ACTIVATIONS, seed=seed)
        truth.append(exact)
        found.append(by_act)
    every = {"exact": np.concatenate(truth)}
    every |= {name: np.concatenate([part[name] for part in found]) for name in ACTIVATIONS}
    named = ("exact", "relu", "sigmoid", "tanh", "sin")
    return Evidence(
        agreement=min(float((every[a] == every[b]).mean()) for a in named for b in named),
        exp=float((every["exp"] == every["exact"]).mean()),
        missed_by_square=int((every["relu"] & ~every["square"]).sum()),
        missed_by_cube=int((every["relu"] & ~every["cube"]).sum()),
        separated=float(every["exact"].mean()),
    )


def necklaces(n: int, letters: int) -> Array:
    """Return one string (n,) of each class under shifts, of numbers from 0 to letters - 1."""
    every = {min(s[i:] + s[:i] for i in range(n)) for s in product(range(letters), repeat=n)}
    return np.array(sorted(every), float)


@claim(
    "separation_power",
    "Depth adds separation only up to a threshold, and invariant features in hidden layers add none.",
    seeds=3,
    holds=all_of(
        at_most(0, of="falls", by="every"),
        at_least(1, of="gain", by="every"),
        at_most(0, of="beyond", by="every"),
        at_most(0, of="by_invariants", by="every"),
    ),
)
def depth_up_to_a_threshold(budget: Budget, seed: int) -> Evidence:
    """Strings of 8 up to shifts, filters of width 2: pairs that random tanh networks separate, by depth from 1.

    `falls` from one depth to the next, `gain` from the first to the last, `beyond`: depths from the predicted
    threshold on whose count is not the one there, `by_invariants`: depths at which invariant channels change it.
    """
    x, nets = necklaces(8, 3), budget.pick(quick=50, full=500)
    pairs = _all_pairs(len(x))
    threshold = refine(convolutional(8, 2), x)[1]

    def counts(invariant: bool) -> list[int]:
        arch, depths = convolutional(8, 2, invariant), range(1, max(5, threshold + 1) + 1)
        outputs = [random_outputs(arch, x, torch.tanh, d, nets=nets, seed=seed) for d in depths]
        return [int(separated(out, pairs).sum()) for out in outputs]

    plain, beside = counts(False), counts(True)
    return Evidence(
        falls=sum(b < a for a, b in pairwise(plain)),
        gain=plain[-1] - plain[0],
        beyond=sum(count != plain[threshold - 1] for count in plain[threshold:]),
        by_invariants=sum(a != b for a, b in zip(plain, beside, strict=True)),
        threshold=threshold,
        first=plain[0],
        last=plain[-1],
    )

"""Genetic search over graphs of convolutional cells, with a predictor of performance from the graph."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._structures import measures, regressor

KINDS = ("conv3", "conv1", "pool", "skip")


@dataclass(frozen=True)
class Genome:
    """A cell: the kind of each node, and edges (a, b) with a < b, sorted."""

    kinds: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CellSpace:
    """All cells of so many nodes, whose edges run from earlier to later ones."""

    nodes: int = 5
    kinds: tuple[str, ...] = KINDS

    @property
    def places(self) -> list[tuple[int, int]]:
        """All edges that there can be."""
        return [(a, b) for a in range(self.nodes) for b in range(a + 1, self.nodes)]

    def sample(self, seed: int) -> Genome:
        """Return a cell drawn uniformly."""
        chance = random.Random(seed)
        kinds = tuple(chance.choice(self.kinds) for _ in range(self.nodes))
        return Genome(kinds, tuple(e for e in self.places if chance.random() < 0.5))

    def mutate(self, genome: Genome, chance: random.Random) -> Genome:
        """Return a cell with one edge put in or taken out, or one node of another kind."""
        place = chance.randrange(len(self.places) + self.nodes)
        if place < len(self.places):
            return Genome(genome.kinds, tuple(sorted({*genome.edges} ^ {self.places[place]})))
        node = place - len(self.places)
        kind = chance.choice([k for k in self.kinds if k != genome.kinds[node]])
        return Genome((*genome.kinds[:node], kind, *genome.kinds[node + 1 :]), genome.edges)

    def cross(self, one: Genome, other: Genome, chance: random.Random) -> Genome:
        """Return a cell of which each node has its kind and its incoming edges from one of two parents."""
        parents = [chance.choice((one, other)) for _ in range(self.nodes)]
        edges = [e for b, parent in enumerate(parents) for e in parent.edges if e[1] == b]
        return Genome(tuple(parent.kinds[b] for b, parent in enumerate(parents)), tuple(sorted(edges)))

    def features(self, genome: Genome) -> dict[str, float]:
        """Return what a predictor sees of a cell: measures of its graph, number of paths, nodes of each kind."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(range(self.nodes))
        graph.add_edges_from(genome.edges)
        ways = [1.0] * self.nodes
        for b in range(self.nodes):
            into = [a for a, other in genome.edges if other == b]
            ways[b] = sum(ways[a] for a in into) if into else 1.0
        ends = {a for a, _ in genome.edges}
        found = {**measures(graph), "paths": sum(w for b, w in enumerate(ways) if b not in ends)}
        return found | {kind: float(genome.kinds.count(kind)) for kind in self.kinds}


@dataclass(frozen=True)
class Trial:
    """A point that was tried, and what the objective gave: -inf where it failed."""

    point: Any
    value: float


def hidden_cell() -> tuple[CellSpace, Callable[[Genome], float], float]:
    """Return a space whose best cell is known: the objective counts what differs from it."""
    space = CellSpace(5)
    target = Genome(("conv3", "pool", "skip", "conv1", "conv3"), ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4)))

    def objective(genome: Genome) -> float:
        kinds = sum(a != b for a, b in zip(genome.kinds, target.kinds, strict=True))
        return -float(kinds + len({*genome.edges} ^ {*target.edges}))

    return space, objective, 0.0


@paper(
    "hidden_structure_sparse",
    part="search",
    kind="search",
    example=hidden_cell,
    budget=30,
    options={"predictor": "linear"},
)
def genetic_search(
    space: Any,
    objective: Callable[[Any], float],
    budget: int = 40,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    population: int = 8,
    predictor: str | None = "forest",
    pool: int = 20,
) -> list[Trial]:
    """Search by selection, crossover and mutation, evaluating of each brood the child predicted to be best.

    Args:
        space: has `sample`, `mutate`, `cross` and `features`, as `CellSpace` has.
        objective: a point -> a number, which is maximised; what raises or is no number counts as -inf.
        budget: evaluations in all, with those in `trials`.
        seed: decides everything that is drawn.
        trials: those of an earlier call with the same space and seed, to go on from.
        population: so many first points are random; later parents are among as many best ones.
        predictor: "forest", "adaboost", "mlp" or "linear", fitted to all trials; None takes a random child.
        pool: children in a brood.
    """
    if population < 2 or pool < 1:
        raise WorkingPapersError(
            f"a population has at least 2 members and a brood 1; got {population} and {pool}"
        )
    found = list(trials or [])
    while len(found) < budget:
        chance = random.Random(f"{seed} {len(found)}")
        if len(found) < population:
            point = space.sample(chance.randrange(2**31))
        else:
            brood = _brood(space, found, population, pool, chance)
            point = brood[_chosen(space, found, brood, predictor, seed)]
        found.append(Trial(point, _value(objective, point)))
    return found


def _value(objective: Callable[[Any], float], point: Any) -> float:
    try:
        value = float(objective(point))
    except Exception:  # a network that cannot be trained is a result: the worst there is
        return -math.inf
    return -math.inf if math.isnan(value) else value


def _brood(space: Any, found: list[Trial], population: int, pool: int, chance: random.Random) -> list[Any]:
    """Return children of the best, each a cross of two (the better of two drawn ones each) and a mutation."""
    best = sorted(found, key=lambda t: -t.value)[:population]
    tried = [t.point for t in found]
    brood: list[Any] = []
    for _ in range(20 * pool):
        one, other = (best[min(chance.sample(range(len(best)), 2))].point for _ in range(2))
        child = space.mutate(space.cross(one, other, chance), chance)
        if child not in tried and child not in brood:
            brood.append(child)
        if len(brood) == pool:
            break
    return brood or [child]


def _chosen(space: Any, found: list[Trial], brood: list[Any], predictor: str | None, seed: int) -> int:
    """Return which child is predicted to be best; the first where nothing can be predicted."""
    known = [t for t in found if math.isfinite(t.value)]
    if predictor is None or len(known) < 2:
        return 0
    x, fresh = (
        np.array([list(space.features(p).values()) for p in ps]) for ps in ([t.point for t in known], brood)
    )
    guess = regressor(predictor, seed).fit(x, np.array([t.value for t in known])).predict(fresh)
    return int(np.argmax(guess))


class CellNet(nn.Module):
    """A convolutional network of one cell: (B, in_channels, H, W) -> (B, classes).

    A 3x3 stem, the cell, mean over pixels, a linear read-out.  A node takes the sum of what its edges bring, or
    the stem's output where there are none: "conv3" and "conv1" are convolutions with batch normalisation and ReLU,
    "pool" a 3x3 mean, "skip" passes on.  The sinks' outputs are summed.
    """

    def __init__(self, genome: Genome, in_channels: int = 1, channels: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.genome = genome
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.nodes = nn.ModuleList(_node(kind, channels) for kind in genome.kinds)
        self.out = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        stem = self.stem(x)
        outputs: list[Tensor] = []
        for b, node in enumerate(self.nodes):
            into = [outputs[a] for a, other in self.genome.edges if other == b]
            outputs.append(node(torch.stack(into).sum(0) if into else stem))
        inner = {a for a, _ in self.genome.edges}
        sinks = torch.stack([y for b, y in enumerate(outputs) if b not in inner]).sum(0)
        logits: Tensor = self.out(sinks.mean((2, 3)))
        return logits


def _node(kind: str, channels: int) -> nn.Module:
    if kind == "pool":
        return nn.AvgPool2d(3, 1, 1)
    if kind == "skip":
        return nn.Identity()
    side = 3 if kind == "conv3" else 1
    return nn.Sequential(
        nn.Conv2d(channels, channels, side, padding=side // 2), nn.BatchNorm2d(channels), nn.ReLU()
    )

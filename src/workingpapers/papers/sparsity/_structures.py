"""Random graphs as layered structures: orientation, layers, measures, and how well measures predict something."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

KINDS = ("watts_strogatz", "barabasi_albert", "erdos_renyi")


def random_graph(kind: str, nodes: int, seed: int = 0) -> Any:
    """Return an undirected networkx graph as the thesis draws them.

    "watts_strogatz": connected, nodes // 5 neighbours (at least 2), all rewired; "barabasi_albert": nodes // 10
    edges a node (at least 1); "erdos_renyi": each edge with a chance of 0.2.
    """
    import networkx as nx

    if kind not in KINDS:
        raise unknown("sort of random graph", kind, KINDS)
    if nodes < 3:
        raise WorkingPapersError(f"a random graph has at least 3 nodes; got {nodes}")
    if kind == "watts_strogatz":
        return nx.connected_watts_strogatz_graph(nodes, max(2, nodes // 5), 1, 100, seed=seed)
    if kind == "barabasi_albert":
        return nx.barabasi_albert_graph(nodes, max(1, nodes // 10), seed=seed)
    return nx.gnp_random_graph(nodes, 0.2, seed=seed)


@dataclass(frozen=True)
class Structure:
    """A graph whose edges run from the lower to the higher node, in layers by the longest path from a source."""

    layers: tuple[tuple[int, ...], ...]
    edges: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, graph: Any) -> "Structure":
        """Return the structure of a networkx graph whose nodes can be ordered."""
        order = {node: i for i, node in enumerate(sorted(graph.nodes))}
        pairs = ((order[a], order[b]) for a, b in graph.edges if a != b)
        edges = frozenset((min(p), max(p)) for p in pairs)
        if not order:
            raise WorkingPapersError("a structure needs a graph of at least one node")
        depth = [0] * len(order)
        for a, b in sorted(edges):  # by the first node, whose depth is final by then
            depth[b] = max(depth[b], depth[a] + 1)
        found = [tuple(n for n, d in enumerate(depth) if d == level) for level in range(max(depth) + 1)]
        return cls(tuple(found), edges)

    @property
    def order(self) -> list[int]:
        """The nodes, layer by layer."""
        return [node for layer in self.layers for node in layer]

    @property
    def sinks(self) -> list[int]:
        """The nodes without an edge to a later one."""
        inner = {a for a, _ in self.edges}
        return [node for node in self.order if node not in inner]

    def mask(self, layer: int) -> Tensor:
        """Return which earlier nodes (columns, layer by layer) each node of a layer (rows) reads: 0 or 1."""
        before = [n for earlier in self.layers[:layer] for n in earlier]
        rows = [[float((a, b) in self.edges) for a in before] for b in self.layers[layer]]
        return torch.tensor(rows)


def measures(graph: Any) -> dict[str, float]:
    """Return what the thesis tells of a graph and of its structure, by name.

    Distances are those of the largest connected part.  Each centrality has a mean and a variance.
    """
    import networkx as nx

    structure = Structure.of(graph)
    nodes, edges = len(graph.nodes), len(structure.edges)
    part = graph.subgraph(max(nx.connected_components(graph), key=len))
    by_node = {
        "eccentricity": nx.eccentricity(part),
        "degree": nx.degree_centrality(graph),
        "closeness": nx.closeness_centrality(graph),
        "betweenness": nx.betweenness_centrality(graph),
        "edge betweenness": nx.edge_betweenness_centrality(graph) or {0: 0.0},
    }
    found = {
        "layers": len(structure.layers),
        "nodes": nodes,
        "edges": edges,
        "sources": len(structure.layers[0]),
        "sinks": len(structure.sinks),
        "density": edges / max(1, nodes * (nodes - 1)),
        "diameter": max(by_node["eccentricity"].values()),
        "path length": nx.average_shortest_path_length(part) if len(part) > 1 else 0.0,
    }
    for name, values in by_node.items():
        found[f"{name} mean"] = fmean(values.values())
        found[f"{name} variance"] = pvariance(values.values())
    return {name: float(value) for name, value in found.items()}


def regressor(name: str, seed: int) -> Any:
    """Return a regressor of scikit-learn: "forest", "adaboost", "mlp", or "linear" with a ridge."""
    from sklearn.ensemble import AdaBoostRegressor, RandomForestRegressor
    from sklearn.linear_model import Ridge
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    makers = {
        "forest": lambda: RandomForestRegressor(100, random_state=seed),
        "adaboost": lambda: AdaBoostRegressor(random_state=seed),
        "mlp": lambda: make_pipeline(
            StandardScaler(), MLPRegressor((32,), solver="lbfgs", alpha=1.0, max_iter=200, random_state=seed)
        ),
        "linear": lambda: make_pipeline(StandardScaler(), Ridge(1.0)),
    }
    if name not in makers:
        raise unknown("regressor", name, makers)
    return makers[name]()


def predict_performance(
    table: Sequence[dict[str, float]],
    values: Sequence[float],
    how: str = "forest",
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> tuple[float, float]:
    """Return R^2 of predicting values from measures, and the same where the values are shuffled.

    Predictions are those of structures held out, all folds together; both are means over repeats.
    """
    if len(table) != len(values) or len(values) < folds or folds < 2:
        raise WorkingPapersError(
            f"{folds} folds need as many structures with a value each; got {len(table)} and {len(values)}"
        )
    x = np.array([list(row.values()) for row in table])
    y, chance = np.array(values, dtype=float), random.Random(seed)
    scores = []
    for repeat in range(repeats):
        order = chance.sample(range(len(y)), len(y))
        shuffled = y[chance.sample(range(len(y)), len(y))]
        scores.append([_held_out(x, target, order, how, folds, seed + repeat) for target in (y, shuffled)])
    own, control = np.mean(scores, axis=0)
    return float(own), float(control)


def _held_out(x: Any, y: Any, order: list[int], how: str, folds: int, seed: int) -> float:
    guess = np.empty_like(y)
    for fold in range(folds):
        out = order[fold::folds]
        rest = [i for i in order if i not in set(out)]
        guess[out] = regressor(how, seed).fit(x[rest], y[rest]).predict(x[out])
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - guess) ** 2).sum()) / spread if spread > 0 else 0.0


def correlations(table: Sequence[dict[str, float]], values: Sequence[float]) -> dict[str, float]:
    """Return the correlation of each measure with the values, 0 where one is constant."""
    y = np.asarray(values, dtype=float)
    found = {}
    for name in table[0]:
        x = np.array([row[name] for row in table])
        constant = x.std() < 1e-12 or y.std() < 1e-12
        found[name] = 0.0 if constant else float(np.corrcoef(x, y)[0, 1])
    return found

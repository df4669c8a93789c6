"""Sparse networks as graphs of their units: a report of any chain of masked layers, and networks made of graphs."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.engines.masks import prunable, set_mask
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Finding
from workingpapers.papers.sparsity._structures import Structure


def connections(model: nn.Module) -> list[Tensor]:
    """Return which units each Linear or Conv2d layer connects, (out, in) of 0 and 1, for a chain of such layers.

    Units of convolutions are channels; what a linear layer reads of one channel counts as one unit.

    Raises:
        WorkingPapersError: where the layers do not follow one another by their sizes.
    """
    found: list[Tensor] = []
    for name, layer in prunable(model).items():
        on = (
            (layer.weight.detach() != 0).flatten(2).any(2)
            if layer.weight.ndim > 2
            else layer.weight.detach() != 0
        )
        if found and on.shape[1] != len(found[-1]):
            if on.shape[1] % len(found[-1]):
                raise WorkingPapersError(
                    f"{name} reads {on.shape[1]} units, which do not follow from the {len(found[-1])} before"
                )
            on = on.unflatten(1, (len(found[-1]), -1)).any(2)
        found.append(on.double())
    return found


def _example(generator: torch.Generator) -> tuple[nn.Module]:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    model.get_parameter("0.weight").data[::2, ::2] = 0.0
    return (model,)


def _scaled(model: nn.Module) -> tuple[nn.Module]:
    for p in model.parameters():
        p.data.mul_(3.0)
    return (model,)


@paper(
    "hidden_structure_sparse",
    part="structure",
    kind="analysis",
    example=_example,
    invariances={"scale": _scaled},
)
def structure(model: nn.Module) -> Finding:
    """Report the graph that the non-zero weights of a chain of layers make of its units.

    The numbers: `nodes`, `edges`, `density` of the possible ones, `layers`; `degree` of hidden units, its
    `variance` and largest value; `idle` share of hidden units that lie on no path from an input to an output;
    `paths`, the decimal logarithm of the number of such paths (0 where there is none); `diameter` and mean
    `distance` of the largest connected part.  `details["degrees"]` has in- and out-degrees of each layer's units.
    """
    layers = connections(model)
    sizes = [layers[0].shape[1], *(len(on) for on in layers)]
    forward, backward = [torch.ones(sizes[0]).double()], [torch.ones(sizes[-1]).double()]
    for on in layers:
        forward.append(on @ forward[-1])
    for on in reversed(layers):
        backward.append(on.T @ backward[-1])
    through = [f * b for f, b in zip(forward, reversed(backward), strict=True)][1:-1]
    degrees = [(on.sum(1), after.sum(0)) for on, after in pairwise(layers)]
    each = torch.cat([a + b for a, b in degrees]) if degrees else torch.zeros(1).double()
    edges, paths = float(sum(on.sum() for on in layers)), float(forward[-1].sum())
    idle = float((torch.cat(through) == 0).double().mean()) if through else 0.0
    diameter, distance = _distances(layers, sizes)
    numbers = {
        "nodes": float(sum(sizes)),
        "edges": edges,
        "density": edges / sum(on.numel() for on in layers),
        "layers": float(len(sizes)),
        "degree": float(each.mean()),
        "variance": float(each.var(correction=0)),
        "largest": float(each.max()),
        "idle": idle,
        "paths": float(np.log10(paths)) if paths else 0.0,
        "diameter": diameter,
        "distance": distance,
    }
    return Finding(
        numbers,
        f"{edges:.0f} edges join {sum(sizes)} units, {idle:.1%} of the hidden ones lie on no path, and the "
        f"diameter is {diameter:.0f}.",
        partial(_draw, each),
        {"degrees": degrees},
    )


def _distances(layers: list[Tensor], sizes: list[int]) -> tuple[float, float]:
    """Return the diameter and the mean distance of the largest connected part of the undirected graph."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components, shortest_path

    starts = np.cumsum([0, *sizes])
    rows, columns = [], []
    for number, on in enumerate(layers):
        to, source = on.nonzero().numpy().T
        rows.append(to + starts[number + 1])
        columns.append(source + starts[number])
    ends = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(ends[0])), ends), shape=(sum(sizes),) * 2).tocsr()
    labels = connected_components(graph, directed=False)[1]
    part = np.flatnonzero(labels == np.bincount(labels).argmax())
    if len(part) < 2:
        return 0.0, 0.0
    lengths = shortest_path(graph[part][:, part], directed=False, unweighted=True)
    return float(lengths.max()), float(lengths.sum() / (len(part) * (len(part) - 1)))


def _draw(degrees: Tensor) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.hist(degrees.numpy(), bins=30)
    axis.set(xlabel="edges of a hidden unit", ylabel="units")
    return figure


class GraphNet(nn.Module):
    """A perceptron wired as a graph, with edges across layers: (B, ...) -> (B, outputs).

    Nodes are units, in the layers of the structure; the first layer reads all inputs, the outputs read the sinks.

    Args:
        graph: a networkx graph, see `random_graph`, or a structure.
        inputs: how many numbers an example has.
        outputs: how many come out.
        activation: factory of the activation behind each layer.
    """

    def __init__(
        self, graph: Any, inputs: int, outputs: int, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        wiring = graph if isinstance(graph, Structure) else Structure.of(graph)
        self.first = nn.Linear(inputs, len(wiring.layers[0]))
        self.activation = activation()
        layers = []
        for number in range(1, len(wiring.layers)):
            mask = wiring.mask(number)
            layer = nn.Linear(mask.shape[1], mask.shape[0])
            set_mask(layer, mask)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        place = {node: i for i, node in enumerate(wiring.order)}
        self.sinks = [place[node] for node in wiring.sinks]
        self.out = nn.Linear(len(self.sinks), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        nodes = self.activation(self.first(x.flatten(1)))
        for layer in self.layers:
            nodes = torch.cat([nodes, self.activation(layer(nodes))], 1)
        out: Tensor = self.out(nodes[:, self.sinks])
        return out

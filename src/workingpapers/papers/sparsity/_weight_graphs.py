"""Convolutional networks as graphs, and back: a node for a channel, an edge for a kernel.

A node has the gain, bias, running mean and variance of the batch norm that its channel passed, and of the norm on
the shortcut (1, 0, 0, 1 where there is none; the bias of a layer without a norm takes its place).  An edge has the
kernel from one channel to another, 1x1 kernels and linear weights at its middle; shortcuts without weights are
edges with the identity's kernel.  Running means and variances are read and never written, biases before norms are
neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._channel_groups import ADDING, NORMS, flattens, passes

NODE = (1.0, 0.0, 0.0, 1.0) * 2
KERNEL = 9
MIDDLE = 4


@dataclass(frozen=True)
class Entry:
    """Where a parameter stands: rows `start` on of the edges, or rows and a column of the nodes."""

    name: str
    start: int
    shape: tuple[int, ...]
    column: int | None = None


@dataclass(frozen=True)
class WeightGraph:
    """nodes: (N, 8); edges: (2, E), from and to; kernels: (E, 9); entries: the parameters that they stand for."""

    nodes: Tensor
    edges: Tensor
    kernels: Tensor
    entries: tuple[Entry, ...]

    def parameters(self, nodes: Tensor | None = None, kernels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the parameters by name that other node features and kernels stand for (default: these)."""
        nodes = self.nodes if nodes is None else nodes
        kernels = self.kernels if kernels is None else kernels
        found = {}
        for e in self.entries:
            if e.column is not None:
                found[e.name] = nodes[e.start : e.start + e.shape[0], e.column]
                continue
            rows = kernels[e.start : e.start + e.shape[0] * e.shape[1]]
            found[e.name] = _unpadded(rows, e.shape)
        return found


def _unpadded(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    area = _area(shape)
    return rows[:, MIDDLE].reshape(shape) if area == 1 else rows[:, :area].reshape(shape)


def _area(shape: tuple[int, ...]) -> int:
    area = 1
    for side in shape[2:]:
        area *= side
    return area


def _padded(weight: Tensor) -> Tensor:
    """Return kernels (out * in, 9): 3x3 as they are, single numbers in the middle."""
    area = _area(tuple(weight.shape))
    if area > KERNEL:
        raise WorkingPapersError(f"kernels have at most {KERNEL} numbers; got {tuple(weight.shape[2:])}")
    rows = weight.reshape(-1, area)
    found = rows.new_zeros(len(rows), KERNEL)
    if area == 1:
        found[:, MIDDLE] = rows[:, 0]
    else:
        found[:, :area] = rows
    return found


@dataclass
class _Term:
    """What comes into channels from other nodes: through a layer, or over a shortcut (`layer` None)."""

    source: int
    layer: str | None = None
    norm: str | None = None


@dataclass
class _Drawing:
    """The nodes and edges drawn so far; `sets` has each layer of nodes as (start, count)."""

    model: nn.Module
    sets: list[tuple[int, int]] = field(default_factory=list)
    nodes: list[Tensor] = field(default_factory=list)
    edges: list[Tensor] = field(default_factory=list)
    kernels: list[Tensor] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def draw(self, terms: list[_Term]) -> int:
        """Draw the nodes in which terms are added up, and the edges to them; return the number of the set."""
        count = self._count(terms)
        start = sum(len(n) for n in self.nodes)
        features = torch.tensor(NODE).repeat(count, 1)
        column = 0
        for term in terms:
            if term.layer is not None:
                if column > 4:
                    raise WorkingPapersError("at most two layers can be added up in one channel")
                self._features(term, features, start, column)
                column += 4
            self._edges(term, start, count)
        self.nodes.append(features)
        self.sets.append((start, count))
        return len(self.sets) - 1

    def behind(self, term: _Term) -> int:
        """Order what is added up: larger kernels first, shortcuts last."""
        return 0 if term.layer is None else -_area(tuple(self._weight(term.layer).shape))

    def _count(self, terms: list[_Term]) -> int:
        layers = [self._weight(t.layer) for t in terms if t.layer is not None]
        return len(layers[0]) if layers else self.sets[terms[0].source][1]

    def _weight(self, name: str) -> Tensor:
        weight: Any = self.model.get_submodule(name).weight
        return weight.detach()  # type: ignore[no-any-return]

    def _features(self, term: _Term, features: Tensor, start: int, column: int) -> None:
        owner: Any = self.model.get_submodule(term.norm or term.layer or "")
        found = ["bias"] if term.norm is None else ["weight", "bias", "running_mean", "running_var"]
        for name in found:
            value = getattr(owner, name)
            place = column + ("weight", "bias", "running_mean", "running_var").index(name)
            if value is not None:
                features[:, place] = value.detach().to(features)
            if isinstance(value, nn.Parameter):
                self.entries.append(Entry(f"{term.norm or term.layer}.{name}", start, (len(value),), place))

    def _edges(self, term: _Term, start: int, count: int) -> None:
        before, width = self.sets[term.source]
        if term.layer is None:
            pairs = torch.arange(count)
            self.edges.append(torch.stack([before + pairs, start + pairs]))
            self.kernels.append(_padded(torch.ones(count, 1, 1, 1)))
            return
        weight = self._weight(term.layer)
        if weight.shape[1] != width:
            raise WorkingPapersError(
                f"{term.layer!r} reads several numbers of a channel; pool before flattening"
            )
        rows = sum(len(k) for k in self.kernels)
        self.entries.append(Entry(f"{term.layer}.weight", rows, tuple(weight.shape)))
        out, into = torch.meshgrid(torch.arange(count), torch.arange(width), indexing="ij")
        self.edges.append(torch.stack([before + into.reshape(-1), start + out.reshape(-1)]))
        self.kernels.append(_padded(weight.float()))


def graph_of(model: nn.Module, channels: int) -> WeightGraph:
    """Return the graph of a convolutional network for inputs of so many channels.

    Raises:
        WorkingPapersError: for groups, kernels of more than 9 numbers, and layers that cannot be followed.
    """
    drawing = _Drawing(model)
    drawing.nodes.append(torch.tensor(NODE).repeat(channels, 1))
    drawing.sets.append((0, channels))
    held: dict[fx.Node, int | list[_Term]] = {}

    def drawn(node: fx.Node) -> int:
        value = held[node]
        if isinstance(value, list):
            held[node] = value = drawing.draw(value)
        return value

    def terms(node: fx.Node) -> list[_Term]:
        value = held[node]
        return value if isinstance(value, list) else [_Term(value)]

    for node in fx.symbolic_trace(model).graph.nodes:
        inputs = [n for n in node.all_input_nodes if n in held]
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder":
            held[node] = 0
        elif node.op == "output":
            drawn(inputs[0])
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            held[node] = [_Term(drawn(inputs[0]), str(node.target))]
        elif isinstance(module, NORMS):
            held[node] = _normed(terms(inputs[0]), str(node.target))
        elif len(inputs) == 2 and (node.target in ADDING or node.target == "add"):
            held[node] = sorted(terms(inputs[0]) + terms(inputs[1]), key=drawing.behind)
        elif isinstance(module, nn.Identity):
            held[node] = held[inputs[0]]
        elif len(inputs) == 1 and (flattens(model, node) or passes(model, node)):
            held[node] = drawn(inputs[0])
        else:
            raise WorkingPapersError(
                f"{node.name!r} of {type(model).__name__} has no place in a graph of channels"
            )
    edges, kernels = torch.cat(drawing.edges, 1), torch.cat(drawing.kernels)
    return WeightGraph(torch.cat(drawing.nodes), edges, kernels, tuple(drawing.entries))


def _normed(terms: list[_Term], norm: str) -> list[_Term]:
    if len(terms) != 1 or terms[0].layer is None or terms[0].norm is not None:
        raise WorkingPapersError(f"the norm {norm!r} does not stand behind one layer")
    return [_Term(terms[0].source, terms[0].layer, norm)]


def run_with(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return what a model gives with other parameters in evaluation mode's place, by name."""
    out: Tensor = functional_call(model, dict(parameters), (x,))
    return out

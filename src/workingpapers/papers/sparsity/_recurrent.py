"""Recurrent classifiers of strings: stacked cells that can be pruned, and cells wired by a graph."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.sparsity._reber import SYMBOLS
from workingpapers.papers.sparsity._structures import Structure

CELLS: dict[str, tuple[Any, dict[str, str], int]] = {
    "tanh": (nn.RNN, {"nonlinearity": "tanh"}, 1),
    "relu": (nn.RNN, {"nonlinearity": "relu"}, 1),
    "lstm": (nn.LSTM, {}, 4),
    "gru": (nn.GRU, {}, 3),
}
WHICH = {"input": ("weight_ih",), "hidden": ("weight_hh",), "both": ("weight_ih", "weight_hh")}


def cell_named(cell: str) -> tuple[Any, dict[str, str], int]:
    """Return the torch layer, its options, and how many gates it has."""
    if cell not in CELLS:
        raise unknown("recurrent cell", cell, CELLS)
    return CELLS[cell]


def at_the_end(outputs: Tensor, tokens: Tensor) -> Tensor:
    """Return the outputs (B, H) of (B, T, H) at each string's last symbol; behind it tokens (B, T) are 0."""
    last = (tokens != 0).sum(1).clamp_min(1) - 1
    return outputs[torch.arange(len(outputs), device=outputs.device), last]


class RecurrentClassifier(nn.Module):
    """An embedding, stacked recurrent layers, and a linear read-out at the string's end: (B, T) -> (B, 2).

    Args:
        cell: "tanh", "relu", "lstm" or "gru".
        hidden: units of a layer and of the embedding.
        layers: how many; the thesis has 3.
    """

    def __init__(self, cell: str = "lstm", hidden: int = 50, layers: int = 1) -> None:
        super().__init__()
        make, options, _ = cell_named(cell)
        self.embedding = nn.Embedding(len(SYMBOLS) + 1, hidden, padding_idx=0)
        self.recurrent = make(hidden, hidden, layers, batch_first=True, **options)
        self.out = nn.Linear(hidden, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        outputs = self.recurrent(self.embedding(tokens))[0]
        logits: Tensor = self.out(at_the_end(outputs, tokens))
        return logits


@torch.no_grad()
def prune_rnn(model: nn.Module, percent: float, which: str = "both") -> nn.Module:
    """Return a copy of which the smallest weights of each recurrent matrix are 0, and stay so in training.

    The masks are those of torch.nn.utils.prune, whose `remove` makes plain weights of it before a model is copied.

    Args:
        model: has layers nn.RNN, nn.LSTM or nn.GRU.
        percent: how many percent of a matrix go, rounded to a number of weights.
        which: "input" (to hidden), "hidden" (to hidden), or "both".
    """
    if which not in WHICH:
        raise unknown("sort of recurrent weights", which, WHICH)
    if not 0 <= percent <= 100:
        raise WorkingPapersError(f"0 to 100 percent of the weights can go; got {percent}")
    if prune.is_pruned(model):
        raise WorkingPapersError("the network is pruned already; start from the dense one")
    found = copy.deepcopy(model)
    layers = [m for m in found.modules() if isinstance(m, nn.RNNBase)]
    if not layers:
        raise WorkingPapersError(f"{type(model).__name__} has no recurrent layer")
    for layer in layers:
        for name in [n for n, _ in layer.named_parameters() if n.startswith(WHICH[which])]:
            weight = getattr(layer, name)
            gone = weight.abs().flatten().argsort(stable=True)[: round(percent / 100 * weight.numel())]
            mask = torch.ones(weight.numel(), dtype=weight.dtype).index_fill_(0, gone, 0.0)
            prune.custom_from_mask(layer, name, mask.view_as(weight))
    return found


class MaskedRecurrent(nn.Module):
    """One recurrent layer of which masks hide weights: (B, T, inputs) -> (B, T, units).

    Args:
        cell: "tanh", "relu", "lstm" or "gru".
        reads: (units, inputs), which inputs a unit reads; the same for all its gates.
        recurs: (units, units), which units it reads from the step before.
    """

    reads: Tensor
    recurs: Tensor

    def __init__(self, cell: str, reads: Tensor, recurs: Tensor) -> None:
        super().__init__()
        make, options, gates = cell_named(cell)
        self.cell = make(reads.shape[1], reads.shape[0], batch_first=True, **options)
        self.register_buffer("reads", reads.repeat(gates, 1))
        self.register_buffer("recurs", recurs.repeat(gates, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the units' outputs."""
        weights = {
            "weight_ih_l0": self.cell.weight_ih_l0 * self.reads,
            "weight_hh_l0": self.cell.weight_hh_l0 * self.recurs,
        }
        outputs: Tensor = functional_call(self.cell, weights, (x,))[0]
        return outputs


class SparseRecurrent(nn.Module):
    """A recurrent classifier wired as a graph: tokens (B, T) -> logits (B, 2).

    The nodes of each layer of the structure are the units of a recurrent layer, which reads the nodes of all
    earlier layers that the graph connects to it.  The first layer reads the embedding, the read-out the sinks.

    Args:
        graph: a networkx graph, or a structure.
        cell: "tanh", "relu", "lstm" or "gru".
        diagonal: each unit recurs to itself alone; else layers are densely recurrent.
        embedding: its width; by default the number of units of the first layer, as in the thesis.
    """

    def __init__(
        self, graph: Any, cell: str = "tanh", diagonal: bool = False, embedding: int | None = None
    ) -> None:
        super().__init__()
        structure = graph if isinstance(graph, Structure) else Structure.of(graph)
        first = len(structure.layers[0])
        self.embedding = nn.Embedding(len(SYMBOLS) + 1, embedding or first, padding_idx=0)
        layers = []
        for number, nodes in enumerate(structure.layers):
            reads = structure.mask(number) if number else torch.ones(first, embedding or first)
            recurs = torch.eye(len(nodes)) if diagonal else torch.ones(len(nodes), len(nodes))
            layers.append(MaskedRecurrent(cell, reads, recurs))
        self.layers = nn.ModuleList(layers)
        place = {node: i for i, node in enumerate(structure.order)}
        self.sinks = [place[node] for node in structure.sinks]
        self.out = nn.Linear(len(self.sinks), 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        outputs = [self.layers[0](self.embedding(tokens))]
        for layer in self.layers[1:]:
            outputs.append(layer(torch.cat(outputs, -1)))
        logits: Tensor = self.out(at_the_end(torch.cat(outputs, -1)[..., self.sinks], tokens))
        return logits

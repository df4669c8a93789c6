"""Node classification as a problem, and the graph convolutional network."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Graph
from workingpapers.tasks.problems import Problem
from workingpapers.tasks.randomness import apart


class NodeClassification(Problem):
    """Label the nodes of a graph, all of it a batch: a model takes (features, propagation matrix).

    The features of a node sum to one, and come as a sparse tensor if `sparse`; the matrix is that of
    `normalised_adjacency`.  Measured on the test nodes: loss and accuracy, and `val_accuracy` on the
    validation nodes.
    """

    metrics = ("loss", "accuracy", "val_accuracy")

    def __init__(self, graph: Graph, sparse: bool = False) -> None:
        self.graph, self.sparse = graph, sparse
        x = graph.x / graph.x.sum(1, keepdim=True).clamp(min=1.0)
        self.x = x.to_sparse() if sparse else x
        self.propagation = normalised_adjacency(graph.edges, len(graph.x))

    def to(self, device: torch.device) -> Self:
        """Return the problem with its graph on `device`."""
        tensors = {
            name: getattr(self.graph, name).to(device) for name in ("x", "edges", "y", "train", "val", "test")
        }
        return type(self)(replace(self.graph, **tensors), self.sparse)

    def steps_per_epoch(self, batch: int) -> int:
        """Return 1: the graph is one batch."""
        return 1

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Give the training nodes once."""
        yield self.graph.train

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the cross-entropy on the nodes in `batch`."""
        return F.cross_entropy(model(self.x, self.propagation)[batch], self.graph.y[batch])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss and accuracy on the test nodes, and the accuracy on the validation nodes."""
        logits = model(self.x, self.propagation)
        test, val, y = self.graph.test, self.graph.val, self.graph.y
        return {
            "loss": float(F.cross_entropy(logits[test], y[test])),
            "accuracy": float((logits[test].argmax(1) == y[test]).double().mean()),
            "val_accuracy": float((logits[val].argmax(1) == y[val]).double().mean()),
        }


def normalised_adjacency(edges: Tensor, nodes: int) -> Tensor:
    """Return D^-1/2 (A + I) D^-1/2 as a sparse (N, N) matrix, D the row sums of A + I (Kipf and Welling, 2017).

    `edges` is (2, E) with both directions; a self loop of its own is not counted beside the added one.
    """
    edges = edges[:, edges[0] != edges[1]]
    loops = torch.arange(nodes, device=edges.device).expand(2, nodes)
    source, target = torch.cat([edges, loops], dim=1)
    scale = torch.bincount(target, minlength=nodes).float().rsqrt()
    values = scale[source] * scale[target]
    indices = torch.stack([target, source])
    return torch.sparse_coo_tensor(indices, values, (nodes, nodes), check_invariants=False).coalesce()


class GCN(nn.Module):
    """A graph convolutional network: each layer is activation(P x W), the last one without activation.

    `activation` is a factory; dropout acts on the input of each layer.  Takes features (N, F), dense or
    sparse, and the sparse propagation matrix (N, N); gives logits (N, K).  Kipf and Welling (2017),
    equation 9.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        width: int = 16,
        depth: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        sizes = [features, *[width] * (depth - 1), num_classes]
        layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        self.layers = nn.ModuleList(layers)
        self.biases = nn.ParameterList(torch.zeros(b) for b in sizes[1:])
        self.activations = nn.ModuleList(apart(activation) for _ in sizes[1:-1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, propagation: Tensor) -> Tensor:
        """Return the logits of every node."""
        for i, (layer, bias) in enumerate(zip(self.layers, self.biases, strict=True)):
            x = torch.sparse.mm(propagation, self._transform(layer, x)) + bias
            if i < len(self.activations):
                x = self.activations[i](x)
        return x

    def _transform(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return dropout(x) W; of a sparse x only the stored numbers are drawn for."""
        if not x.is_sparse:
            out: Tensor = layer(self.dropout(x))
            return out
        values = self.dropout(x.values())
        x = torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True, check_invariants=False)
        product: Tensor = torch.sparse.mm(x, layer.get_parameter("weight").T)
        return product

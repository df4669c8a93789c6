"""A graph network that changes the features of nodes and edges a little, as in the authors' code."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.papers.sparsity._weight_graphs import KERNEL, NODE


def aggregate(messages: Tensor, target: Tensor, count: int) -> Tensor:
    """Return mean, deviation, maximum, minimum (count, 4 D) of messages (E, D) by targets (E,); 0 of none."""
    size = (count, messages.shape[1])
    zeros, index = messages.new_zeros(size), target[:, None].expand_as(messages)
    number = (
        messages.new_zeros(count).index_add(0, target, messages.new_ones(len(target))).clamp_min(1)[:, None]
    )
    mean = zeros.index_add(0, target, messages) / number
    square = zeros.index_add(0, target, messages.square()) / number
    variance = square - mean.square()
    deviation = torch.where(variance > 1e-5, variance.clamp_min(1e-5).sqrt(), 0.0)
    most, least = (
        zeros.scatter_reduce(0, index, messages, how, include_self=False) for how in ("amax", "amin")
    )
    return torch.cat([mean, deviation, most, least], 1)


class MessagePassing(nn.Module):
    """Messages z_to * x_from * edge, aggregated four ways; each edge gets the product of its ends and itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out, self.first, self.second = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU()) for _ in range(4)
        )
        self.down = nn.Linear(4 * width, width)

    def forward(self, nodes: Tensor, edges: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return changes of nodes (N, D) and of edges (E, D)."""
        source, target = edges
        messages = self.out(nodes)[target] * self.into(nodes)[source] * features
        changed = self.down(aggregate(messages, target, len(nodes)))
        return changed, self.first(nodes)[source] * self.second(nodes)[target] * features


def _decoder(width: int, out: int) -> nn.Sequential:
    norm = nn.LayerNorm(width, elementwise_affine=False)
    return nn.Sequential(norm, nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out))


class Metanetwork(nn.Module):
    """Graph features -> graph features, the old ones plus `ratio` times what the decoders give.

    Every layer passes messages along the edges and, with half of the edges' features negated, against them.

    Args:
        layers: of message passing, 8 in the paper.
        width: of the hidden features.
        ratio: of the change of nodes and of edges.
    """

    inverter: Tensor

    def __init__(self, layers: int = 8, width: int = 64, ratio: float = 0.01) -> None:
        super().__init__()
        self.ratio = ratio
        self.node_encoder, self.edge_encoder = nn.Linear(len(NODE), width), nn.Linear(KERNEL, width)
        self.layers = nn.ModuleList(MessagePassing(width) for _ in range(layers))
        self.node_decoder, self.edge_decoder = _decoder(width, len(NODE)), _decoder(width, KERNEL)
        half = torch.ones(width)
        half[width // 2 :] = -1
        self.register_buffer("inverter", half)

    def forward(self, nodes: Tensor, edges: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Return new features of nodes (N, 8) and of edges (E, 9); `edges` (2, E) from and to."""
        hidden, features = self.node_encoder(nodes), self.edge_encoder(kernels)
        for layer in self.layers:
            normed = F.layer_norm(hidden, hidden.shape[-1:])
            along, edge_along = layer(normed, edges, features)
            against, edge_against = layer(normed, edges.flip(0), self.inverter * features)
            hidden = hidden + along + against
            features = features + edge_along + self.inverter * edge_against
        new_nodes = nodes + self.ratio * self.node_decoder(hidden)
        return new_nodes, kernels + self.ratio * self.edge_decoder(features)

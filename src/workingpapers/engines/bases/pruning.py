"""How large edges are, a penalty that makes them few, and what remains when the small ones are cut."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workingpapers.engines.bases.layer import BasisLinear
from workingpapers.errors import WorkingPapersError

ELEMENTS = 2**20  # edge values at a time


def edge_magnitudes(layer: BasisLinear, x: Tensor) -> Tensor:
    """Return the mean absolute value of each edge's function over x (N, I), (O, I); differentiable.

    The values of all edges are made for some examples at a time, again in the backward pass, and never kept.
    """
    if len(x) < 1:
        raise WorkingPapersError(
            "the size of an edge's function is measured on at least one example; got none"
        )
    rows = max(1, ELEMENTS // (layer.in_features * layer.out_features))
    total = x.new_zeros(layer.out_features, layer.in_features)
    for part in x.split(rows):
        total = total + checkpoint(_sum_of_sizes, layer, part, use_reentrant=False)
    return total / len(x)


def _sum_of_sizes(layer: BasisLinear, x: Tensor) -> Tensor:
    return layer.edges(x).abs().sum(0)


def regularisation(layer: BasisLinear, x: Tensor, l1: float = 1.0, entropy: float = 1.0) -> Tensor:
    """Return l1 * L + entropy * S: L the sum of the edges' mean absolute values on x, S their shares' entropy.

    S = -sum p log p with p = |phi_ij| / L.  Source: "KAN: Kolmogorov-Arnold Networks", Section 2.5.1.
    """
    sizes = edge_magnitudes(layer, x)
    total = sizes.sum()
    shares = sizes / total.clamp_min(torch.finfo(sizes.dtype).tiny)
    penalty: Tensor = l1 * total + entropy * torch.special.entr(shares).sum()
    return penalty


@torch.no_grad()
def prune_edges(layer: BasisLinear, x: Tensor, threshold: float = 1e-2) -> int:
    """Switch off, in the layer's mask, edges smaller than `threshold` on x; return how many are left."""
    layer.mask.mul_(edge_magnitudes(layer, x) >= threshold)
    return int(layer.mask.sum())


@torch.no_grad()
def prune_nodes(
    layers: Sequence[BasisLinear], x: Tensor, threshold: float = 1e-2
) -> tuple[nn.Sequential, list[list[int]]]:
    """Return smaller copies of a stack of layers without hidden nodes that matter little, and which nodes stay.

    A hidden node stays if its largest edge in and its largest edge out are at least `threshold` on the examples
    x of the first layer.  A bias of the layer after is not changed.  Source: "KAN", Section 2.5.1 (node level).
    """
    sizes = []
    for layer in layers:
        sizes.append(edge_magnitudes(layer, x))
        x = layer(x)
    kept = [list(range(layers[0].in_features))]
    for number, (into, out) in enumerate(pairwise(sizes)):
        matters = (into.amax(1) >= threshold) & (out.amax(0) >= threshold)
        kept.append(matters.nonzero().flatten().tolist())
        if not kept[-1]:
            raise WorkingPapersError(
                f"no node behind layer {number} is as large as {threshold}; give a lower threshold"
            )
    kept.append(list(range(layers[-1].out_features)))
    small = [layer.select(a, b) for layer, a, b in zip(layers, kept[:-1], kept[1:], strict=True)]
    return nn.Sequential(*small), kept

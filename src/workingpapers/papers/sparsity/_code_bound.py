"""A bound on the error of a sparse perceptron by counting: what a prefix code for its rounded weights costs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workingpapers.papers.sparsity._chains import (
    chain_of,
    gaps,
    inputs_of,
    lengths,
    linear_layers,
    margins,
    run,
    spectral,
)
from workingpapers.papers.sparsity._sketching import sketch_size, spread

KEEPS = tuple(k / 10 for k in range(1, 11))  # what `report` chooses the share to keep from
MARGINS = tuple(2.0**k for k in range(-20, 21))
BITS = tuple(range(2, 31))


@dataclass(frozen=True)
class Bound:
    """A bound: `value` = `margin_loss` + `complexity`, for all but a share delta of training sets.

    `numbers` of `levels` levels each are stored, which with their places cost `nats`; `sparsity` of the weights is
    gone.
    """

    value: float
    margin_loss: float
    complexity: float
    margin: float
    numbers: int
    levels: int
    nats: float
    sparsity: float


def layer_code(weight: Tensor, levels: int, c: float = 1.0) -> tuple[float, int]:
    """Return (nats, numbers) of the cheapest way to store a sparse matrix of values with `levels` levels.

    The ways: all entries; the non-zeros and their places; a sketch, whose sums have up to as many times more levels
    as there are non-zeros.
    """
    rows, columns = weight.shape
    size, count, each = rows * columns, int((weight != 0).sum()), math.log(levels)
    places = (
        math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1) + math.log(size + 1)
    )
    j = spread(weight.cpu().numpy())
    sketched = sketch_size(rows, j, c) * sketch_size(columns, j, c)
    ways = [
        (size * each, size),
        (count * each + places, count),
        (sketched * (each + math.log(max(count, 1))), sketched),
    ]
    nats, numbers = min(ways)
    return nats + math.log(len(ways)), numbers


@torch.no_grad()
def bound(
    model: nn.Module, x: Tensor, y: Tensor, delta: float = 0.05, c: float = 1.0, missed: float = 0.1
) -> Bound:
    """Bound the error of a pruned perceptron, with its weights rounded, by its training examples.

    Args:
        model: such as `prune` returns.
        x, y: the examples that it was trained on, (N, ...) and (N,).
        delta: probability that the bound fails.
        c: factor in the sketch's size.
        missed: the margin is the largest power of 2 below which at most this share of the examples lies.
    """
    chain = chain_of(model)
    rows = inputs_of(model, x)
    far = margins(run(chain, rows)[-1], y)
    fitting = [m for m in MARGINS if float((far <= m).double().mean()) <= missed]
    margin = max(fitting, default=MARGINS[0])
    norms, before = [spectral(w) for w in chain], lengths(chain, rows)
    for bits in BITS:
        levels = 2**bits - 1
        steps = [2 * float(w.abs().max()) / (levels - 1) for w in chain]
        errors = [s / 2 * math.sqrt(int((w != 0).sum())) for s, w in zip(steps, chain, strict=True)]
        gap = gaps(errors, before, [n + e for n, e in zip(norms, errors, strict=True)])
        if math.sqrt(2) * float(gap.max()) <= margin:  # then no example with the margin is lost by rounding
            break
    layers = linear_layers(model)
    codes = [layer_code(layer.weight.detach() * getattr(layer, "mask", 1), levels, c) for layer in layers]
    biases = sum(0 if layer.bias is None else layer.bias.numel() for layer in layers)
    scales = len(layers) * 32 * math.log(2)
    nats = sum(n for n, _ in codes) + biases * math.log(levels) + scales
    choices = math.log(len(MARGINS) * len(BITS) * len(KEEPS) / delta)
    complexity = math.sqrt((nats + choices) / (2 * len(rows)))
    loss = float((far <= margin).double().mean())
    total = sum(layer.weight.numel() for layer in layers)
    left = sum(int((layer.weight * getattr(layer, "mask", 1) != 0).sum()) for layer in layers)
    numbers = sum(n for _, n in codes) + biases
    return Bound(loss + complexity, loss, complexity, margin, numbers, levels, nats, 1 - left / total)

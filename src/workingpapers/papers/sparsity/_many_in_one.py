"""What SortedNet is measured against: the sandwich rule, the claims' network, and the accuracies of all sizes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.papers.sparsity._cutting import cut_out
from workingpapers.papers.sparsity._slices import Size, at
from workingpapers.tasks.models import ResidualBlock

SIZES = (tuple(k / 8 for k in range(1, 9)), (4, 5, 6, 7, 8))  # widths and depths: 40 sub-models

Table = dict[Size, float]


def block_net(width: int, channels: int = 3, classes: int = 10) -> nn.Module:
    """Build a strided stem and eight residual blocks of one width: (B, C, H, W) -> (B, classes)."""
    blocks = nn.Sequential(*(ResidualBlock(width, width, 1, nn.ReLU, True) for _ in range(8)))
    stem = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
    return nn.Sequential(
        stem, nn.BatchNorm2d(width), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def sandwich(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sizes: Sequence[Size],
    steps: int,
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
) -> list[float]:
    """Train a sliceable classifier in place by the sandwich rule of US-Nets; return the loss of the full size.

    Each step takes one mini-batch: the full size learns the labels, the smallest and two random ones learn what the
    full size gives.  `sizes` are in order, the smallest first; Adam.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        optimizer.zero_grad()
        with at(model, sizes[-1]):
            logits = model(x[chosen])
            loss = F.cross_entropy(logits, y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
        taught = logits.detach().softmax(1)
        drawn = torch.randint(len(sizes), (2,), generator=generator).tolist()
        for size in (sizes[0], *(sizes[i] for i in drawn)):
            with at(model, size):
                F.cross_entropy(model(x[chosen]), taught).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def accuracies(model: nn.Module, split: Split, sizes: Sequence[Size], calibration: int = 500) -> Table:
    """Return the test accuracy of each size, cut out, its batch norms' statistics taken from training images."""
    found = {}
    for size in sizes:
        small = cut_out(model, split.x_test[:2], size, split.x_train[:calibration]).eval()
        guesses = torch.cat([small(part).argmax(1) for part in split.x_test.split(500)])
        found[replace(size)] = float((guesses == split.y_test).double().mean())
    return found


def mean(table: Table) -> float:
    """Return the mean accuracy."""
    return sum(table.values()) / len(table)


def area(table: Table, costs: dict[Size, float]) -> float:
    """Return the area under the best accuracy up to each cost, in units of the largest cost."""
    most = max(costs.values())
    points = sorted((costs[size] / most, value) for size, value in table.items())
    total, best, before = 0.0, 0.0, 0.0
    for at_cost, value in points:
        total += best * (at_cost - before)
        best, before = max(best, value), at_cost
    return total

"""Supervised learning of targets that move: labels are shuffled anew from time to time, or never."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import unknown
from workingpapers.papers.rl._dormant import Recycler, dormancy, overlap
from workingpapers.tasks import initialise, mlp

METHODS = ("plain", "redo", "random", "last_layer", "weight_decay", "layer_norm")


@dataclass
class Stream:
    """What a run saw at the end of each period: training accuracy, dormant share, overlap with the one before."""

    accuracy: list[float] = field(default_factory=list)
    dormant: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)


def stream(
    split: Split,
    method: str = "plain",
    moving: bool = True,
    periods: int = 25,
    period: int = 100,
    lr: float = 3e-3,
    tau: float = 0.025,
    seed: int = 0,
) -> Stream:
    """Train a perceptron of two hidden layers of 128 by Adam on labels that are shuffled anew for every period.

    Args:
        method: "plain"; "redo" (tau 0.1, each period) or "random" for as many units drawn blindly; "last_layer",
            which resets the last layer each period; "weight_decay" (0.01, decoupled); "layer_norm".
        moving: False keeps the true labels.
        periods, period: how many, and how many steps each.
        tau: for the dormant share that is reported, on 512 training examples.
        seed: of initialisation, batches and labels.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    norm: Callable[[int], nn.Module] | None = nn.LayerNorm if method == "layer_norm" else None
    sizes = [split.x_train[0].numel(), 128, 128, split.num_classes]
    model = initialise(partial(mlp, sizes, norm=norm), seed)
    decay = 1e-2 if method == "weight_decay" else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)
    recycler = Recycler(
        model, optimizer, every=period, choose="random" if method == "random" else "dormant", seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    seen = Stream()
    before: dict[str, Tensor] = {}
    for _ in range(periods):
        order = torch.randperm(len(split.y_train), generator=generator)
        labels = split.y_train[order] if moving else split.y_train
        for _ in range(period):
            chosen = torch.randint(len(labels), (64,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(split.x_train[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = dormancy(model, split.x_train[:512])
        seen.accuracy.append(accuracy(model, split.x_train, labels))
        seen.dormant.append(found.share(tau))
        now = found.dormant(tau)
        seen.overlaps += [overlap(before, now)] if before else []
        before = now
        if method in ("redo", "random"):
            recycler.updates += period
            recycler.recycle(split.x_train[chosen])
        elif method == "last_layer":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                model[-1].reset_parameters()  # type: ignore[operator]
    return seen


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share of examples answered as the labels say."""
    return float((model(x).argmax(1) == labels).double().mean())

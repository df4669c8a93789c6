"""Several small networks trained side by side as one: batched matrices, so that many starts cost little more."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from workingpapers.data import Split
from workingpapers.tasks.problems import Classification

Factory = Callable[[], nn.Module]


class Ensemble(nn.Module):
    """`count` perceptrons of the layer widths `sizes`, inputs (B, sizes[0]) -> outputs (B, count, sizes[-1]).

    Weights start Gaussian with variance 1 / fan-in, by `seed`, biases at 0; the activation is the same for all.
    """

    def __init__(self, sizes: Sequence[int], activation: Factory, count: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            start = torch.randn(count, fan_in, fan_out, generator=generator) / fan_in**0.5
            self.weights.append(nn.Parameter(start))
            self.biases.append(nn.Parameter(torch.zeros(count, 1, fan_out)))
        self.activation = activation()

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Return the activations (count, B, units) of each hidden layer, and the outputs last."""
        found = []
        h = x.flatten(1).expand(len(self.weights[0]), -1, -1)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b, h, w)
            h = self.activation(h) if i < len(self.weights) - 1 else h
            found.append(h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all members."""
        return self.hidden(x)[-1].transpose(0, 1)


class SideBySide(Classification):
    """Cross-entropy of each member, added up, so that each takes the steps it would take alone."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum over members of the mean loss on a batch."""
        return member_losses(model(batch[0]), batch[1]).sum()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss and accuracy on the test part, means over the members."""
        outputs, y = model(self.split.x_test), self.split.y_test
        loss, right = member_losses(outputs, y).mean(), member_accuracies(outputs, y).mean()
        return {"loss": float(loss.detach()), "accuracy": float(right)}


def side_by_side(split: Split) -> SideBySide:
    """Return the problem of a split for an `Ensemble`."""
    return SideBySide(split, None)


def member_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy (count,) of each member's outputs (B, count, classes)."""
    return F.cross_entropy(
        outputs.transpose(1, 2), y[:, None].expand(outputs.shape[:2]), reduction="none"
    ).mean(0)


def member_accuracies(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the accuracy (count,) of each member's outputs (B, count, classes)."""
    return (outputs.argmax(2) == y[:, None]).double().mean(0)


def adam_on_weights(decay: float) -> Callable[[Iterable[Any], float], Optimizer]:
    """Return a maker of Adam with the penalty decay / 2 |W|^2 on weight matrices and none on biases.

    Biases are the parameters with a dimension of 1 next to last, as in `Ensemble`, or with one dimension.
    """

    def make(parameters: Iterable[Any], lr: float) -> Optimizer:
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for p in parameters:
            groups[p.ndim > 1 and p.shape[-2] > 1].append(p)
        both: list[dict[str, Any]] = [
            {"params": groups[True], "weight_decay": decay},
            {"params": groups[False]},
        ]
        return torch.optim.Adam(both, lr, fused=True)

    return make

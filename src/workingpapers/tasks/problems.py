"""What is to be learnt: where the batches come from, what the loss is, and how the test part is measured.

The training loop knows a problem by five things (`Problem`); everything else about a task is in here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError

Batch = Any  # whatever a problem's own `loss` takes
Loss = Callable[[Tensor, Tensor], Tensor]

EVALUATION_BATCH = 1000


class Problem(ABC):
    """Batches, a loss and a measurement; `metrics` names what `evaluate` returns, "loss" first."""

    metrics: tuple[str, ...]

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Return the problem with its data on `device`."""

    @abstractmethod
    def steps_per_epoch(self, batch: int) -> int:
        """Return how many batches of the size `batch` make an epoch."""

    @abstractmethod
    def batches(self, batch: int, generator: torch.Generator) -> Iterator[Batch]:
        """Give the batches of one epoch in an order that `generator` alone decides."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss (scalar) of the model on a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measure the model, which is in evaluation mode, on the whole test part."""


def order(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Give shuffled indices below `count` in batches; what is left over for no full batch sits this epoch out."""
    shuffled = torch.randperm(count, generator=generator)
    size = min(batch, count)
    for start in range(0, count - size + 1, size):
        yield shuffled[start : start + size]


def full_batches(count: int, batch: int) -> int:
    """Return how many batches `order` gives."""
    return max(count // batch, 1)


def together(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give `x` and `y` in parts of `size` rows, in order."""
    return zip(torch.split(x, size), torch.split(y, size), strict=True)


class _Supervised(Problem):
    """Pairs of inputs and targets; the metrics are means of per-sample scores over the test part."""

    def __init__(self, split: Split, loss: Loss | None) -> None:
        self.split = split
        self.criterion = loss or self.default_loss()

    @abstractmethod
    def default_loss(self) -> Loss:
        """Return the loss used where none is given."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return per-sample scores (N,) whose means are metrics."""

    def to(self, device: torch.device) -> Self:
        """Return the problem with its data on `device`."""
        s = self.split
        tensors = {name: getattr(s, name).to(device) for name in ("x_train", "y_train", "x_test", "y_test")}
        return type(self)(replace(s, **tensors), self.criterion)

    def steps_per_epoch(self, batch: int) -> int:
        """Return how many full batches the training part has."""
        return full_batches(len(self.split.x_train), batch)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the training part in shuffled full batches."""
        for chosen in order(len(self.split.x_train), batch, generator):
            chosen = chosen.to(self.split.x_train.device)
            yield self.split.x_train[chosen], self.split.y_train[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the criterion of the outputs and the targets."""
        return self.criterion(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean loss and scores over the test part."""
        x, y = self.split.x_test, self.split.y_test
        sums: dict[str, float] = {}
        for xs, ys in together(x, y, EVALUATION_BATCH):
            outputs = model(xs)
            found = {"loss": self.criterion(outputs, ys) * len(ys)}
            found |= {name: score.double().sum() for name, score in self.scores(outputs, ys).items()}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / len(x) for name, value in sums.items()}


class Classification(_Supervised):
    """Class labels: cross-entropy to train, loss and accuracy to measure."""

    metrics = ("loss", "accuracy")

    def default_loss(self) -> Loss:
        """Return the cross-entropy of logits (N, K) and labels (N,)."""
        return F.cross_entropy

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return which samples have their largest output at the label."""
        return {"accuracy": outputs.argmax(1) == targets}


class Regression(_Supervised):
    """Real targets (N, D): squared error to train; loss, mse and, in the targets' own units, rmse to measure."""

    metrics = ("loss", "mse", "rmse")

    def default_loss(self) -> Loss:
        """Return the mean squared error, whose arguments must have the same shape."""
        return squared_error

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the squared error of each sample."""
        return {"mse": (outputs - targets).square().flatten(1).mean(1)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss, mse, and rmse in the targets' own units."""
        measured = super().evaluate(model)
        return {**measured, "rmse": math.sqrt(measured["mse"]) * self.split.y_std}


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error; unlike torch's, refuse shapes that would only fit by broadcasting."""
    if outputs.shape != targets.shape:
        raise WorkingPapersError(
            f"the model's outputs have the shape {tuple(outputs.shape)}, the targets {tuple(targets.shape)}"
        )
    return F.mse_loss(outputs, targets)


def supervised(split: Split, loss: Loss | None = None) -> Problem:
    """Return the problem of a split: classification where it has classes, else regression."""
    return Classification(split, loss) if split.num_classes else Regression(split, loss)

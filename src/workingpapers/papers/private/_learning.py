"""Training with a teacher: its logits on the training part are computed once, and every method adds what it
needs."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import Budget, Result, fit, initialise, residual_cnn
from workingpapers.tasks.problems import Classification, order
from workingpapers.tasks.training import MakeOptimizer

Batch = tuple[Tensor, Tensor, Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(model, outputs, labels, the teacher's logits, which rows of the training part) -> loss."""


def distillation(
    outputs: Tensor, targets: Tensor, taught: Tensor, weight: float = 0.9, temperature: float = 4.0
) -> Tensor:
    """Return (1 - weight) cross-entropy + weight T^2 KL(teacher at T || student at T), means over the batch.

    outputs, taught: logits (B, K); targets: (B,).
    """
    return (1 - weight) * F.cross_entropy(outputs, targets) + weight * softened(outputs, taught, temperature)


def softened(outputs: Tensor, taught: Tensor, temperature: float = 4.0) -> Tensor:
    """Return T^2 times the divergence of the softened distributions (Hinton et al., 2015)."""
    student, teacher = ((logits / temperature).log_softmax(1) for logits in (outputs, taught))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class Taught(Classification):
    """Classification whose loss also sees the teacher's logits and which examples these are."""

    def __init__(self, split: Split, taught: Tensor, objective: Objective) -> None:
        super().__init__(split, None)
        self.taught, self.objective = taught, objective

    def to(self, device: torch.device) -> Self:
        """Return the problem with its data on `device`."""
        names = ("x_train", "y_train", "x_test", "y_test")
        moved = replace(self.split, **{n: getattr(self.split, n).to(device) for n in names})
        return type(self)(moved, self.taught.to(device), self.objective)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[Batch]:  # type: ignore[override]
        """Give inputs, labels and row numbers in shuffled full batches."""
        for rows in order(len(self.split.x_train), batch, generator):
            rows = rows.to(self.split.x_train.device)
            yield self.split.x_train[rows], self.split.y_train[rows], rows

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:  # type: ignore[override]
        """Return the objective on a batch."""
        x, y, rows = batch
        return self.objective(model, model(x), y, self.taught[rows], rows)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Return what `model` gives for `x` in evaluation mode; its modes stay as they are."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.cat([model(part) for part in x.split(batch)])
    finally:
        for module, mode in modes.items():
            module.training = mode


def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of test examples that `model` classifies right."""
    return float((logits(model, split.x_test).argmax(1) == split.y_test).double().mean())


def train(
    model: nn.Module,
    split: Split,
    by: nn.Module | None,
    epochs: int,
    *,
    lr: float = 1e-3,
    seed: int = 0,
    objective: Objective | None = None,
    optimizer: str | MakeOptimizer = "adam",
) -> Result | None:
    """Train `model` in place by Adam with a cosine schedule and leave it in the mode it was in.

    By default the loss is `distillation` from the teacher `by`, or cross-entropy where that is None.  0
    epochs do nothing.
    """
    if epochs < 0:
        raise WorkingPapersError(f"epochs is a count of at least 0; got {epochs}")
    if not epochs:
        return None
    mode = model.training
    device = next(model.parameters()).device
    problem: Split | Taught = split
    if by is not None:
        taught = logits(by.to(device), split.x_train.to(device))
        problem = Taught(split, taught, objective or _plain)
    how: dict[str, Any] = {"lr": lr, "optimizer": optimizer, "seed": seed, "schedule": "cosine"}
    done = fit(model, problem, epochs=epochs, device=device, every=10**9, **how)
    model.train(mode)
    return done


def _plain(model: nn.Module, outputs: Tensor, targets: Tensor, taught: Tensor, rows: Tensor) -> Tensor:
    return distillation(outputs, targets, taught)


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy that does not learn, to teach others."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def cifar(budget: Budget, seed: int) -> Split:
    """Return CIFAR-10 pooled to 16x16, the choice of images by `seed`."""
    train_count, test_count = budget.pick(quick=(4000, 2000), full=(20_000, 5000))
    return images("cifar10", train=train_count, test=test_count, size=16, seed=seed)


def fashion(budget: Budget, seed: int) -> Split:
    """Return Fashion-MNIST pooled to 14x14, the choice of images by `seed`."""
    train_count, test_count = budget.pick(quick=(3000, 2000), full=(20_000, 5000))
    return images("fashion_mnist", train=train_count, test=test_count, size=14, seed=seed)


def teacher(budget: Budget, split: Split, seed: int) -> nn.Module:
    """Return a residual network of four stages for Fashion-MNIST, trained."""
    widths = budget.pick(quick=(8, 16, 32, 64), full=(16, 32, 64, 128))
    model = initialise(partial(residual_cnn, split.x_train.shape[1], split.num_classes, widths), seed)
    train(model, split, None, budget.pick(quick=6, full=30), lr=2e-3, seed=seed)
    return model


def check_split(split: object) -> Split:
    """Return `split`, which must be a data set of classes.

    Raises:
        WorkingPapersError: where it is none.
    """
    if not isinstance(split, Split) or not split.num_classes:
        raise WorkingPapersError(
            f"this takes a Split of classes, such as images('digits'); got {type(split).__name__}"
        )
    return split

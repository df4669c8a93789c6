"""Training masked convolutions: the predictors' loss beside the task's, with the authors' schedule."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.papers.sparsity._masked_convs import Record, masked_convs, recording
from workingpapers.tasks import Classification, Result, fit


def mask_loss(records: dict[str, list[Record]]) -> Tensor:
    """Return the predictors' loss from what `recording` noted: summed over filters, averaged over all else."""
    pairs = [pair for layer in records.values() for pair in layer]
    losses = [
        F.binary_cross_entropy_with_logits(p, wanted.to(p.dtype), reduction="none").sum(1).mean()
        for p, wanted in pairs
    ]
    return torch.stack(losses).mean()


class _WithMasks(Classification):
    """Classification whose loss has the predictors' beside it for the first steps."""

    def __init__(self, split: Split, criterion: Any = None, steps: int = 0) -> None:
        super().__init__(split, criterion)
        self.left = steps

    def to(self, device: torch.device) -> Self:
        """Return the problem with its data on `device`."""
        moved = super().to(device)
        moved.left = self.left
        return moved

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch; without the predictors' part these get no gradient and stay."""
        self.left -= 1
        if self.left < 0:
            return super().loss(model, batch)
        with recording(model) as records:
            return super().loss(model, batch) + mask_loss(records)


def finetune(
    model: nn.Module,
    split: Split,
    epochs: int = 200,
    lr: float = 1e-2,
    predictor_lr: float = 0.1,
    cooldown: float = 0.5,
    batch: int = 128,
    seed: int = 0,
) -> Result:
    """Train a masked classifier in place with SGD of momentum 0.9, as the authors do, and measure it.

    Args:
        model: from `ftwt`, its layers trained before.
        split: the data.
        epochs: in all; learning rates fall to a tenth after 40, 61 and 76 % of them.
        lr: of the layers, with weight decay 5e-4.
        predictor_lr: of the predictors, without weight decay.
        cooldown: share of the epochs after which the predictors stay as they are.
        batch, seed: as for `fit`.
    """
    predictors = {p for layer in masked_convs(model).values() for p in layer.predictor.parameters()}

    def optimizer(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        every = list(parameters)
        groups = [
            {"params": [p for p in every if p not in predictors], "lr": rate, "weight_decay": 5e-4},
            {"params": [p for p in every if p in predictors], "lr": predictor_lr},
        ]
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)

    problem = _WithMasks(split, steps=int(cooldown * epochs) * max(1, len(split.x_train) // batch))
    falling = lambda done: 0.1 ** sum(done >= at for at in (0.405, 0.61, 0.755))  # noqa: E731
    return fit(
        model, problem, epochs=epochs, lr=lr, optimizer=optimizer, batch=batch, schedule=falling, seed=seed,
        every=10**9,
    )  # fmt: skip

"""Checks of losses: a finite number, less for the right outputs, with a true gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, expect, expect_none
from workingpapers.contracts._snapshot import changes, snapshot
from workingpapers.contracts._tensors import (
    floating,
    gradients,
    map_floating,
    with_gradients,
)
from workingpapers.contracts._trainer import TrainerSubject, trains

contract = Contract(TrainerSubject)


@contract.check(
    "finite number", "the loss is one finite number, for wrong outputs and for perfect ones", trains("loss")
)
def _finite_number(subject: TrainerSubject) -> None:
    for what, loss in zip(("wrong", "perfect"), _losses(subject), strict=True):
        expect(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}")
        expect(bool(torch.isfinite(loss)), f"the loss of the {what} outputs is {float(loss)}")


def _losses(subject: TrainerSubject) -> tuple[Tensor, Tensor]:
    """Return the loss of the example's outputs and of its perfect ones."""
    outputs, targets, perfect = subject.arguments()
    return subject.make()(outputs, targets), subject.make()(perfect, targets)


@contract.check("rewards the right", "perfect outputs cost less than wrong ones", trains("loss"))
def _rewards_the_right(subject: TrainerSubject) -> None:
    wrong, right = (float(loss) for loss in _losses(subject))
    expect(right < wrong, f"the perfect outputs cost {right:.6g} and the wrong ones {wrong:.6g}")


@contract.check(
    "gradients",
    "the gradient by the outputs equals finite differences in float64, and a small step "
    "against it lowers the loss",
    trains("loss"),
)
def _gradients(subject: TrainerSubject) -> None:
    given, targets, _ = map_floating(lambda t: t.double(), subject.arguments())
    loss: Any = subject.make()
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    outputs = with_gradients(given)
    slopes = gradients(loss(outputs, targets), floating(outputs))
    along = [slope / sum(float(s.square().sum()) for s in slopes) ** 0.5 for slope in slopes]

    def moved(step: float) -> float:
        directions = iter(along)
        return float(loss(map_floating(lambda t: t + step * next(directions), given), targets))

    steepness = sum(float((s * a).sum()) for s, a in zip(slopes, along, strict=True))
    numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
    expect(
        abs(numeric - steepness) <= 1e-5 * (1 + abs(steepness)),
        f"along the gradient the loss rises by {numeric:.6g} a unit, by backward it is {steepness:.6g}",
    )
    expect(moved(-1e-4) < moved(0.0), "a step against the gradient does not lower the loss")


@contract.check("inputs untouched", "a loss leaves outputs and targets as they were", trains("loss"))
def _inputs_untouched(subject: TrainerSubject) -> None:
    outputs, targets, _ = subject.arguments()
    before = snapshot((outputs, targets))
    subject.make()(outputs, targets)
    expect_none(changes(before, snapshot((outputs, targets))), "it changed {}")

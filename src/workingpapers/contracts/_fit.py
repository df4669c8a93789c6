"""Checks of objects with `fit`: the loss falls, the seed decides, and a saved state goes on bit for bit."""

import copy
from typing import Any

import torch
from torch import nn

from workingpapers.contracts._check import Contract, expect, expect_none
from workingpapers.contracts._tensors import expect_finite
from workingpapers.contracts._trainer import TrainerSubject, trains

contract = Contract(TrainerSubject)


def _fit(trainer: Any, arguments: tuple[Any, ...], steps: int, world: int = 0) -> list[float]:
    """Return the losses of some more steps; `world` seeds the global generator."""
    torch.manual_seed(world)
    losses = trainer.fit(*arguments, steps=steps)
    expect(
        isinstance(losses, list) and len(losses) == steps,
        f"fit(..., steps={steps}) gives {repr(losses)[:60]}, not a list of {steps} losses",
    )
    return [float(loss) for loss in losses]


@contract.check(
    "lowers the loss",
    "fit(..., steps=n) gives n finite losses, and the last three average less than the first",
    trains("fit"),
)
def _lowers_the_loss(subject: TrainerSubject) -> None:
    losses = _fit(subject.make(), subject.arguments(), subject.steps)
    expect_finite(torch.tensor(losses), "the losses")
    last = sum(losses[-3:]) / len(losses[-3:])
    expect(
        last < losses[0], f"the loss was {losses[0]:.6g} at first and {last:.6g} over the last three steps"
    )


@contract.check(
    "same seed",
    "two fits from the same arguments give the same losses, whatever the global seed "
    "unless deterministic=False is declared",
    trains("fit"),
)
def _same_seed(subject: TrainerSubject) -> None:
    one, other = (_fit(subject.make(), subject.arguments(), 5, seed) for seed in subject.seeds())
    expect(one == other, f"the losses are {one} and {other}")


@contract.check(
    "resumes a fit",
    "half the steps, saving trainer and models, loading, and the other half give "
    "what all steps give, bit for bit",
    trains("fit"),
)
def _resumes_a_fit(subject: TrainerSubject) -> None:
    half = max(1, subject.steps // 4)
    whole, arguments = subject.make(), subject.arguments()
    wanted = _fit(whole, arguments, 2 * half)
    part, halfway = subject.make(), subject.arguments()
    found = _fit(part, halfway, half)
    rest, later = subject.make(), subject.arguments()
    for saved, fresh in zip(halfway, later, strict=True):
        if isinstance(fresh, nn.Module):
            fresh.load_state_dict(copy.deepcopy(saved.state_dict()))
    rest.load_state_dict(copy.deepcopy(part.state_dict()))
    found += _fit(rest, later, half, world=1)
    expect(found == wanted, f"the losses after resuming are {found[half:]}, without a break {wanted[half:]}")
    for one, other in zip(later, arguments, strict=True):
        if isinstance(one, nn.Module):
            wanted_state = other.state_dict()
            wrong = [
                name for name, value in one.state_dict().items() if not torch.equal(value, wanted_state[name])
            ]
            expect_none(wrong, "the losses agree after resuming, but not the model, in {}")

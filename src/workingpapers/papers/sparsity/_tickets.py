"""Lottery tickets by rounds of training, pruning the smallest weights of all layers, and rewinding."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from workingpapers.data import Split
from workingpapers.engines.masks import apply_masks, keep_by_score, weights_of
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import fit, initialise


@dataclass(frozen=True)
class Ticket:
    """A network trained under its masks: share of weights left, test accuracy, and the network."""

    density: float
    accuracy: float
    model: nn.Module


def imp(
    build: Callable[[], nn.Module],
    split: Split,
    rounds: int = 8,
    rate: float = 0.2,
    rewind_step: int = 100,
    epochs: int = 5,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[Ticket]:
    """Find tickets of density (1 - rate)^r for r = 0 (dense) to `rounds`, each trained.

    Args:
        build: a factory of the network.
        split: data to train and test on.
        rounds: how often weights are taken away.
        rate: the share of the weights left that a round takes, the smallest of all layers.
        rewind_step: the step of the dense training to whose weights each round goes back; 0 is the initialisation.
        epochs: of each training.
        lr: learning rate of Adam.
        seed: of initialisation and data.
    """
    if rounds < 0 or not 0 < rate < 1 or rewind_step < 0:
        raise WorkingPapersError(
            f"rounds and steps are counts and a rate is in (0, 1); got {rounds}, {rewind_step} and {rate}"
        )
    train = partial(fit, split=split, lr=lr, seed=seed, every=10**9)
    origin = initialise(build, seed)
    work = copy.deepcopy(origin)
    if rewind_step:
        train(origin, steps=rewind_step)
    found = [Ticket(1.0, train(work, epochs=epochs).metrics["accuracy"], work)]
    for number in range(1, rounds + 1):
        sizes = {name: w.abs() for name, w in weights_of(work).items()}
        masks = keep_by_score(sizes, (1 - rate) ** number)
        work = apply_masks(copy.deepcopy(origin), masks)
        accuracy = train(work, epochs=epochs).metrics["accuracy"]
        left = sum(int(m.count_nonzero()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        found.append(Ticket(left, accuracy, work))
    return found

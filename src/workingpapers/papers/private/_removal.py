"""Which ReLUs of a network matter: stages of one resolution, networks that keep some ReLUs, and their
criticality."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private._counts import Nonlinearity, kept_of, nonlinearities, stages
from workingpapers.papers.private._learning import accuracy, frozen, train
from workingpapers.papers.private._sites import Shape, sites, with_sites

EXPONENT = 0.07


@dataclass(frozen=True)
class Stage:
    """The ReLUs of one resolution, and what a network with no others gains by them.

    Attributes:
        names: of their sites, in the order in which they run.
        relus: how many entries.
        accuracy: of the network that has only these.
        criticality: that accuracy's gain over no ReLU at all, over relus to the power of 0.07.
    """

    names: tuple[str, ...]
    relus: int
    accuracy: float
    criticality: float


def active(model: nn.Module, x: Tensor) -> list[Nonlinearity]:
    """Return the ReLUs that a model has left.

    Raises:
        WorkingPapersError: where there is none.
    """
    kept = keeping(model, x, None)
    found = [n for n in nonlinearities(kept, x[:1]) if n.activation == "relu" and n.kept]
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no ReLU left to remove")
    return found


def keeping(model: nn.Module, x: Tensor, names: Collection[str] | None) -> nn.Module:
    """Return a copy of `model` with ReLU at the named sites and the identity at all others.

    A unit of this family that stands at a named site stays, if any of its entries is nonlinear and its shape
    the same. None keeps everything as it is.
    """
    before = sites(model)

    def build(name: str, shape: Shape) -> nn.Module:
        if names is not None and name not in names:
            return nn.Identity()
        unit, old = before.get(name, (nn.ReLU(), shape))
        stays = old == shape and (names is None or kept_of(unit, 1) > 0)
        return copy.deepcopy(unit) if stays else nn.ReLU()

    return with_sites(model, x[:2], build)


def alternate(names: Sequence[str]) -> list[str]:
    """Return the names that thinning keeps: the last, and every second one before it.

    Of the two ReLUs of a residual block this drops the one between its convolutions.
    """
    dropped = set(names[-2::-2])
    return [name for name in names if name not in dropped]


def held_out(split: Split, share: float = 0.1, seed: int = 0) -> Split:
    """Return the training part of a split in two: what is left to train on, and a share to choose by."""
    count = max(1, round(share * len(split.x_train)))
    if count >= len(split.x_train):
        raise WorkingPapersError("there are too few training examples to hold any out")
    rows = torch.randperm(len(split.x_train), generator=torch.Generator().manual_seed(seed))
    away, rest = rows[:count], rows[count:]
    x, y = split.x_train, split.y_train
    return replace(split, x_train=x[rest], y_train=y[rest], x_test=x[away], y_test=y[away])


def criticality(
    model: nn.Module,
    split: Split,
    epochs: int = 10,
    exponent: float = EXPONENT,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[Stage]:
    """Return the stages of a trained network with their criticality, in the order in which they run.

    For each stage a copy with ReLUs in it alone learns from the full network by distillation; so does one
    without any. Accuracies are those on the split's test part: give a held-out one where it must not be seen
    (`held_out`).

    Source: DeepReDuce, Section 4.1; the exponent is DeepReDuce's as recalled.
    """
    teacher, groups = frozen(model), stages(active(model, split.x_train))
    linear = keeping(model, split.x_train, ())
    train(linear, split, teacher, epochs, lr=lr, seed=seed)
    base, found = accuracy(linear, split), []
    for group in groups:
        names = tuple(n.name for n in group)
        alone = keeping(model, split.x_train, names)
        train(alone, split, teacher, epochs, lr=lr, seed=seed)
        relus, reached = sum(n.kept for n in group), accuracy(alone, split)
        found.append(Stage(names, relus, reached, (reached - base) / relus**exponent))
    return found

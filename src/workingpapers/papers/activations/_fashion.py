"""What several activation papers measure by: four convolutions on small Fashion-MNIST images."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import nn

from workingpapers.data import Split, images
from workingpapers.tasks import Budget, Result, fit, initialise
from workingpapers.tasks.randomness import apart

Factory = Callable[[], nn.Module]


def fashion(budget: Budget, seed: int) -> Split:
    """Return Fashion-MNIST pooled to 14x14, the choice of images by `seed`: 4,000 to train and 2,000 to test."""
    return images(
        "fashion_mnist",
        train=budget.pick(quick=4000, full=40000),
        test=budget.pick(quick=2000, full=10000),
        size=14,
        seed=seed,
    )


def four_convolutions(activation: Factory, norm: bool = False) -> nn.Sequential:
    """Build a CNN (B, 1, 14, 14) -> (B, 10): 3x3 convolutions of 16, 16, 32, 32 channels, two poolings.

    `norm` puts batch normalisation before each activation.
    """
    layers: list[nn.Module] = []
    for place, (width_in, width) in enumerate(pairwise((1, 16, 16, 32, 32))):
        layers.append(nn.Conv2d(width_in, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(apart(activation))
        layers += [nn.MaxPool2d(2)] if place % 2 == 0 else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 3 * 3, 10))


def fitted(
    activation: Factory, split: Split, *, epochs: int, seed: int, norm: bool = False
) -> tuple[nn.Module, Result]:
    """Train `four_convolutions` by Adam from 5e-3 down, whatever the activation; the seed decides the rest."""
    model = initialise(lambda: four_convolutions(activation, norm), seed)
    return model, fit(model, split, epochs=epochs, lr=5e-3, schedule="cosine", seed=seed)


def plain_sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return gradient descent without momentum, as `fit` takes an optimizer."""
    return torch.optim.SGD(parameters, lr)

"""What several activation papers measure by: a small network on CIFAR-10, a photograph, weight noise."""

import copy
from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from workingpapers.data import Split, images
from workingpapers.tasks import Budget, Result, fit, initialise, residual_cnn


def cifar(budget: Budget, seed: int) -> Split:
    """Return CIFAR-10 pooled to 16x16, the choice of images by `seed`: 4,000 to train and 2,000 to test."""
    return images(
        "cifar10",
        train=budget.pick(quick=4000, full=20000),
        test=budget.pick(quick=2000, full=5000),
        size=16,
        seed=seed,
    )


def trained_cnn(
    activation: Callable[[], nn.Module], split: Split, *, epochs: int, seed: int
) -> tuple[nn.Module, Result]:
    """Train the residual network of 8 layers (widths 16, 32, 64) with `activation`; the seed decides the rest.

    Adam at 2e-3 for every activation, so that none is favoured by tuning.
    """
    model = initialise(lambda: residual_cnn(3, 10, activation=activation), seed)
    return model, fit(model, split, epochs=epochs, lr=2e-3, seed=seed)


def photograph() -> Tensor:
    """Return scikit-learn's photograph of a Chinese temple as (1, 3, 427, 640) float32 in [0, 1]."""
    pixels = load_sample_image("china.jpg")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of test examples that `model` classifies right, in eval mode."""
    was_training = model.training
    model.eval()
    right: int = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(torch.split(split.x_test, 500), torch.split(split.y_test, 500), strict=True)
    )
    model.train(was_training)
    return right / len(split.y_test)


@torch.no_grad()
def noise_drop(
    model: nn.Module, split: Split, *, sigmas: Sequence[float], draws: int = 5, seed: int = 0
) -> float:
    """Return the mean accuracy lost when every weight w becomes w * (1 + sigma * normal), over sigmas and draws."""
    clean, drops = accuracy(model, split), []
    generator = torch.Generator().manual_seed(seed)
    for sigma in sigmas:
        for _ in range(draws):
            noisy = copy.deepcopy(model)
            for parameter in noisy.parameters():
                parameter.mul_(1 + sigma * torch.randn(parameter.shape, generator=generator))
            drops.append(clean - accuracy(noisy, split))
    return sum(drops) / len(drops)

"""Images to be restored by regression, what the result is worth, and fronts of worth against size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError


def denoising(split: Split, sigma: float = 0.3, seed: int = 0) -> Split:
    """Return the task to find images (N, D), pixels in [0, 1], from themselves plus Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x + sigma * torch.randn(x.shape, generator=generator)

    return _pairs(split, noisy(split.x_train), noisy(split.x_test))


def super_resolution(split: Split, factor: int = 2) -> Split:
    """Return the task to find images (N, D) from their means over patches, brought back to size bilinearly."""
    size = split.x_train.shape[-1]
    if size % factor:
        raise WorkingPapersError(f"patches of {factor}x{factor} do not tile a {size}x{size} image")

    def coarse(x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode="bilinear")

    return _pairs(split, coarse(split.x_train), coarse(split.x_test))


def prototypes(split: Split) -> Tensor:
    """Return the mean training image of each class, (K, D)."""
    flat = split.x_train.flatten(1)
    return torch.stack([flat[split.y_train == k].mean(0) for k in range(split.num_classes)])


def generative_classification(split: Split) -> Split:
    """Return the task to draw the prototype of an image's class, (N, D) -> (N, D); see `nearest`."""
    drawn = prototypes(split)
    x_train, x_test = split.x_train.flatten(1), split.x_test.flatten(1)
    return replace(
        split, x_train=x_train, y_train=drawn[split.y_train], x_test=x_test, y_test=drawn[split.y_test],
        num_classes=0,
    )  # fmt: skip


def nearest(images: Tensor, drawn: Tensor) -> Tensor:
    """Return for every image (N, D) the class whose prototype (K, D) is nearest."""
    return torch.cdist(images, drawn).argmin(1)


def _pairs(split: Split, train: Tensor, test: Tensor) -> Split:
    return replace(
        split, x_train=train.flatten(1), y_train=split.x_train.flatten(1), x_test=test.flatten(1),
        y_test=split.x_test.flatten(1), num_classes=0,
    )  # fmt: skip


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in decibels of images in [0, 1] with this mean squared error."""
    return -10 * math.log10(mse)


@dataclass(frozen=True)
class Point:
    """A network's trainable parameters, its PSNR, and its skip width, hidden width and number of blocks."""

    parameters: int
    psnr: float
    skip: int
    hidden: int
    depth: int


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that none equals with fewer parameters or exceeds with as few, smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best


def hypervolume(points: Sequence[Point], most: int, least: float) -> float:
    """Return the area between the front of (ln parameters, PSNR) and the corner (ln `most`, `least`)."""
    kept = front([p for p in points if p.parameters <= most and p.psnr >= least])
    ends = [*(math.log(p.parameters) for p in kept[1:]), math.log(most)]
    return sum(
        (end - math.log(p.parameters)) * (p.psnr - least) for p, end in zip(kept, ends, strict=bool(kept))
    )


def trainable(model: nn.Module) -> int:
    """Return how many numbers of the model are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

"""Semantic segmentation in small: handwritten digits on smooth noise, heads for tokens, and what is measured."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import images
from workingpapers.tasks import Problem


@dataclass(frozen=True)
class Scenes:
    """Images (N, 1, S, S) from -2 to 2, labels (N, S, S), 10 for the background, and counts of digits (N,)."""

    x: Tensor
    y: Tensor
    digits: Tensor


def scenes(count: int, size: int, part: str, seed: int) -> Scenes:
    """Return `count` scenes of 1 to 6 digits of MNIST's `part` ("train" or "test"), of 28 x 28 on 64 x 64.

    Their places are multiples of 4 pixels, the patches that the small transformers see.
    """
    generator = torch.Generator().manual_seed(seed * 2 + (part == "test"))
    height = round(28 * size / 64)
    split = images("mnist", train=2000, test=1000, seed=seed, normalise=False)
    source, labels = (split.x_train, split.y_train) if part == "train" else (split.x_test, split.y_test)
    source = F.interpolate(source, size=(height, height), mode="area")
    noise = torch.randn(count, 1, size // 8, size // 8, generator=generator)
    x = 0.5 + 0.15 * F.interpolate(noise, size=(size, size), mode="bilinear")
    y = torch.full((count, size, size), 10)
    digits = torch.randint(1, 7, (count,), generator=generator)
    for i in range(count):
        for _ in range(int(digits[i])):
            own = int(torch.randint(len(source), (1,), generator=generator))
            a, b = (4 * torch.randint((size - height) // 4 + 1, (2,), generator=generator)).tolist()
            patch, ink = x[i, :, a : a + height, b : b + height], source[own]
            patch.copy_(torch.maximum(patch, ink))
            y[i, a : a + height, b : b + height][ink[0] > 0.4] = labels[own]
    return Scenes(4 * (x - 0.5), y, digits)


class TokenHead(nn.Module):
    """A perceptron for each token: (B, N, D) -> logits (B, N, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, classes)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.layers(tokens)
        return logits


class MaskHead(nn.Module):
    """Attention to masks: a query for each class attends to the tokens; (B, N, D) -> logits (B, N, classes).

    A token's score for a class is sigmoid(q k / sqrt(D)), its mask, times the chance that the class is there, which
    is read from what its query found; logits are the scores' logarithms.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.there = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.norm(tokens)
        scale = tokens.shape[-1] ** -0.5
        masks = self.query(self.queries) @ self.key(tokens).transpose(1, 2) * scale  # (B, classes, N)
        found = self.queries + masks.softmax(-1) @ self.value(tokens)
        logits: Tensor = F.logsigmoid(masks) + F.logsigmoid(self.there(found))
        return logits.transpose(1, 2)


HEADS = {"fcn": TokenHead, "atm": MaskHead}


class Segmentation(Problem):
    """Scenes to train and to test on; logits are (B, classes, S, S), or (heads, B, classes, S, S) with one loss."""

    metrics = ("loss",)

    def __init__(self, train: Scenes, test: Scenes) -> None:
        self.train, self.test = train, test

    def to(self, device: torch.device) -> Self:
        """Return the problem on a device."""
        moved = [
            replace(s, x=s.x.to(device), y=s.y.to(device), digits=s.digits.to(device))
            for s in (self.train, self.test)
        ]
        return type(self)(*moved)

    def steps_per_epoch(self, batch: int) -> int:
        """Return the batches of an epoch."""
        return max(len(self.train.x) // batch, 1)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Give shuffled batches."""
        order = torch.randperm(len(self.train.x), generator=generator).to(self.train.x.device)
        for chosen in order.split(batch)[: self.steps_per_epoch(batch)]:
            yield self.train.x[chosen], self.train.y[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy of all heads."""
        logits = model(batch[0])
        logits = logits if logits.ndim == 5 else logits[None]
        return F.cross_entropy(logits.flatten(0, 1), batch[1].repeat(len(logits), 1, 1))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on the first 64 test scenes."""
        return {"loss": float(self.loss(model, (self.test.x[:64], self.test.y[:64])))}


def mean_iou(guesses: Tensor, labels: Tensor, classes: int) -> float:
    """Return the mean over the classes that occur of intersection over union, all pixels together."""
    pairs = torch.bincount(labels.flatten() * classes + guesses.flatten(), minlength=classes**2)
    table = pairs.view(classes, classes).double()
    both, union = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    return float((both / union)[union > 0].mean())

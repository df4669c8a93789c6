"""Small examples of inputs and targets on which a model can be run, differentiated and trained.

Each builder returns a function (batch, generator) -> Example, as a model's `example` property wants it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.tasks.problems import Loss, squared_error


@dataclass(frozen=True)
class Example:
    """Inputs to call a model with (`model(*inputs)`), targets, and a loss (outputs, targets) -> scalar."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    loss: Loss


MakeExample = Callable[[int, torch.Generator], Example]


def images(channels: int, size: int, classes: int) -> MakeExample:
    """Make examples of Gaussian images (B, channels, size, size) with random labels (B,)."""

    def make(batch: int, generator: torch.Generator) -> Example:
        x = torch.randn(batch, channels, size, size, generator=generator)
        return Example((x,), torch.randint(classes, (batch,), generator=generator), F.cross_entropy)

    return make


def tokens(vocab: int, length: int) -> MakeExample:
    """Make examples of random token sequences (B, length), the target the same sequence one token later."""

    def make(batch: int, generator: torch.Generator) -> Example:
        windows = torch.randint(vocab, (batch, length + 1), generator=generator)
        return Example((windows[:, :-1],), windows[:, 1:], token_cross_entropy)

    return make


def vectors(features: int, outputs: int) -> MakeExample:
    """Make examples of Gaussian vectors (B, features) with Gaussian targets (B, outputs)."""

    def make(batch: int, generator: torch.Generator) -> Example:
        x = torch.randn(batch, features, generator=generator)
        return Example((x,), torch.randn(batch, outputs, generator=generator), squared_error)

    return make


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (B, T, V) and targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())

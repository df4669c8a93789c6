"""The form of a supervised data set in two parts, and a class-balanced choice from one."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """A data set for supervised learning: inputs and targets of a training and a test part.

    `y` holds int64 class labels (N,) when `num_classes` > 0, else float32 targets (N, 1), standardised by
    the training part: `y * y_std + y_mean` is in the data's own units.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    name: str
    y_mean: float = 0.0
    y_std: float = 1.0


def balanced(labels: NDArray[np.integer], count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` indices into `labels`, the classes taking turns as long as each lasts.

    Within a class the order is random by `seed`, so a smaller choice is the beginning of a larger one.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).numpy()
    shuffled = labels[order]
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        turn[members] = np.arange(len(members))
    return np.asarray(order[np.lexsort((shuffled, turn))[:count]], dtype=np.int64)


def standardise(train: Tensor, test: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Shift and scale both parts by the mean and deviation of `train` over `dims`; constants are only shifted."""
    mean = train.mean(dims, keepdim=True)
    std = train.std(dims, correction=0, keepdim=True)
    std = torch.where(std > 1e-7, std, torch.ones_like(std))
    return (train - mean) / std, (test - mean) / std

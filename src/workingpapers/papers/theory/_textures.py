"""Signals whose frequencies are known or real: textures of four bands, and a row of a photograph."""

import math

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

BANDS = ((1.0, 2.0), (2.5, 3.5), (4.0, 5.0), (5.5, 7.0))  # periods within the image


def textures(count: int, seed: int, size: int = 16, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return images (count, 1, size, size) of one wave each in normal noise, and its band of frequencies, 0 to 3.

    Direction and phase are random; the wave has amplitude 1.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % len(BANDS)
    low, high = torch.tensor(BANDS)[y].T
    periods = low + (high - low) * torch.rand(count, generator=generator)
    direction, phase = (2 * math.pi * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    place = torch.arange(size) / size
    along = direction.cos() * place[:, None] + direction.sin() * place
    waves = torch.cos(2 * math.pi * periods[:, None, None] * along + phase)
    x = waves + noise * torch.randn(waves.shape, generator=generator)
    order = torch.randperm(count, generator=generator)
    return x[order, None], y[order]


def photograph_row(length: int, seed: int) -> np.ndarray:
    """Return a random row of scikit-learn's photograph of a flower as `length` values of mean 0, interpolated."""
    photograph = load_sample_image("flower.jpg").mean(2)
    row = photograph[np.random.default_rng(seed).integers(len(photograph))]
    values = np.interp(np.linspace(0, len(row) - 1, length), np.arange(len(row)), row)
    centred: np.ndarray = values - values.mean()
    return centred

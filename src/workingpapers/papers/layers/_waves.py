"""Weights as periodic functions of what is trained, and how far the sine is from the square wave."""

import math

import torch
from torch import Tensor

from workingpapers.errors import unknown
from workingpapers.kernels import pointwise

LIMIT = 0.5 - (2 / math.pi) ** 2  # of the quantisation error, for a uniform phase


@pointwise
def sine(w: Tensor, omega: float) -> Tensor:
    """Return sin(omega w), the weights of stage 1, same shape."""
    return torch.sin(omega * w)


@pointwise
def square(w: Tensor, omega: float) -> Tensor:
    """Return sign(sin(omega w)), the weights of stage 2, +1 at 0, same shape; the gradient is that of `sine`."""
    wave = torch.sin(omega * w)
    return torch.where(wave < 0, -1.0, 1.0).detach() + (wave - wave.detach())


def quantisation_error(w: Tensor, omega: float) -> float:
    """Return QE, the least mean square between sin(omega w) and its scaled sign, over all of `w`."""
    wave = torch.sin(omega * w.detach().double())
    return float(wave.square().mean() - wave.abs().mean() ** 2)


def law_error(law: str, scale: float, omega: float, terms: int = 100_000) -> float:
    """Return QE for weights of a "laplace" (b = scale) or "gaussian" (deviation = scale) law around 0.

    By |sin z| = 2/pi - 4/pi sum_k cos(2 k z) / (4 k^2 - 1) the means are those of cosines, the laws' Fourier
    transforms; `terms` of the series suffice where omega * scale is above 1e-3.
    """
    transforms = {
        "laplace": lambda t: 1 / (1 + (scale * t) ** 2),
        "gaussian": lambda t: torch.exp(-((scale * t) ** 2) / 2),
    }
    if law not in transforms:
        raise unknown("law of weights", law, transforms)
    k = torch.arange(1, terms + 1, dtype=torch.float64)
    cosines = transforms[law](2 * omega * k)
    size = 2 / math.pi - 4 / math.pi * (cosines / (4 * k**2 - 1)).sum()
    return float((1 - cosines[0]) / 2 - size**2)

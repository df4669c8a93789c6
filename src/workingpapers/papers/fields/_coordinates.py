"""Coordinate networks to compare with, all from points (..., in_features) to (..., out_features)."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Sine(nn.Module):
    """sin(omega x), or with `variable` sin(omega (|x| + 1) x) as in FINER."""

    def __init__(self, omega: float, variable: bool = False) -> None:
        super().__init__()
        self.omega, self.variable = omega, variable

    def forward(self, x: Tensor) -> Tensor:
        """Return the sine."""
        return torch.sin(self.omega * ((x.abs() + 1) * x if self.variable else x))


class Encoding(nn.Module):
    """The coordinates, and sin(2^k pi x) and cos(2^k pi x) of each for k below `frequencies`."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) as (..., D (1 + 2 frequencies))."""
        scales = math.pi * 2 ** torch.arange(self.frequencies, device=x.device, dtype=x.dtype)
        angles = (x[..., None] * scales).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], -1)


def siren(
    width: int,
    depth: int,
    in_features: int = 2,
    out_features: int = 1,
    omega: float = 30.0,
    variable: bool = False,
) -> nn.Sequential:
    """Build a SIREN with `depth` hidden layers behind the first (Sitzmann et al., 2020), or FINER if `variable`."""
    layers: list[nn.Module] = []
    for i in range(depth + 1):
        linear = nn.Linear(in_features if i == 0 else width, width)
        bound = 1 / in_features if i == 0 else math.sqrt(6 / width) / omega
        nn.init.uniform_(linear.weight, -bound, bound)
        if variable and i == 0:
            nn.init.uniform_(linear.bias, -20 / math.sqrt(2), 20 / math.sqrt(2))
        layers += [linear, Sine(omega, variable)]
    last = nn.Linear(width, out_features)
    nn.init.uniform_(last.weight, -math.sqrt(6 / width) / omega, math.sqrt(6 / width) / omega)
    return nn.Sequential(*layers, last)


def relu_encoded(
    width: int, depth: int, frequencies: int, in_features: int = 2, out_features: int = 1
) -> nn.Sequential:
    """Build a ReLU network on encoded coordinates (NeRF's encoding) with `depth` hidden layers behind the first."""
    layers: list[nn.Module] = [Encoding(frequencies)]
    for i in range(depth + 1):
        layers += [nn.Linear(in_features * (1 + 2 * frequencies) if i == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, out_features))


def parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def matched(build: Callable[..., nn.Module], other: nn.Module) -> Callable[[], nn.Module]:
    """Return `build` with the width that comes nearest to the number of parameters of `other`."""
    wanted = parameters(other)
    with torch.device("meta"):
        best = min(range(1, 2048), key=lambda width: abs(parameters(build(width)) - wanted))
    return partial(build, best)


def pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres (H W, 2) of the pixels of an image (C, H, W) in [-1, 1]^2, and their values (H W, C)."""
    rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in image.shape[1:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    return grid.flatten(0, 1), image.flatten(1).T.contiguous()


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB for values in [0, 1]."""
    return -10 * math.log10(max(mse, 1e-12)) if math.isfinite(mse) else math.nan

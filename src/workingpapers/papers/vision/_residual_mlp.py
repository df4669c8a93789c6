"""Residual blocks that mix tokens by some module and channels by a perceptron, affine in place of normalised."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """Scale and shift every channel, (..., D) -> (..., D): a x + b, at first the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return a x + b."""
        return self.scale * x + self.shift


def layer_scale(depth: int) -> float:
    """Return the initial factor of the branches: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


def channel_mlp(dim: int) -> nn.Sequential:
    """Build the perceptron C gelu(B x) of width 4 dim."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def initial_weights(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a normal law of deviation 0.02, cut at 2, and set biases to 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class Block(nn.Module):
    """A cross-token (None for none) and a cross-channel branch with residuals, (B, N, D) -> (B, N, D)."""

    def __init__(
        self, dim: int, mix: nn.Module | None, scale: float, norm: Callable[[int], nn.Module] = Affine
    ) -> None:
        super().__init__()
        self.mix: Any = mix
        if mix is not None:
            self.norm1, self.scale1 = norm(dim), nn.Parameter(torch.full((dim,), scale))
        self.norm2, self.scale2 = norm(dim), nn.Parameter(torch.full((dim,), scale))
        self.mlp = channel_mlp(dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return Y of X; tokens where `keep` (B, N, 1) is 0 add nothing to others."""
        if self.mix is not None:
            mixed = self.norm1(x) if keep is None else keep * self.norm1(x)
            x = x + self.scale1 * self.mix(mixed)
        out: Tensor = x + self.scale2 * self.mlp(self.norm2(x))
        return out

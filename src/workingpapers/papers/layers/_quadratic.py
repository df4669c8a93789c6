"""Quadratic layers made of ordinary ones, and the residual branch that starts at nothing."""

import copy

import torch
from torch import Tensor, nn

Ordinary = nn.Linear | nn.Conv2d


class Quadratic(nn.Module):
    """A quadratic layer made of up to three ordinary ones: r(x) * g(x) + b(x * x), or r(x) + b(x * x)."""

    def __init__(self, r: Ordinary, interaction: bool = True) -> None:
        super().__init__()
        self.r = r
        self.g = _constant(r, 1.0) if interaction else None
        self.b = _constant(r, 0.0 if r.bias is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quadratic function of `x`, shapes as for the layer r."""
        linear: Tensor = self.r(x)
        if self.g is not None:
            linear = linear * self.g(x)
        out: Tensor = linear + self.b(x * x)
        return out


def _constant(like: Ordinary, value: float | None) -> Ordinary:
    """Return a layer shaped as `like` that gives `value` for every input, without bias where it is None."""
    layer = copy.deepcopy(like)
    nn.init.zeros_(layer.weight)
    outputs = layer.weight.new_full((len(layer.weight),), value or 0.0)
    layer.register_parameter("bias", None if value is None else nn.Parameter(outputs))
    return layer


class ReZero(nn.Module):
    """A residual branch that starts at nothing: shortcut(x) + alpha * branch(x) with alpha = 0, learned.

    The paper's quadratic ResNets combine it with ReLinear; `shortcut` is the identity by default.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut(x) + alpha * branch(x)."""
        out: Tensor = self.shortcut(x) + self.alpha * self.branch(x)
        return out

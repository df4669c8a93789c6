"""Stacks of residual blocks inside a model: finding them, putting others there, and what a block adds."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Residue(nn.Module):
    """What a residual block adds, block(x) - x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return F(x)."""
        out: Tensor = self.block(x, *args, **options) - x
        return out


def conv_and_activation(layer: nn.Module) -> tuple[nn.Conv2d, nn.Module] | None:
    """Return the two parts of nn.Sequential(nn.Conv2d, activation) without groups, or None for other layers."""
    parts = list(layer.children())
    if not isinstance(layer, nn.Sequential) or len(parts) != 2:
        return None
    conv, activation = parts
    pointwise = isinstance(activation, nn.Tanh | nn.ReLU | nn.GELU | nn.SiLU | nn.Sigmoid | nn.Identity)
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.padding_mode != "zeros" or not pointwise:
        return None
    return conv, activation


def runs(holder: nn.Module, chosen: set[nn.Module]) -> Iterator[list[nn.Module]]:
    """Give the longest runs of two or more neighbouring layers in a list or sequence of modules."""
    run: list[nn.Module] = []
    for child in [*holder.children(), None]:
        if child is not None and child in chosen:
            run.append(child)
            continue
        if len(run) > 1:
            yield run
        run = []


def put(holder: nn.Sequential | nn.ModuleList, run: list[nn.Module], broad: list[nn.Module]) -> None:
    """Put `broad` in the place of `run`, and number the children of the holder anew."""
    children = list(holder.children())
    start = children.index(run[0])
    children[start : start + len(run)] = broad
    holder._modules.clear()
    for i, child in enumerate(children):
        holder.add_module(str(i), child)

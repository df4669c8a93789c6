"""What low-bit layers share: conversion of a model's inner layers, and their products on packed bits."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import choose

CONV_OPTIONS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
Layer = nn.Linear | nn.Conv2d


def convert_layers(
    model: nn.Module,
    linear: type[nn.Linear],
    conv: type[nn.Conv2d],
    options: dict[str, Any],
    skip_first_last: bool,
    finish: Callable[[Any], None] | None = None,
) -> nn.Module:
    """Return a copy of `model` whose nn.Linear and nn.Conv2d are of the given classes, with the same weights.

    With `skip_first_last` the first and the last of them, in the order of registration, stay as they are; so
    does what is of a subclass.  `finish` completes a new layer beyond weight and bias.
    """
    found = [module for _, module in choose(model, (nn.Linear, nn.Conv2d))]
    names = [name for name, _ in choose(model, (nn.Linear, nn.Conv2d))]
    kept = {0, len(found) - 1} if skip_first_last else set()
    convertible = [
        name
        for i, (name, module) in enumerate(zip(names, found, strict=True))
        if i not in kept and type(module) in (nn.Linear, nn.Conv2d)
    ]

    def build(old: nn.Module) -> nn.Module:
        with torch.device("meta"):  # so that no random number is drawn
            if isinstance(old, nn.Conv2d):
                layout: dict[str, Any] = {name: getattr(old, name) for name in CONV_OPTIONS}
                new: Layer = conv(**layout, bias=old.bias is not None, **options)
            else:
                assert isinstance(old, nn.Linear)
                new = linear(old.in_features, old.out_features, old.bias is not None, **options)
        new.weight, new.bias = old.weight, old.bias
        if finish is not None:
            finish(new)
        return new

    return replace_modules(model, convertible or (nn.Linear, nn.Conv2d), build if convertible else _nothing)


def _nothing(_: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Window:
    """Where a convolution looks: it turns images into rows that are multiplied with the flat kernels."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    around: tuple[int, ...]
    mode: str
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Window":
        """Return the window of a convolution."""
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        around = tuple(conv._reversed_padding_repeated_twice)
        return cls(conv.kernel_size, conv.stride, conv.dilation, around, mode, conv.groups)

    def rows(self, x: Tensor) -> Tensor:
        """Return the patches of floating images (B, C, H, W) as rows (groups, B * H' * W', n)."""
        x = F.pad(x, self.around, mode=self.mode)
        columns = F.unfold(x, self.kernel_size, self.dilation, 0, self.stride)  # (B, C * k, L)
        rows: Tensor = columns.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        return rows

    def image(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the products (groups, B * H' * W', D / groups) as images (B, D, H', W'), x being the input."""
        height, width = (
            (x.shape[axis] + sum(self._around(axis)) - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (-2, -1)
        )
        found: Tensor = y.unflatten(1, (x.shape[0], height, width)).permute(1, 0, 4, 2, 3).flatten(1, 2)
        return found

    def _around(self, axis: int) -> tuple[int, ...]:
        return self.around[:2] if axis == -1 else self.around[2:]


class Packed(nn.Module):
    """A layer for inference alone whose weights are bits, packed along the axis that is summed over.

    Inputs are those of the layer it stands for, convolutions' with the batch dimension; subclasses say in
    `products` what a row of inputs gives.
    """

    scale: Tensor
    bias: Tensor | None
    weight: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.window = Window.of(layer) if isinstance(layer, nn.Conv2d) else None
        self.length = layer.weight[0].numel()
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @property
    def groups(self) -> int:
        """How many groups the channels are in."""
        return 1 if self.window is None else self.window.groups

    @abstractmethod
    def products(self, rows: Tensor) -> Tensor:
        """Return the layer's sums, without bias, for rows (groups, N, n): (groups, N, outputs / groups)."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return what the rows are made of, before zeros are padded."""
        return x

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer returns in evaluation mode."""
        prepared = self.prepare(x)
        if self.window is None:
            if x.shape[-1] != self.length:
                raise WorkingPapersError(f"the layer takes {self.length} features; got {tuple(x.shape)}")
            y = self.products(prepared.reshape(1, -1, self.length))[0].unflatten(0, x.shape[:-1])
            return self._shifted(y.to(x.dtype), 1)
        rows = self.window.rows(prepared)
        if x.ndim != 4 or rows.shape[-1] != self.length:
            raise WorkingPapersError(f"the input (B, C, H, W) does not fit the layer; got {tuple(x.shape)}")
        return self._shifted(self.window.image(self.products(rows), x).to(x.dtype), 3)

    def _shifted(self, y: Tensor, axes: int) -> Tensor:
        return y if self.bias is None else y + self.bias.view(-1, *[1] * (axes - 1))

    def extra_repr(self) -> str:
        return f"{self.length} inputs a sum, groups={self.groups}, bias={self.bias is not None}"

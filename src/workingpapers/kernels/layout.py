"""Layouts: how the tensors of a formula lie in memory, so that one kernel serves every shape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROW = (
    1024  # elements that are added up before partial sums are: keeps float32 sums exact, and one pass on GPUs
)


@dataclass(frozen=True)
class Layout:
    """Views of all tensors of one call, and back.

    Attributes:
        shape: of the first tensor.
        order: its dimensions from the slowest to the fastest in memory.
        packed: shape under which full tensors enter the kernel.
        axis: position in `packed` of the channels, or None where no tensor has a value a channel.
        elementwise: otherwise tensors enter the kernel as they are.
    """

    shape: torch.Size
    order: tuple[int, ...]
    packed: tuple[int, ...]
    axis: int | None
    elementwise: bool

    def pack(self, tensors: Sequence[Tensor], *, rows: bool = False) -> list[Tensor]:
        """Return the tensors as the kernel takes them.

        With `rows`, a smaller tensor is repeated for each row, so that its gradient comes out summed by rows.
        """
        detached = [t.detach() for t in tensors]
        return [self._pack(t, rows) for t in detached] if self.elementwise else detached

    def _pack(self, t: Tensor, rows: bool) -> Tensor:
        if t.shape == self.shape:
            return t.permute(self.order).reshape(self.packed)
        small = t.reshape([-1 if d == self.axis and t.numel() > 1 else 1 for d in range(len(self.packed))])
        if not rows or len(self.packed) == 1:
            return small
        return small.expand(*self.packed[:-1], -1 if self.axis == len(self.packed) - 1 else 1)

    def unpack(self, y: Tensor) -> Tensor:
        """Return the kernel's full-size output in the shape and order of the first tensor."""
        if not self.elementwise:
            return y
        back = [self.order.index(d) for d in range(len(self.order))]
        return y.view([self.shape[d] for d in self.order]).permute(back)

    def unpack_gradient(self, grad: Tensor, t: Tensor) -> Tensor:
        """Return the gradient of the tensor `t` from what the kernel gave for it: partial sums are added up."""
        if not self.elementwise:
            return grad.to(t.dtype)
        if t.shape == self.shape:
            return self.unpack(grad).to(t.dtype)
        summed = [d for d in range(grad.ndim) if d != self.axis or t.numel() == 1]
        return grad.sum(summed).view(t.shape).to(t.dtype)


def layout(tensors: Sequence[Tensor], elementwise: bool) -> Layout | None:
    """Return how the tensors of one call are laid out, or None where no kernel fits their shapes.

    The first tensor gives shape and order; each of the others is as large, or has one value, or has one value
    for each place along one axis, which is then the same for all of them.
    """
    x = tensors[0]
    if not elementwise:
        return Layout(x.shape, tuple(range(x.ndim)), tuple(x.shape), None, False)
    axes = {_axis(t, x.shape) for t in tensors[1:]} - {None}
    if len(axes) > 1 or "other" in axes:
        return None
    axis = axes.pop() if axes else None
    strides = x.stride()
    order = tuple(sorted(range(x.ndim), key=lambda d: -strides[d]))
    if not x.permute(order).is_contiguous():
        order = tuple(range(x.ndim))
    if axis is None:
        return Layout(x.shape, order, _rows(x.numel()), None, True)
    place = order.index(axis)
    sizes = [x.shape[d] for d in order]
    outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    packed = (outer, sizes[place], inner) if inner > 1 else (outer, sizes[place])
    return Layout(x.shape, order, packed, 1, True)


def _axis(t: Tensor, shape: torch.Size) -> int | str | None:
    """Return the axis of `shape` along which `t` varies, None for a full or a single value, else "other"."""
    if t.shape == shape or t.numel() == 1:
        return None
    long = [d - t.ndim for d, size in enumerate(t.shape) if size != 1]
    fits = t.ndim <= len(shape) and len(long) == 1 and t.shape[long[0]] == shape[long[0]]
    return len(shape) + long[0] if fits else "other"


def _rows(numel: int) -> tuple[int, ...]:
    length = math.gcd(numel, ROW)
    return (numel // length, length) if length >= 64 else (numel,)

"""Algebra of linear branches on images: each is a kernel and a bias, and parallel ones add up to one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Kernel:
    """A convolution as data: weight (D, C / groups, k, k), bias (D,), and how it is laid over the image."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    groups: int

    @property
    def size(self) -> int:
        """The side k of the kernel."""
        return self.weight.shape[-1]

    def scaled(self, norm: nn.BatchNorm2d) -> "Kernel":
        """Return this convolution followed by a batch normalisation in evaluation mode."""
        if norm.running_mean is None or norm.running_var is None:
            raise WorkingPapersError("a batch normalisation without running statistics cannot be folded")
        factor = (norm.running_var + norm.eps).rsqrt()
        factor = factor if norm.weight is None else norm.weight * factor
        bias = (self.bias - norm.running_mean) * factor
        return replace(
            self,
            weight=self.weight * factor.view(-1, 1, 1, 1),
            bias=bias if norm.bias is None else bias + norm.bias,
        )

    def in_groups(self, groups: int) -> "Kernel":
        """Return the same with fewer groups, of which `groups` is a divisor: zeros fill the new connections."""
        if groups == self.groups:
            return self
        outputs, inputs = self.weight.shape[:2]
        merged = self.groups // groups  # old groups in a new one
        wide = self.weight.new_zeros(
            groups, merged, outputs // self.groups, merged, inputs, self.size, self.size
        )
        own = self.weight.reshape(groups, merged, outputs // self.groups, inputs, self.size, self.size)
        for i in range(merged):
            wide[:, i, :, i] = own[:, i]
        weight = wide.reshape(outputs, merged * inputs, self.size, self.size)
        return replace(self, weight=weight, groups=groups)

    def padded(self, size: int) -> "Kernel":
        """Return the same with a larger kernel, zeros around this one; the padding of the image grows alike."""
        around = size - self.size
        if around % 2:
            raise WorkingPapersError(f"a kernel of side {self.size} has no centre in one of side {size}")
        weight = F.pad(self.weight, (around // 2,) * 4)
        return replace(self, weight=weight, padding=self.padding + around // 2)


def _one(value: int | tuple[int, ...] | str, what: str) -> int:
    """Return the number that stands for both directions."""
    values = set(value) if isinstance(value, tuple) else {value}
    if len(values) == 1 and isinstance(number := values.pop(), int):
        return number
    raise WorkingPapersError(f"branches are folded that have one {what} in both directions; got {value!r}")


def _depthwise(channels: int, size: int, like: Tensor) -> Tensor:
    return torch.full((channels, 1, size, size), 1 / size**2, dtype=like.dtype, device=like.device)


def _of_part(part: nn.Module, channels: int, like: Tensor) -> Kernel:
    """Return the kernel of a single layer on `channels` channels, with zero bias where it has none."""
    if isinstance(part, nn.Conv2d):
        if part.padding_mode != "zeros" or _one(part.dilation, "dilation") != 1:
            raise WorkingPapersError(
                f"only convolutions padded by zeros, without dilation, are folded; got {part}"
            )
        _one(part.kernel_size, "kernel size")
        bias = torch.zeros_like(part.weight[:, 0, 0, 0]) if part.bias is None else part.bias
        stride, padding = _one(part.stride, "stride"), _one(part.padding, "padding")
        return Kernel(part.weight, bias, stride, padding, part.groups)
    zeros = torch.zeros(channels, dtype=like.dtype, device=like.device)
    if isinstance(part, nn.Identity | nn.BatchNorm2d):
        same = Kernel(_depthwise(channels, 1, like), zeros, 1, 0, channels)
        return same if isinstance(part, nn.Identity) else same.scaled(part)
    if isinstance(part, nn.AvgPool2d):
        size, stride, padding = (
            _one(getattr(part, name), name) for name in ("kernel_size", "stride", "padding")
        )
        if part.ceil_mode or part.divisor_override or (padding and not part.count_include_pad):
            raise WorkingPapersError(
                f"only pooling that averages over its whole window is folded; got {part}"
            )
        return Kernel(_depthwise(channels, size, like), zeros, stride, padding, channels)
    raise WorkingPapersError(
        f"a branch is folded that holds convolution, batch normalisation, average pooling or identity; got {part}"
    )


def kernel_of(branch: nn.Module, channels: int, like: Tensor) -> Kernel:
    """Return the kernel of a branch: one layer, or an nn.Sequential of one and batch normalisations behind it."""
    first, *norms = branch if isinstance(branch, nn.Sequential) else [branch]
    kernel = _of_part(first, channels, like)
    for norm in norms:
        if not isinstance(norm, nn.BatchNorm2d):
            raise WorkingPapersError(
                f"behind a branch's first layer only batch normalisation is folded; got {norm}"
            )
        kernel = kernel.scaled(norm)
    return kernel


def merged_kernel(branches: Sequence[nn.Module]) -> Kernel:
    """Return the sum of parallel branches as one kernel, as large as the largest; gradients flow through it."""
    parts = [part for branch in branches for part in branch.modules()]
    convs = [part for part in parts if isinstance(part, nn.Conv2d)]
    tensors = [tensor for branch in branches for tensor in branch.state_dict(keep_vars=True).values()]
    norms = [part for part in parts if isinstance(part, nn.BatchNorm2d)]
    if not convs and not norms:
        raise WorkingPapersError("of branches without convolution or normalisation the channels are unknown")
    channels = convs[0].in_channels if convs else norms[0].num_features
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    kernels = [kernel_of(branch, channels, like) for branch in branches]
    size, groups = max(k.size for k in kernels), math.gcd(*(k.groups for k in kernels))
    kernels = [kernel.padded(size).in_groups(groups) for kernel in kernels]
    if len({(k.stride, k.padding, k.weight.shape) for k in kernels}) > 1:
        layouts = ", ".join(f"{tuple(k.weight.shape)} stride {k.stride} padding {k.padding}" for k in kernels)
        raise WorkingPapersError(f"branches are added that cover the image alike; got kernels {layouts}")
    weight, bias = (
        sum(values[1:], values[0]) for values in zip(*((k.weight, k.bias) for k in kernels), strict=True)
    )
    return replace(kernels[0], weight=weight, bias=bias)


def merge(branches: Sequence[nn.Module]) -> nn.Conv2d:
    """Return the convolution that equals the sum of parallel branches in evaluation mode.

    Branches are convolutions, average pooling, identities and batch normalisations, each with batch
    normalisations behind it or none; kernels may differ in size (by an even number) and groups.

    Raises:
        WorkingPapersError: where branches are no linear maps of one neighbourhood, or differ in stride.
    """
    kernel = merged_kernel(branches)
    outputs, inputs = kernel.weight.shape[:2]
    conv = nn.Conv2d(
        inputs * kernel.groups,
        outputs,
        kernel.size,
        kernel.stride,
        kernel.padding,
        1,
        kernel.groups,
        device="meta",
    )
    conv.weight, conv.bias = (
        nn.Parameter(kernel.weight.detach().clone()),
        nn.Parameter(kernel.bias.detach().clone()),
    )
    return conv

"""Rounding to few bits as DoReFa-Net does it: inputs, weights and, with noise, gradients."""

from typing import Any

import torch
from torch import Tensor

from workingpapers.kernels import pointwise

FULL_PRECISION = 32


@pointwise
def quantize(r: Tensor, k: int) -> Tensor:
    """Round `r`, any shape, to multiples of 1 / (2^k - 1); the gradient is that of the identity."""
    steps = 2**k - 1
    rounded: Tensor = (torch.round(r * steps) / steps).detach() + (r - r.detach())
    return rounded


def quantize_activation(x: Tensor, k: int) -> Tensor:
    """Clip `x` to [0, 1] and round it to k bits, same shape; 32 bits leave it as it is."""
    return x if k == FULL_PRECISION else quantize(x.clamp(0, 1), k)


def quantize_weight(w: Tensor, k: int) -> Tensor:
    """Quantise a layer's weight to k bits, same shape: one scale for the whole tensor; 32 leave it as it is."""
    if k == FULL_PRECISION:
        return w
    if k == 1:
        scale = _exact(w).abs().mean()
        return torch.where(w < 0, -scale, scale).to(w.dtype).detach() + (w - w.detach())
    return (2 * quantize(squashed(w), k) - 1).to(w.dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def squashed(w: Tensor) -> Tensor:
    """Return the weights in [0, 1], in at least float32."""
    t = torch.tanh(_exact(w))
    largest = t.abs().max()
    share: Tensor = t / (2 * torch.where(largest > 0, largest, torch.ones_like(largest))) + 0.5
    return share


def quantize_gradient(
    gradient: Tensor, k: int, noise: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Quantise a gradient (B, ...) to k bits, one range for each sample, after adding uniform noise.

    The noise comes from `generator`, by default torch's global one of the device, as dropout's does.
    """
    if k == FULL_PRECISION:
        return gradient
    steps = 2**k - 1
    exact = _exact(gradient)
    axes = list(range(min(1, gradient.ndim - 1), gradient.ndim))
    largest = exact.abs().amax(axes, keepdim=True) if exact.numel() else exact
    u = exact / (2 * torch.where(largest > 0, largest, torch.ones_like(largest))) + 0.5
    if noise:
        u = u + (torch.rand(u.shape, generator=generator, dtype=u.dtype, device=u.device) - 0.5) / steps
    rounded: Tensor = 2 * largest * (torch.round(u.clamp(0, 1) * steps) / steps - 0.5)
    return rounded.to(gradient.dtype)


class _Backward(torch.autograd.Function):
    """The identity whose gradient is quantised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, noise: bool) -> Tensor:
        ctx.k, ctx.noise = k, noise
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return quantize_gradient(gradients[0], ctx.k, ctx.noise), None, None


def gradient_in_bits(x: Tensor, k: int, noise: bool) -> Tensor:
    """Return `x` itself; the gradient that comes back is quantised to k bits on its way."""
    found: Tensor = _Backward.apply(x, k, noise)
    return found


def biases(gradient: Tensor, k: int, draws: int, generator: torch.Generator) -> tuple[float, float]:
    """Return the root mean square bias of k-bit rounding of a gradient (B, ...), without noise and with it.

    That with noise is estimated from `draws` draws, so it is at most about half a step over their root.
    """
    plain = quantize_gradient(gradient, k, noise=False) - gradient
    total = torch.zeros_like(gradient)
    for _ in range(draws):
        total += quantize_gradient(gradient, k, generator=generator)
    noisy = total / draws - gradient
    return float(plain.square().mean().sqrt()), float(noisy.square().mean().sqrt())

"""Gated linear units and the squared ReLU, the reference points of feed-forward layers.

Sources: Dauphin and others (2017) for GLU; Shazeer (2020), "GLU Variants Improve Transformer", for the others;
So and others (2021), "Primer", for the squared ReLU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.kernels.pointwise import pointwise


@pointwise
def relu2(x: Tensor) -> Tensor:
    """Return max(0, x)^2."""
    return x.relu() * x


@pointwise
def glu(gate: Tensor, value: Tensor) -> Tensor:
    """Return sigmoid(gate) * value, for two tensors of one shape."""
    return torch.sigmoid(gate) * value


@pointwise
def reglu(gate: Tensor, value: Tensor) -> Tensor:
    """Return relu(gate) * value, for two tensors of one shape."""
    return gate.relu() * value


@pointwise
def geglu(gate: Tensor, value: Tensor) -> Tensor:
    """Return gelu(gate) * value, for two tensors of one shape."""
    return F.gelu(gate) * value


@pointwise
def swiglu(gate: Tensor, value: Tensor) -> Tensor:
    """Return silu(gate) * value, for two tensors of one shape."""
    return F.silu(gate) * value


class ReLU2(nn.Module):
    """Apply `relu2` to a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the squared ReLU of `x`, same shape."""
        return relu2(x)


class _Gated(nn.Module):
    gated: Callable[[Tensor, Tensor], Tensor]
    gate_first = True

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated half of `x`, half as large along `dim`."""
        if x.shape[self.dim] % 2:
            raise ValueError(
                f"{type(self).__name__} halves dimension {self.dim}, which has the odd size {x.shape[self.dim]}"
            )
        halves: Any = x.chunk(2, self.dim)
        gate, value = halves if self.gate_first else reversed(halves)
        return type(self).gated(gate, value)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class GLU(_Gated):
    """First half times the sigmoid of the second along `dim`, the order of `torch.nn.GLU`."""

    gated = staticmethod(glu)
    gate_first = False


class ReGLU(_Gated):
    """ReLU of the first half times the second along `dim`."""

    gated = staticmethod(reglu)


class GEGLU(_Gated):
    """GELU of the first half times the second along `dim`."""

    gated = staticmethod(geglu)


class SwiGLU(_Gated):
    """SiLU of the first half times the second along `dim`."""

    gated = staticmethod(swiglu)

"""Parts of networks without normalisation: layers whose weights are standardised, and the residual block."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.kernels.pointwise import LOW_PRECISION

EPS = 1e-4


@torch.no_grad()
def gamma_of(activation: Callable[[Tensor], Tensor]) -> float:
    """Return 1 / std(activation(z)) for standard normal z, by quadrature on [-12, 12].

    Raises:
        WorkingPapersError: where the activation is constant or not finite there.
    """
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    try:
        y = activation(z.clone()).double()
    except RuntimeError:  # weights of its own in float32
        y = activation(z.float()).double()
    mean = torch.trapezoid(y * density, z)
    variance = float(torch.trapezoid((y - mean) ** 2 * density, z))
    if not 1e-12 < variance < math.inf:
        raise WorkingPapersError(
            f"gamma is 1 / std(activation(z)), and {type(activation).__name__} has the variance {variance}"
        )
    return 1 / math.sqrt(variance)


def standardise(weight: Tensor, gain: Tensor, gamma: float = 1.0, eps: float = EPS) -> Tensor:
    """Return `weight` (out, ...) with mean 0 and norm gain * gamma for each output.

    Where the variance times the number of inputs is below `eps`, as for equal weights, it counts as `eps`.
    Half-precision weights are standardised in float32.
    """
    w: Tensor = (weight.float() if weight.dtype in LOW_PRECISION else weight).flatten(1)
    variance, mean = torch.var_mean(w, 1, correction=0, keepdim=True)
    scale = gamma * gain.to(w.dtype)[:, None] * (variance * w.shape[1]).clamp(min=eps).rsqrt()
    standardised: Tensor = ((w - mean) * scale).view_as(weight).to(weight.dtype)
    return standardised


class ScaledWSConv2d(nn.Conv2d):
    """A convolution with the arguments of `nn.Conv2d` whose weights are standardised, with a learnt gain.

    Args:
        args, options: as for `nn.Conv2d`; weights start as normal ones of variance 1 / inputs, biases at 0.
        gamma: 1 / std of the activation before it (`gamma_of`).
        eps: the least variance of the weights times their number.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, eps: float = EPS, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gamma, self.eps = gamma, eps
        self.gain = nn.Parameter(torch.ones_like(self.weight[:, 0, 0, 0]))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution with standardised weights."""
        out: Tensor = self._conv_forward(
            x, standardise(self.weight, self.gain, self.gamma, self.eps), self.bias
        )
        return out

    def extra_repr(self) -> str:
        """Add gamma and eps to what the convolution shows."""
        return f"{super().extra_repr()}, gamma={self.gamma:.6g}, eps={self.eps}"


class ScaledWSLinear(nn.Linear):
    """A linear layer with the arguments of `nn.Linear` whose weights are standardised, with a learnt gain.

    `gamma` and `eps` are as for `ScaledWSConv2d`.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, eps: float = EPS, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gamma, self.eps = gamma, eps
        self.gain = nn.Parameter(torch.ones_like(self.weight[:, 0]))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map with standardised weights."""
        return F.linear(x, standardise(self.weight, self.gain, self.gamma, self.eps), self.bias)

    def extra_repr(self) -> str:
        """Add gamma and eps to what the linear layer shows."""
        return f"{super().extra_repr()}, gamma={self.gamma:.6g}, eps={self.eps}"


def _start(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class NFBlock(nn.Module):
    """A block (B, C, H, W) -> (B, D, H / stride, W / stride): x + alpha * gain * f(x / beta), activations first.

    Args:
        convs: the layers of the branch f, an activation before each.
        shortcut: a layer that reads the first activation, in place of the identity.
        activation: a factory of activations.
        alpha: what the branch is scaled by.
        beta: the standard deviation that the input is counted to have.
        skipinit: scale the branch by a learnt number too, 0 at first.
        stochastic_depth: how often an example goes without the branch in training.
    """

    def __init__(
        self,
        convs: Sequence[nn.Module],
        shortcut: nn.Module | None,
        activation: Callable[[], nn.Module],
        alpha: float = 0.2,
        beta: float = 1.0,
        skipinit: bool = True,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.activations = nn.ModuleList(activation() for _ in convs)
        self.shortcut = shortcut
        self.alpha, self.beta, self.stochastic_depth = alpha, beta, stochastic_depth
        self.gain = nn.Parameter(torch.zeros(())) if skipinit else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the shortcut and of the scaled branch."""
        out = self.activations[0](x / self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.convs[0](out)
        for activation, conv in zip(self.activations[1:], self.convs[1:], strict=True):  # type: ignore[arg-type]
            out = conv(activation(out))
        if self.training and self.stochastic_depth:
            keep = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.stochastic_depth
            out = out * keep.to(out.dtype)
        out = out if self.gain is None else out * self.gain
        result: Tensor = shortcut + self.alpha * out
        return result

    def extra_repr(self) -> str:
        """Show what are no parts."""
        depth = f"skipinit={self.gain is not None}, stochastic_depth={self.stochastic_depth}"
        return f"alpha={self.alpha}, beta={self.beta:.4g}, {depth}"

"""The operators that an activation function of a sparse network is chosen from."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.kernels import pointwise


@pointwise
def tanhsoft(x: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Return TanhSoft-1, tanh(alpha x) softplus(x)."""
    u = alpha * x
    far = 1 - 2 / (1 + torch.exp((2 * u).clamp(max=80)))  # where tanh' = 1 - tanh^2 would cancel
    return torch.where(u > 1, far, torch.tanh(u)) * F.softplus(x)


@pointwise
def acon(x: Tensor, p1: float = 1.0, p2: float = 0.25, beta: float = 1.0) -> Tensor:
    """Return ACON, (p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x; the values of p1 and p2 are ours."""
    z = (p1 - p2) * x
    # not torch.sigmoid, whose derivative s (1 - s) cancels; e^88 is still finite
    return z / (1 + torch.exp((-beta * z).clamp(max=88))) + p2 * x


@pointwise
def srs(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Return the soft root sign x / (x / alpha + exp(-x / beta)); it has no pole where beta < e alpha."""
    right, left = torch.exp(-x.clamp(min=0) / beta), torch.exp(x.clamp(max=0) / beta)  # both at most 1
    return x * left / (x * left / alpha + right)


@pointwise
def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(|x| + 1)."""
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p(-x.clamp(max=0)))


@pointwise
def symexp(x: Tensor) -> Tensor:
    """Return sign(x) (exp|x| - 1), constant beyond |x| = 80 so that it stays finite."""
    return torch.where(x >= 0, torch.expm1(x.clamp(0, 80)), -torch.expm1(-x.clamp(-80, 0)))


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "swish": F.silu,
    "tanhsoft": tanhsoft,
    "acon": acon,
    "gelu": F.gelu,
    "srs": srs,
    "elu": F.elu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "symlog": symlog,
    "symexp": symexp,
}

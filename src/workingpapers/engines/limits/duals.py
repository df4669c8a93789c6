"""Expectations over pairs of Gaussians that the limits of width are made of, in closed form where there is one.

    K = E phi(u) phi(v),  dK = E phi'(u) phi'(v),   (u, v) ~ N(0, [[a, c], [c, b]])

dK is the derivative of K by c (Price's theorem), so each closed form below gives both.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.limits.scalars import NAMED, Activation, Scalar
from workingpapers.engines.limits.series import Series


class Dual(Protocol):
    """What gives K and dK of one activation, blocks of pairs at a time."""

    def order(self, variances: Tensor) -> int:
        """Return how many terms these variances (any shape) need."""

    def features(self, variances: Tensor, order: int) -> tuple[Tensor, ...]:
        """Return all that depends on the variances alone: tensors whose first dimensions are the variances'."""

    def pair(self, one: tuple[Tensor, ...], two: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and dK for features whose leading dimensions broadcast with the covariances `c`."""


class _Closed:
    """A closed form in the variances a, b and the covariance c."""

    def order(self, variances: Tensor) -> int:
        return 0

    def features(self, variances: Tensor, order: int) -> tuple[Tensor, ...]:
        return (variances,)

    def pair(self, one: tuple[Tensor, ...], two: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Tensor]:
        return self.of(one[0], two[0], c)

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Leaky(_Closed):
    """phi(x) = right x for x > 0 and left x below: ReLU, its leaky family, |x| and x (arc-cosine kernels)."""

    def __init__(self, right: float = 1.0, left: float = 0.0) -> None:
        self.even, self.odd = ((right - left) / 2) ** 2, ((right + left) / 2) ** 2

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """E |u v| = 2/pi sqrt(ab) (sqrt(1 - rho^2) + rho asin rho)."""
        size = (a * b).sqrt()
        rho = (c / size.clamp(min=1e-300)).clamp_(-1, 1)
        angle = rho.asin()
        k = rho.square().neg_().add_(1).sqrt_().addcmul_(rho, angle).mul_(size).mul_(self.even * 2 / math.pi)
        return k.add_(c, alpha=self.odd), angle.mul_(self.even * 2 / math.pi).add_(self.odd)


class Erf(_Closed):
    """phi = erf (Williams, 1997)."""

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """K = 2/pi asin(2c / sqrt((1 + 2a)(1 + 2b)))."""
        size = (1 + 2 * a) * (1 + 2 * b)
        k = (2 / math.pi) * (2 * c / size.sqrt()).clamp(-1, 1).asin()
        return k, (4 / math.pi) / (size - 4 * c.square()).sqrt()


class Sin(_Closed):
    """phi = sin, or cos where `shifted`."""

    def __init__(self, shifted: bool = False) -> None:
        self.shifted = shifted

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """E sin u sin v = exp(-(a + b)/2) sinh c, E cos u cos v the same with cosh."""
        mean = (a + b) / 2
        up, down = (c - mean).exp(), (-c - mean).exp()
        both = (up - down) / 2, (up + down) / 2
        return both[::-1] if self.shifted else both  # type: ignore[return-value]


class Exp(_Closed):
    """phi = exp."""

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """K = exp((a + b)/2 + c)."""
        k = ((a + b) / 2 + c).exp()
        return k, k.clone()


class Gaussian(_Closed):
    """phi(x) = exp(-x^2)."""

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """K = ((1 + 2a)(1 + 2b) - 4c^2)^(-1/2)."""
        k = ((1 + 2 * a) * (1 + 2 * b) - 4 * c.square()).rsqrt()
        return k, 4 * c * k**3


def dual(activation: Activation) -> Dual:
    """Return the dual of an activation: a closed form where one is known, else a `Series`.

    Known are ReLU, LeakyReLU, PReLU of one slope, |x|, x, erf, sin, cos, exp and exp(-x^2), as torch's functions
    and modules or by name ("gaussian"); other modules and functions may be anything elementwise.
    """
    if isinstance(activation, str):
        activation = Scalar(activation).given
    known = _FORMS.get(activation) if not isinstance(activation, nn.Module) else None
    if known is not None:
        return known
    if type(activation) in (nn.ReLU, nn.Identity):
        return Leaky(1.0, float(isinstance(activation, nn.Identity)))
    if type(activation) is nn.LeakyReLU:
        return Leaky(1.0, float(activation.negative_slope))  # type: ignore[union-attr]
    if type(activation) is nn.PReLU and activation.weight.numel() == 1:  # type: ignore[union-attr]
        return Leaky(1.0, float(activation.weight.detach()))  # type: ignore[union-attr]
    return Series(Scalar(activation))


_FORMS: dict[object, Dual] = {
    **dict.fromkeys((torch.relu, F.relu), Leaky()),
    F.leaky_relu: Leaky(1.0, 0.01),
    torch.abs: Leaky(1.0, -1.0),
    NAMED["identity"]: Leaky(1.0, 1.0),
    torch.erf: Erf(),
    torch.sin: Sin(),
    torch.cos: Sin(shifted=True),
    torch.exp: Exp(),
    NAMED["gaussian"]: Gaussian(),
}


def expectations(activation: Activation, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return E phi(u) phi(v) and E phi'(u) phi'(v) for variances `a`, `b` and covariances `c` that broadcast."""
    form = dual(activation)
    a, b, c = (t.double() for t in (a, b, c))
    order = form.order(torch.cat([a.reshape(-1), b.reshape(-1)]))
    return form.pair(form.features(a, order), form.features(b, order), c)

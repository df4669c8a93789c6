"""Means and variances of activations of Gaussian inputs, and of the network layers between them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError
from workingpapers.kernels import pointwise

EPS = 1e-12  # added to variances before their root
FAR = 40.0  # standard deviations beyond which a normal tail is 0 in float64
MEHLER_ORDER = 6


class Moments(NamedTuple):
    """Means (..., D) and variances (..., D), or covariances (..., D, D)."""

    mean: Tensor
    var: Tensor

    @property
    def full(self) -> bool:
        """Whether there are covariances."""
        return self.var.ndim == self.mean.ndim + 1

    @property
    def diagonal(self) -> Tensor:
        """The variances (..., D)."""
        return self.var.diagonal(dim1=-2, dim2=-1) if self.full else self.var


def moments(x: Tensor | tuple[Tensor, Tensor], full: bool = False) -> Moments:
    """Return (mean, variance) as `Moments`, a tensor as a certain input; raise for shapes that do not fit."""
    if isinstance(x, Tensor):
        return Moments(x, torch.zeros_like(torch.diag_embed(x) if full else x))
    mean, var = x
    if var.shape not in (mean.shape, (*mean.shape, mean.shape[-1])):
        raise WorkingPapersError(
            f"variances have the means' shape {tuple(mean.shape)}, covariances one width more; "
            f"got {tuple(var.shape)}"
        )
    return Moments(mean, var)


def cdf(r: Tensor) -> Tensor:
    """Return the standard normal distribution function."""
    return 0.5 * torch.erfc(r * -(0.5**0.5))


def density(r: Tensor) -> Tensor:
    """Return the standard normal density."""
    height: float = (2 * math.pi) ** -0.5
    return height * torch.exp(-0.5 * r * r)


@pointwise
def ratio(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return r = mean / sqrt(var + eps), held within 40, where the tail is 0."""
    return (mean * (var + EPS) ** -0.5).clamp(-FAR, FAR)


@pointwise
def gate(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return p = Phi(mean / sqrt(var + eps)), the probability that the input is positive."""
    return cdf(ratio(mean, var))


@pointwise
def masked_mean(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return p mean."""
    return mean * gate(mean, var)


@pointwise
def masked_variance(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return p var + p (1 - p) mean^2, the variance of x z for a mask z of probability p, independent of x."""
    r = ratio(mean, var)
    return cdf(r) * (var + cdf(-r) * r * r * (var + EPS))  # r^2 var is mean^2, and stays in range


def relu_mean(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return E relu(x) = mean Phi(r) + s phi(r), s = sqrt(var)."""
    r = ratio(mean, var)
    return mean * cdf(r) + (var + EPS) ** 0.5 * density(r)


def relu_variance(mean: Tensor, var: Tensor | float) -> Tensor:
    """Return Var relu(x) = var (Phi + r^2 Phi (1 - Phi) + r phi (1 - 2 Phi) - phi^2).

    It is (mean^2 + var) Phi + mean s phi less the square of the mean, without its cancellation for large r.
    """
    r = ratio(mean, var)
    low, high, d = cdf(-r), cdf(r), density(r)
    return var * (high + r * r * high * low + r * d * (low - high) - d * d).clamp_min(0)


def masked(x: Moments) -> Moments:
    """Return the moments of x z with masks z of probabilities p, independent of x and of one another."""
    mean, own = masked_mean(x.mean, x.diagonal), masked_variance(x.mean, x.diagonal)
    if not x.full:
        return Moments(mean, own)
    p = gate(x.mean, x.diagonal)
    return Moments(mean, with_diagonal(p.unsqueeze(-1) * x.var * p.unsqueeze(-2), own))


def scaled(x: Moments) -> Moments:
    """Return the moments of p x."""
    p = gate(x.mean, x.diagonal)
    var = p.unsqueeze(-1) * x.var * p.unsqueeze(-2) if x.full else p * p * x.var
    return Moments(p * x.mean, var)


def relu(x: Moments) -> Moments:
    """Return the exact moments of relu(x); covariances by the first terms of Mehler's series in the correlation.

    Cov = sum_n rho^n / n! c_n(i) c_n(j),  c_1 = s Phi(r),  c_n = s phi(r) He_{n-2}(-r).
    """
    v = x.diagonal
    mean, own = relu_mean(x.mean, v), relu_variance(x.mean, v)
    if not x.full:
        return Moments(mean, own)
    r, s = ratio(x.mean, v), (v + EPS).sqrt()
    rho = x.var / (s.unsqueeze(-1) * s.unsqueeze(-2))
    before, hermite = torch.zeros_like(r), torch.ones_like(r)
    c, total, power = s * cdf(r), torch.zeros_like(x.var), torch.ones_like(rho)
    for n in range(1, MEHLER_ORDER + 1):
        power = power * rho / n
        total = total + power * c.unsqueeze(-1) * c.unsqueeze(-2)
        c = s * density(r) * hermite  # He_{n-1}(-r) stands in c_{n+1}
        before, hermite = hermite, -r * hermite - (n - 1) * before
    return Moments(mean, with_diagonal(total, own))


def gelu_taylor(x: Moments) -> Moments:
    """Return the moments of gelu(x) by its Taylor series of order 2 at the mean."""
    m, v = x.mean, x.diagonal
    p, d = cdf(m.clamp(-FAR, FAR)), density(m.clamp(-FAR, FAR))
    slope, bend = p + m * d, (2 - m * m) * d
    mean = m * p + 0.5 * bend * v
    if not x.full:
        return Moments(mean, slope * slope * v + 0.5 * bend * bend * v * v)
    first = slope.unsqueeze(-1) * x.var * slope.unsqueeze(-2)
    return Moments(mean, first + 0.5 * bend.unsqueeze(-1) * x.var * x.var * bend.unsqueeze(-2))


def with_diagonal(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Return the matrices (..., D, D) with another diagonal (..., D)."""
    eye = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    return torch.where(eye, diagonal.unsqueeze(-1), matrix)


MODES: dict[str, Callable[[Moments], Moments]] = {
    "mask": masked,
    "scale": scaled,
    "relu": relu,
    "gelu_taylor": gelu_taylor,
}


def expected_nll(y: Tensor, f: tuple[Tensor, Tensor], level: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
    """Return E of -log N(y; f, exp(l)) for Gaussian f and l of given means, variances and covariance.

    E e^{-l} (y - f)^2 = exp(-E l + Var l / 2) ((y - E f + cov)^2 + Var f): weighting by e^{-l} moves the mean of
    f by -cov.
    """
    precision = (-level[0] + 0.5 * level[1]).exp()
    return 0.5 * (math.log(2 * math.pi) + level[0] + precision * ((y - f[0] + cov).square() + f[1]))


def divergence(m: Tensor, log_s: Tensor, prior_std: float | None) -> Tensor:
    """Return the divergence of N(m, s^2) from N(0, prior_std^2), summed; None takes the best prior."""
    second = m.square() + (2 * log_s).exp()
    prior = second.mean() if prior_std is None else second.new_tensor(prior_std**2)
    return (0.5 * prior.log() - log_s + 0.5 * second / prior - 0.5).sum()

"""Expectations over pairs of Gaussians for any elementwise function: Hermite series, kinks in closed form.

    E phi(u) phi(v) = sum_k a_k(s) a_k(s') rho^k,    a_k(s) = E phi(s x) He_k(x) / sqrt(k!)

The series of a smooth function falls off fast.  That of a kink falls off slowly near rho = 1, so jumps of
value and derivatives are taken out: phi = smooth + sum d (x - t)_+^m / m!, and the expectation of products of
such pieces is known (`orthants`); only the series' difference from it is summed.
"""

import math

import numpy as np
import torch
from torch import Tensor

from workingpapers.engines.limits.orthants import Truncated
from workingpapers.engines.limits.scalars import EDGES, Scalar, rule

SMALLEST = 1e-7  # standard deviations below are taken as this
TERMS = (32, 64, 128, 256, 512, 1024)
ACCURACY = 3e-8
TIGHT = 1 - 1e-15  # correlations are kept below, where formulas divide by sqrt(1 - rho^2)


class Series:
    """The dual of a `Scalar`; see `duals.Dual`.

    A jump of the value itself counts in K, and in dK the derivative is taken apart from it, as autograd does.
    """

    def __init__(self, phi: Scalar) -> None:
        self.phi = phi
        self.pieces = [(k.place, m, d) for k in phi.kinks for m, d in enumerate(k.jumps) if d]
        self.x, self.w = rule(EDGES)

    def order(self, variances: Tensor) -> int:
        """Return the number of terms after which the rest is negligible for the smallest and largest variance."""
        ends = torch.stack([variances.min(), variances.max()]).detach()
        for terms in TERMS:
            full, pieces, sigma = self.features(ends, terms)
            k = torch.arange(terms, dtype=torch.float64)
            size = k / sigma[:, None].square()
            left = ((full[..., 1].square() - pieces[..., 1].square()) * size).abs()
            limit = ACCURACY * (full[..., 1].square() * size).sum(1, keepdim=True).clamp(min=1)
            if bool((left[:, terms // 2 :].sum(1, keepdim=True) <= limit).all()):
                rest = left.flip(1).cumsum(1).flip(1)  # of each term and all behind it
                return 1 + int((rest > limit).any(0).sum())
        return terms

    def features(self, variances: Tensor, order: int) -> tuple[Tensor, ...]:
        """Return coefficients (..., order, 2) of phi and its pieces, all and without jumps of value; deviations."""
        sigma = variances.double().clamp(min=SMALLEST**2).sqrt()
        flat = sigma.reshape(-1)
        parts = [self._coefficients(s, order) for s in flat.split(256)]
        full, pieces = (torch.cat(found).permute(1, 2, 0).contiguous() for found in zip(*parts, strict=True))
        # term by term in memory, as `pair` goes through them
        full, pieces = (t.view(order, 2, *sigma.shape).movedim((0, 1), (-2, -1)) for t in (full, pieces))
        return full, pieces, sigma

    def _coefficients(self, sigma: Tensor, order: int) -> tuple[Tensor, Tensor]:
        z = sigma[:, None] * self.x
        rest = self.phi(z)
        pieces = torch.zeros(len(sigma), order, 2, dtype=torch.float64)
        for place, m, d in self.pieces:
            rest = rest - d * _ramp(z - place, m)
            own = d * _piece(sigma, place, m, order)
            pieces[..., 0] += own
            if m:
                pieces[..., 1] += own
        smooth = (rest * self.w) @ _hermite(self.x, order)
        return smooth[..., None] + pieces, pieces

    def pair(self, one: tuple[Tensor, ...], two: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and dK."""
        (full, pieces, s), (other, parts, r) = one, two
        rho = (c / (s * r)).clamp_(-1, 1)
        k, slope = torch.zeros_like(rho), torch.zeros_like(rho)
        kinked, jumps = bool(self.pieces), any(m == 0 for _, m, _ in self.pieces)
        for i in range(full.shape[-2] - 1, -1, -1):
            weight = full[..., i, 0] * other[..., i, 0]
            if kinked:
                weight = weight - pieces[..., i, 0] * parts[..., i, 0]
            k.mul_(rho).add_(weight)
            if i:
                if jumps:
                    weight = full[..., i, 1] * other[..., i, 1] - pieces[..., i, 1] * parts[..., i, 1]
                slope.mul_(rho).add_(weight, alpha=i)
        slope.div_(s * r)
        if kinked:
            more, steeper = self._kinks(s, r, rho)
            k.add_(more)
            slope.add_(steeper)
        return k, slope

    def _kinks(self, s: Tensor, r: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pieces' own share of K and dK in closed form."""
        a, b, c = s.numpy(), r.numpy(), np.clip(rho.numpy(), -TIGHT, TIGHT)
        k, slope = np.zeros_like(c), np.zeros_like(c)
        places = sorted({place for place, _, _ in self.pieces})
        for t in places:
            for u in places:
                moments = Truncated(t / a, u / b, c)
                for _, m, d in (p for p in self.pieces if p[0] == t):
                    for _, n, e in (p for p in self.pieces if p[0] == u):
                        k += d * e * a**m * b**n * moments[m, n]
                        if m and n:
                            slope += d * e * a ** (m - 1) * b ** (n - 1) * moments[m - 1, n - 1]
        return torch.from_numpy(k), torch.from_numpy(slope)


def _ramp(x: Tensor, m: int) -> Tensor:
    """Return x_+^m / m!."""
    return (x > 0).double() if m == 0 else x.clamp(min=0) ** m / math.factorial(m)


def _hermite(x: Tensor, order: int) -> Tensor:
    """Return He_k(x) / sqrt(k!) for k below `order`, with x's dimension first."""
    found = torch.ones(order, len(x), dtype=torch.float64)
    if order > 1:
        found[1] = x
    for k in range(1, order - 1):
        found[k + 1] = (x * found[k] - math.sqrt(k) * found[k - 1]) / math.sqrt(k + 1)
    return found.T


def _piece(sigma: Tensor, place: float, m: int, order: int) -> Tensor:
    """Return the coefficients (len(sigma), order) of (sigma x - place)_+^m / m!.

    With t = place / sigma, a_k = sigma^m phi(t) He_(k-m-1)(t) / sqrt(k!) beyond k = m, and truncated moments of one
    normal up to there.
    """
    t = place / sigma
    normal = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    found = torch.zeros(len(sigma), order, dtype=torch.float64)
    before, value = normal, torch.special.ndtr(-t)  # E of delta and of the step
    for j in range(m + 1):  # E (x - t)_+^j / j!, the coefficient of k = m - j
        if m - j < order:
            found[:, m - j] = sigma**m * value / math.sqrt(math.factorial(m - j))
        before, value = value, (before - t * value) / (j + 1)
    # normal * He_j / sqrt(j!) by its own recursion, so that nothing overflows
    p, q = torch.zeros_like(t), normal
    for j in range(order - m - 1):
        k = j + m + 1
        found[:, k] = sigma**m * q * math.exp((math.lgamma(j + 1) - math.lgamma(k + 1)) / 2)
        p, q = q, (t * q - math.sqrt(j) * p) / math.sqrt(j + 1)
    return found

"""Units that are ReLU on some entries of a tensor and something cheaper on the others."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private._sites import Shape, sites

FRESH = 0.1  # of a new batch in the running statistics, as in batch normalisation


class Masked(nn.Module):
    """ReLU where the mask (shape of one example, bool) is on, the identity elsewhere."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def kept(self) -> int:
        """Return how many entries are ReLUs."""
        return int(self.mask.sum())

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x) or x by entry."""
        return torch.where(self.mask, x.relu(), x)

    def extra_repr(self) -> str:
        """Say how many entries are ReLUs."""
        return f"{self.kept()} of {self.mask.numel()} are ReLUs"


class Partial(nn.Module):
    """alpha relu(x) + (1 - alpha) x with alpha (the shape of one example) in 0 to 1, to learn: SNL's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(shape))

    def share(self) -> Tensor:
        """Return alpha, clipped."""
        return self.alpha.clamp(0, 1)

    def kept(self) -> int:
        """Return how many entries are half a ReLU or more."""
        return int((self.alpha >= 0.5).sum())

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture."""
        share = self.share()
        return share * x.relu() + (1 - share) * x


def dapa(mean: Tensor, std: Tensor, degree: int = 2) -> tuple[Tensor, ...]:
    """Return the coefficients c0, c1 (and c2) of the polynomial nearest to ReLU under N(mean, std^2).

    With r = mean / std, and the standard normal density and distribution at r:

        degree 2:  c2 = pdf / (2 std),  c1 = cdf - r pdf,  c0 = (mean^2 + std^2) pdf / (2 std)
        degree 1:  c1 = cdf,  c0 = std pdf

    Source: AutoReP, Section 3.3, where they are named DaPa; any shapes that fit together, std above 0.
    """
    if degree not in (1, 2):
        raise WorkingPapersError(f"the polynomial has degree 1 or 2; got {degree}")
    r = mean / std
    pdf = torch.exp(-r * r / 2) / math.sqrt(2 * math.pi)
    cdf = torch.special.ndtr(r)
    if degree == 1:
        return std * pdf, cdf
    return (mean**2 + std**2) * pdf / (2 * std), cdf - r * pdf, pdf / (2 * std)


class Selective(Masked):
    """AutoReP's unit: each entry keeps its ReLU or takes a polynomial of its channel, by a state that is
    learnt.

        h = 0 if h = 1 and m <= -t;   h = 1 if h = 0 and m > t;   else h stays        (training, while it
        learns) y = h relu(x) + (1 - h) poly(x),   d h / d m := softplus(m)

    Args:
        start: what m starts from, in the shape of one example; channels are the first of three dimensions,
            the last
            otherwise.
        degree: of the polynomial; None leaves x as it is.
        damping: divides c0 and c2.
        threshold: t.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        start: Tensor,
        degree: int | None = 2,
        damping: tuple[float, float] = (5.0, 10.0),
        threshold: float = 0.003,
    ) -> None:
        super().__init__(torch.ones(start.shape))
        if degree not in (None, 1, 2):
            raise WorkingPapersError(f"the degree is 1, 2, or None for the identity; got {degree!r}")
        if threshold < 0 or min(damping) <= 0:
            raise WorkingPapersError(
                f"the threshold is at least 0 and damping divides by more than 0; got {threshold} and {damping}"
            )
        self.score = nn.Parameter(start.detach().clone())
        self.degree, self.damping, self.threshold, self.learning = degree, damping, threshold, True
        channels = start.shape[0] if start.ndim == 3 else start.shape[-1]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return variance and mean of each channel."""
        channel = 1 if self.mask.ndim == 3 else x.ndim - 1
        return torch.var_mean(x.detach(), [d for d in range(x.ndim) if d != channel], correction=0)

    def fit(self, x: Tensor) -> None:
        """Take mean and variance of each channel from pre-activations (N, ...)."""
        variance, mean = self._moments(x)
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    @torch.no_grad()
    def advance(self, x: Tensor) -> None:
        """Move states and statistics by one training batch."""
        if self.learning:
            on, m, t = self.mask, self.score, self.threshold
            self.mask.copy_(torch.where(on, m > -t, m > t))
        variance, mean = self._moments(x)
        self.mean.lerp_(mean.to(self.mean), FRESH)
        self.variance.lerp_(variance.to(self.variance), FRESH)

    def soft(self) -> Tensor:
        """Return h, with the gradient softplus(m)."""
        hard = self.mask.to(self.score)
        slope = F.softplus(self.score.detach()) * self.score
        return hard + (slope - slope.detach())

    def polynomial(self, x: Tensor) -> Tensor:
        """Return the damped polynomial of each channel, or x."""
        if self.degree is None:
            return x
        std = self.variance.sqrt().clamp_min(1e-3)
        found = [c.reshape(-1, 1, 1) if self.mask.ndim == 3 else c for c in dapa(self.mean, std, self.degree)]
        low = found[0] / self.damping[0]
        if self.degree == 1:
            return torch.addcmul(low, found[1], x)
        return torch.addcmul(low, x, torch.addcmul(found[1], found[2] / self.damping[1], x))

    def forward(self, x: Tensor) -> Tensor:
        """Return h relu(x) + (1 - h) poly(x); in training states and statistics move first."""
        if self.training:
            self.advance(x)
        other = self.polynomial(x)
        if not self.learning:
            return torch.where(self.mask, x.relu(), other)
        return torch.lerp(other, x.relu(), self.soft())

    def settle(self, mask: Tensor | None = None) -> None:
        """End the learning of the states, at a mask where one is given; the scores take no gradient from now
        on."""
        if mask is not None:
            self.mask.copy_(mask)
        self.learning = False
        self.score.requires_grad_(False)


class Reused(nn.Module):
    """ReLU-reuse: ReLU on one of `groups` equal parts of the channels, the others as they are.

    Args:
        shape: of one example, channels first.
        groups: r; 1 is ReLU.
        turn: which part, modulo r; consecutive layers take turns.
    """

    def __init__(self, shape: Shape, groups: int = 2, turn: int = 0) -> None:
        super().__init__()
        if groups < 1 or groups > shape[0]:
            raise WorkingPapersError(f"{shape[0]} channels fall into 1 to {shape[0]} groups; got {groups}")
        part = turn % groups
        self.start, self.end = part * shape[0] // groups, (part + 1) * shape[0] // groups
        self.size = math.prod(shape[1:])

    def kept(self) -> int:
        """Return how many entries are ReLUs."""
        return (self.end - self.start) * self.size

    def forward(self, x: Tensor) -> Tensor:
        """Return x with ReLU on the part."""
        return torch.cat([x[:, : self.start], x[:, self.start : self.end].relu(), x[:, self.end :]], 1)

    def extra_repr(self) -> str:
        """Name the part."""
        return f"channels {self.start} to {self.end - 1}"


def units_of_kind(model: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """Return the units of a class by the names of their sites."""
    return {name: unit for name, (unit, _) in sites(model).items() if isinstance(unit, kind)}


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return masks of exactly `count` largest scores over all sites together; ties go to the first."""
    flat = torch.cat([s.detach().flatten() for s in scores.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.argsort(descending=True, stable=True)[:count]] = True
    parts = mask.split([s.numel() for s in scores.values()])
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def random_scores(shapes: Mapping[str, Shape], seed: int) -> dict[str, Tensor]:
    """Return scores drawn uniformly from 0 to 1, by `seed`, whatever the device."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def budget_count(budget: float, total: int) -> int:
    """Return how many of `total` ReLUs a budget keeps: a share (a float, 0 to 1) or a number (an int).

    Raises:
        WorkingPapersError: for a share outside of 0 to 1, or a negative number.
    """
    if isinstance(budget, int) and not isinstance(budget, bool):
        if budget < 0:
            raise WorkingPapersError(f"a budget is a number of ReLUs of at least 0; got {budget}")
        return min(budget, total)
    if not 0 <= budget <= 1:
        raise WorkingPapersError(
            f"a budget is a share of the ReLUs, 0.0 to 1.0, or their number as an int; got {budget}"
        )
    return int(budget * total)

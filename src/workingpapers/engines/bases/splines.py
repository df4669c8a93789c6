"""B-splines of any order on one grid per input: the order + 1 bases that are not zero at a point, and refitting.

A grid of G intervals [p_0, ..., p_G] is continued by `order` knots on either side, so that there are
G + order bases, and they sum to 1 between p_0 and p_G.  Beyond the outermost knots all are 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError

COUNTED = 20  # knots: with fewer, comparing with each is faster than searching
ROWS = 4096  # examples at a time when a spline is refitted


class Local(NamedTuple):
    """The bases that are not zero at x: for each of order + 1 its column, value and slope there, each (N, I).

    `cell` is the interval between knots that x lies in; its bases are those numbered cell - order to cell.  Of
    these, some do not exist outside the grid: their value is 0, and their column any that is not taken.
    """

    cell: Tensor
    columns: list[Tensor]
    values: list[Tensor]
    slopes: list[Tensor]


@dataclass(frozen=True)
class Grid:
    """The knots (I, K) of splines of an order, and what can be known of them before any x is.

    `step` is the distance (I,) of even knots, and None where they are not even (or must not be looked at).
    """

    knots: Tensor
    order: int
    low: Tensor
    high: Tensor
    step: Tensor | None

    @classmethod
    def of(cls, knots: Tensor, order: int) -> "Grid":
        """Look at the knots once."""
        low, high = knots[:, 0].contiguous(), knots[:, -1].contiguous()
        step = (high - low) / (knots.shape[1] - 1)
        return cls(knots, order, low, high, step if order > 0 and _even(knots, low, step) else None)

    @property
    def size(self) -> int:
        """How many bases there are."""
        return self.knots.shape[1] - self.order - 1


def _even(knots: Tensor, low: Tensor, step: Tensor) -> bool:
    """Tell whether the knots lie at even distances, but for rounding; not asked of a device."""
    if _watched() or knots.device.type != "cpu":
        return False
    count = torch.arange(knots.shape[1], dtype=knots.dtype)
    gaps = (knots - low.unsqueeze(-1) - step.unsqueeze(-1) * count).abs()
    return bool((gaps <= 4 * torch.finfo(knots.dtype).eps * knots.abs().amax(dim=1, keepdim=True)).all())


def _watched() -> bool:
    """Tell whether the values of tensors must not decide anything, as under torch.compile and vmap."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def uniform_points(in_features: int, grid: int, span: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Return `grid` + 1 even points from span[0] to span[1] for every input, (I, grid + 1)."""
    if grid < 1:
        raise WorkingPapersError(f"a grid has at least one interval; got {grid}")
    if not span[0] < span[1]:
        raise WorkingPapersError(f"a grid spans from a lower to a higher number; got {span[0]} to {span[1]}")
    return torch.linspace(span[0], span[1], grid + 1).repeat(in_features, 1)


def extended_knots(points: Tensor, order: int) -> Tensor:
    """Continue the points (I, G + 1) by `order` knots on either side, at their mean distance."""
    step = (points[:, -1:] - points[:, :1]) / (points.shape[1] - 1)
    away = step * torch.arange(1, order + 1, device=points.device)
    return torch.cat([points[:, :1] - away.flip(1), points, points[:, -1:] + away], dim=1)


def grid_points(knots: Tensor, order: int) -> Tensor:
    """Return the grid's points (I, G + 1) without the knots outside."""
    return knots[:, order : knots.shape[1] - order]


def intervals(x: Tensor, knots: Tensor) -> Tensor:
    """Return for x (N, I) the number of the interval between knots (I, K), 0 to K - 2, the outer ones open."""
    inner = knots[:, 1:-1]
    if inner.shape[1] > COUNTED or torch.compiler.is_compiling() or x.device.type != "cpu":
        return torch.searchsorted(inner.contiguous(), x.T.contiguous(), right=True).T.contiguous()
    count = torch.zeros(x.shape, dtype=torch.uint8)
    for knot in inner.T.contiguous():
        count = count + (x >= knot).view(torch.uint8)
    return count.long()


def local_bases(x: Tensor, grid: Grid, slopes: bool = False) -> Local:
    """Evaluate the bases that are not zero at x (N, I), by the recursion of Cox and de Boor on them alone.

    Differentiable in x; with `slopes` their derivatives come along, at little cost.
    """
    inside = ((x >= grid.low) & (x < grid.high)).to(x.dtype)
    x = torch.minimum(torch.maximum(x, grid.low), grid.high)
    evaluate = _uneven_bases if grid.step is None else _even_bases
    cell, values, rates = evaluate(x, inside, grid)
    if grid.step is not None and _interior(cell, grid):
        columns = [cell + (j - grid.order) for j in range(grid.order + 1)]
        return Local(cell, columns, values, rates() if slopes else [])
    columns, exist = _tables(cell, grid, x.dtype)
    values = [v * e for v, e in zip(values, exist, strict=True)]
    return Local(
        cell, columns, values, [r * e for r, e in zip(rates(), exist, strict=True)] if slopes else []
    )


def _interior(cell: Tensor, grid: Grid) -> bool:
    """Tell whether all bases of all these intervals exist."""
    return cell.numel() > 0 and int(cell.min()) >= grid.order and int(cell.max()) < grid.size


Evaluated = tuple[Tensor, list[Tensor], Callable[[], list[Tensor]]]


def _even_bases(x: Tensor, inside: Tensor, grid: Grid) -> Evaluated:
    """Return intervals, values and (on demand) slopes on even knots: distances to them are whole numbers apart."""
    order, step = grid.order, grid.step
    assert step is not None
    t = (x - grid.low) / step
    floor = t.detach().floor().clamp_(0, grid.size + order - 1)
    u = t - floor
    up, down = [u + m for m in range(order)], [m + 1 - u for m in range(order)]
    before, values = [inside], [inside / math.factorial(order)]
    for degree in range(1, order + 1):
        before = values
        ends = down[0] * before[0], up[0] * before[-1]
        middle = [torch.addcmul(down[j] * before[j], up[degree - j], before[j - 1]) for j in range(1, degree)]
        values = [ends[0], *middle, ends[1]]

    def rates() -> list[Tensor]:
        lower = [b * (order / step) for b in before]
        return [-lower[0], *(a - b for a, b in pairwise(lower)), lower[-1]]

    return floor.nan_to_num_().long(), values, rates


def _uneven_bases(x: Tensor, inside: Tensor, grid: Grid) -> Evaluated:
    """Return intervals, values and (on demand) slopes on any knots."""
    order = grid.order
    cell = intervals(x.detach(), grid.knots)
    near = _knots_near(cell, grid.knots, order)  # near[order - 1] <= x < near[order]
    values, shares = [inside], [torch.zeros_like(x)]
    for degree in range(1, order + 1):
        low, high = near[order - degree : order], near[order : order + degree]
        shares = [v / (b - a) for v, a, b in zip(values, low, high, strict=True)]
        rising = [(x - a) * s for a, s in zip(low, shares, strict=True)]
        falling = [(b - x) * s for b, s in zip(high, shares, strict=True)]
        values = [falling[0], *(r + f for r, f in zip(rising, falling[1:], strict=False)), rising[-1]]

    def rates() -> list[Tensor]:
        lower = [order * s for s in shares]
        return [-lower[0], *(a - b for a, b in pairwise(lower)), lower[-1]][: order + 1]

    return cell, values, rates


def _knots_near(cell: Tensor, knots: Tensor, order: int) -> list[Tensor]:
    """Return the 2 * order knots around each interval, each (N, I); beyond the last, any that keep the order."""
    width = knots[:, -1:] - knots[:, :1]
    beyond = width * torch.arange(1, order + 1, device=knots.device)
    padded = torch.cat([knots[:, :1] - beyond.flip(1), knots, knots[:, -1:] + beyond], dim=1)
    start = torch.arange(len(knots), device=knots.device) * padded.shape[1]
    place, flat = (cell + (start + 1)).flatten(), padded.flatten()
    return [flat.index_select(0, place + j).view(cell.shape) for j in range(2 * order)]


def _tables(cell: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return for the order + 1 bases of each interval their columns and whether they exist, each (N, I)."""
    number = torch.arange(grid.size + grid.order, device=cell.device) - grid.order
    flat = cell.flatten()
    columns, exist = [], []
    for j in range(grid.order + 1):
        basis = number + j
        columns.append(basis.remainder(grid.size).index_select(0, flat).view(cell.shape))
        there = ((basis >= 0) & (basis < grid.size)).to(dtype)
        exist.append(there.index_select(0, flat).view(cell.shape))
    return columns, exist


def dense_bases(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Evaluate all bases at x (N, I), (N, I, G + order)."""
    local = local_bases(x, Grid.of(knots, order))
    whole = x.new_zeros(*x.shape, knots.shape[1] - order - 1)
    return whole.scatter(-1, torch.stack(local.columns, -1), torch.stack(local.values, -1))


def finer_points(points: Tensor, grid: int) -> Tensor:
    """Return `grid` + 1 points on the broken line through the old, which stay if `grid` is a multiple."""
    old = points.shape[1] - 1
    whole = torch.arange(grid, device=points.device) * old
    first, part = whole // grid, (whole % grid).to(points.dtype) / grid
    between = points[:, first] + part * (points[:, first + 1] - points[:, first])
    return torch.cat([between, points[:, -1:]], dim=1)


def adapted_points(x: Tensor, grid: int, adaptivity: float) -> Tensor:
    """Return points (I, grid + 1) that follow the samples x (N, I): their quantiles, mixed with even points.

    `adaptivity` 1 takes the quantiles alone, 0 even points from the least sample to the largest.
    """
    ranks = torch.linspace(0, len(x) - 1, grid + 1, device=x.device).round().long()
    quantiles = x.sort(dim=0).values[ranks].T
    low, high = quantiles[:, :1], quantiles[:, -1:]
    share = torch.linspace(0, 1, grid + 1, device=x.device, dtype=x.dtype)
    even = low + share * (high - low)
    mixed = adaptivity * quantiles + (1 - adaptivity) * even
    if not bool((mixed.diff(dim=1) > 0).all()):
        feature = int((mixed.diff(dim=1) <= 0).any(dim=1).nonzero()[0])
        raise WorkingPapersError(
            f"the grid of input {feature} cannot follow the samples: too many of them are equal; "
            "give more samples or a lower adaptivity"
        )
    return mixed


def sites(knots: Tensor, order: int) -> Tensor:
    """Return points in the grid at which a spline can be prescribed, as many as there are bases, (bases, I)."""
    points = grid_points(knots, order)
    clamped = torch.minimum(torch.maximum(knots, points[:, :1]), points[:, -1:])
    if order == 0:
        return ((clamped[:, 1:] + clamped[:, :-1]) / 2).T
    return torch.stack([clamped[:, j + 1 : j + 1 + order].mean(1) for j in range(knots.shape[1] - order - 1)])


def refit(
    coefficients: Tensor, knots: Tensor, new: Tensor, order: int, samples: Tensor | None = None
) -> Tensor:
    """Return coefficients (I, bases, O) on the `new` knots of the splines with `coefficients` on `knots`.

    They agree at the new `sites`, so exactly inside the grid where the new knots contain the old; with
    `samples` (N, I) the sum of squares over these and the sites is least.  Solved in float64.
    """
    old, new64, c = knots.double(), new.double(), coefficients.double()
    places = sites(new64, order)
    if samples is not None:
        places = torch.cat([samples.double(), places])
    if samples is None:
        a, b = (dense_bases(places, k, order).transpose(0, 1) for k in (new64, old))
    else:
        a, b = 0.0 * new64[:, 0, None, None], 0.0 * old[:, 0, None, None]
        for part in places.split(ROWS):
            here, before = dense_bases(part, new64, order), dense_bases(part, old, order)
            a = a + torch.einsum("nip,niq->ipq", here, here)
            b = b + torch.einsum("nip,niq->ipq", here, before)
    found: Tensor = torch.linalg.solve(a, b @ c)
    return found.to(coefficients.dtype)

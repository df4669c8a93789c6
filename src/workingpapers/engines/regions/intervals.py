"""Intervals of a line's parameter, many at a time, cut at points."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.regions.polygons import Cuts


@dataclass(frozen=True)
class Intervals:
    """Intervals `ends` (R, 2) float64, each from a smaller to a larger number; `line` (R) says of which line."""

    ends: Tensor
    line: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, index: Tensor | slice) -> "Intervals":
        """Return some of them."""
        return Intervals(self.ends[index], self.line[index])

    def box(self) -> tuple[Tensor, Tensor]:
        """Return the middle of each (R, 1), and half its length (R, 1)."""
        return self.ends.mean(1, keepdim=True), self.ends.diff(dim=1) / 2

    def crossed(self, cuts: Cuts) -> Tensor:
        """Return which cuts a * t + c = 0 have ends on both sides."""
        side = self.ends[cuts.owner] * cuts.forms[0][:, None] + cuts.forms[1][:, None]
        return (side.amax(1) > cuts.slack) & (side.amin(1) < -cuts.slack)

    def cut(self, cuts: Cuts, most: int) -> Iterator[tuple["Intervals", Tensor]]:
        """Cut at all points at once; points less than the slack apart are one.  One batch, in order."""
        low, high = self.ends[cuts.owner].T
        at_low, at_high = (cuts.forms[0] * end + cuts.forms[1] for end in (low, high))
        # from the two values at the ends, which a shift of the parameter does not spoil
        points = low + (high - low) * at_low / (at_low - at_high)
        width = cuts.slack / cuts.forms[0].abs()
        order = torch.argsort(points)
        order = order[torch.argsort(cuts.owner[order], stable=True)]
        owner, points, width = cuts.owner[order], points[order], width[order]
        before = self.ends[owner, 0]
        same = torch.zeros(len(owner), dtype=torch.bool)
        same[1:] = owner[1:] == owner[:-1]
        before[1:] = torch.where(same[1:], points[:-1], before[1:])
        fresh = points - before > width
        owner, points = owner[fresh], points[fresh]
        starts = torch.cat([self.ends[:, 0], points])
        parent = torch.cat([torch.arange(len(self)), owner])
        order = torch.argsort(starts)
        order = order[torch.argsort(parent[order], stable=True)]
        starts, parent = starts[order], parent[order]
        stops = self.ends[parent, 1]
        inner = parent[1:] == parent[:-1]
        stops[:-1] = torch.where(inner, starts[1:], stops[:-1])
        yield Intervals(torch.stack([starts, stops], 1), self.line[parent]), parent

"""Convex polygons, many at a time, cut by the lines that cross them.

Corners stand in one tensor (polygons, most corners, 2), counter-clockwise; shorter polygons repeat their first
corner at the end, so that sums around a polygon, and extremes over it, need no mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Cuts(NamedTuple):
    """Lines a * u[0] + b * u[1] + c = 0, each to cut one polygon.

    `owner` (lines) is the polygon's number, in ascending order; `forms` (3, lines) are a, b and c; values of the
    form of at most `slack` (lines) count as 0.
    """

    owner: Tensor
    forms: Tensor
    slack: Tensor

    def chosen(self, index: Tensor) -> "Cuts":
        """Return those of an index or a mask."""
        return Cuts(self.owner[index], self.forms[:, index], self.slack[index])


@dataclass(frozen=True)
class Polygons:
    """Convex polygons: `corners` (R, V, 2) float64, and how many of them count, `counts` (R)."""

    corners: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def part(self, index: Tensor | slice) -> "Polygons":
        """Return some of them."""
        counts = self.counts[index]
        return Polygons(self.corners[index][:, : int(counts.max()) if len(counts) else 3], counts)

    def box(self) -> tuple[Tensor, Tensor]:
        """Return a point inside each (R, 2), and how far along each coordinate it reaches from there (R, 2)."""
        middle = self.corners.mean(1)  # every corner counts, some of them more than once
        return middle, (self.corners - middle[:, None]).abs().amax(1)

    def crossed(self, cuts: Cuts) -> Tensor:
        """Return which cuts (lines) leave corners on both sides."""
        corners = self.corners[cuts.owner]
        a, b, c = cuts.forms[..., None]
        side = torch.addcmul(torch.addcmul(c, corners[..., 0], a), corners[..., 1], b)
        return (side.amax(1) > cuts.slack) & (side.amin(1) < -cuts.slack)

    def cut(self, cuts: Cuts, most: int) -> Iterator[tuple["Polygons", Tensor]]:
        """Cut polygons by all lines that cross them and give the pieces, each with the polygon it is a piece of.

        Pieces come in batches, each piece once; what is held at a time grows with `most`, not with their number.
        Every cut has to cross its polygon (`crossed`).
        """
        stack = [(self, torch.arange(len(self)), cuts)]
        ready: list[tuple[Polygons, Tensor]] = []
        held = 0
        while stack:
            polygons, parent, left = stack.pop()
            pending = torch.zeros(len(polygons), dtype=torch.bool)
            pending[left.owner] = True
            done = (~pending).nonzero()[:, 0]
            if len(done):
                ready.append((polygons.part(done), parent[done]))
                held += len(done)
            if held >= most:
                yield _joined(ready)
                ready, held = [], 0
            if len(left.owner):
                stack += _halved(*_cut_once(polygons, parent, left, pending), most)
        if held:
            yield _joined(ready)


def _joined(batches: list[tuple[Polygons, Tensor]]) -> tuple[Polygons, Tensor]:
    if len(batches) == 1:
        return batches[0]
    return stacked([p for p, _ in batches]), torch.cat([parent for _, parent in batches])


def stacked(parts: list[Polygons]) -> Polygons:
    """Return several sets of polygons as one."""
    most = max(p.corners.shape[1] for p in parts)
    padded = []
    for p in parts:
        missing = most - p.corners.shape[1]
        padded.append(torch.cat([p.corners, p.corners[:, :1].expand(-1, missing, -1)], 1))
    return Polygons(torch.cat(padded), torch.cat([p.counts for p in parts]))


def _cut_once(
    polygons: Polygons, parent: Tensor, cuts: Cuts, pending: Tensor
) -> tuple[Polygons, Tensor, Cuts]:
    """Cut every pending polygon by its first line; keep the others where they still cross a piece."""
    index = pending.nonzero()[:, 0]
    renamed = torch.cumsum(pending, 0)[cuts.owner] - 1
    first = torch.ones(len(renamed), dtype=torch.bool)
    first[1:] = renamed[1:] != renamed[:-1]
    pieces = _split(polygons.part(index), cuts.forms[:, first], cuts.slack[first])
    rest = (~first).nonzero()[:, 0]
    owner, forms, slack = renamed[rest], cuts.forms[:, rest], cuts.slack[rest]
    both = Cuts(
        torch.cat([owner, owner + len(index)]), torch.cat([forms, forms], 1), torch.cat([slack, slack])
    )
    parents = parent[index]
    return pieces, torch.cat([parents, parents]), both.chosen(pieces.crossed(both).nonzero()[:, 0])


def _halved(polygons: Polygons, parent: Tensor, cuts: Cuts, most: int) -> list[tuple[Polygons, Tensor, Cuts]]:
    if len(polygons) <= most:
        return [(polygons, parent, cuts)]
    half = len(polygons) // 2
    border = int(torch.searchsorted(cuts.owner, half))
    below = Cuts(cuts.owner[:border], cuts.forms[:, :border], cuts.slack[:border])
    above = Cuts(cuts.owner[border:] - half, cuts.forms[:, border:], cuts.slack[border:])
    return [
        (polygons.part(slice(None, half)), parent[:half], below),
        (polygons.part(slice(half, None)), parent[half:], above),
    ]


def _split(polygons: Polygons, forms: Tensor, slack: Tensor) -> Polygons:
    """Return the pieces of each polygon on the positive side of its line, then all those on the negative side."""
    corners, counts = polygons.corners, polygons.counts
    a, b, c = forms[..., None]
    side = torch.addcmul(torch.addcmul(c, corners[..., 0], a), corners[..., 1], b)
    side = torch.where(side.abs() <= slack[:, None], 0.0, side)
    after = side.roll(-1, 1)
    real = torch.arange(side.shape[1]) < counts[:, None]
    crosses = (side > 0) & (after < 0) | (side < 0) & (after > 0)
    crosses &= real
    share = torch.where(crosses, side / (side - after), 0.0)[..., None]
    between = torch.lerp(corners, corners.roll(-1, 1), share)
    points = torch.stack([corners, between], 2).flatten(1, 2)
    keep = torch.stack([torch.stack([(s >= 0) & real, crosses], 2).flatten(1) for s in (side, -side)])
    place = keep.cumsum(2) - 1
    counts = place[..., -1] + 1
    most = int(counts.max())
    start = keep.to(torch.uint8).argmax(2)  # the first that is kept fills what is left over
    rows = torch.arange(len(points))
    pieces = points[rows, start][:, :, None].repeat(1, 1, most, 1)
    sign, row, slot = keep.nonzero(as_tuple=True)
    pieces[sign, row, place[sign, row, slot]] = points[row, slot]
    return Polygons(pieces.flatten(0, 1), counts.flatten())

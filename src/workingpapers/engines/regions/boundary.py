"""The decision boundary inside regions, on each of which it is made of straight segments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.regions.plane import Plane

ZERO = 1e-12  # of the largest value at a region's corners: differences up to it count as 0
NUMBERS = 4_000_000  # outputs at corners that are looked at together
PAIRS = 200_000  # pairs of classes in regions, likewise


@dataclass(frozen=True)
class Segments:
    """Segments of a decision boundary: `ends` (S, 2, 2) in the plane's coordinates, the `classes` (S, 2) that tie.

    For one output the classes are 0, for positive outputs, and 1.
    """

    ends: Tensor
    classes: Tensor
    plane: Plane

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Tensor:
        """Their lengths (S) in the plane's coordinates."""
        found: Tensor = (self.ends[:, 1] - self.ends[:, 0]).norm(dim=-1)
        return found

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Return random points on them, uniform along their lengths: (count, 2)."""
        generator = torch.Generator().manual_seed(seed)
        total = self.lengths.cumsum(0)
        at = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
        chosen = torch.searchsorted(total, at).clamp(max=len(self) - 1)
        share = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        found: Tensor = torch.lerp(self.ends[chosen, 0], self.ends[chosen, 1], share)
        return found


def segments(corners: Tensor, maps: Tensor, plane: Plane) -> Segments:
    """Return where in regions two outputs tie for the largest, or a single one is 0.

    Regions on which both outputs are equal everywhere have no boundary of these classes; an edge on which they tie
    counts for the region on its side where the class of the smaller number is on top.

    Args:
        corners: (R, V, 2), maps: (R, outputs, 3), as in a `RegionSet`.
    """
    block = max(1, NUMBERS // (corners.shape[1] * maps.shape[1]))
    found = [_of_block(*each) for each in zip(corners.split(block), maps.split(block), strict=True)]
    ends, classes = zip(*found, strict=True)
    return Segments(torch.cat(ends), torch.cat(classes), plane)


def _of_block(corners: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.einsum("rvi,roi->rvo", corners, maps[..., :2]) + maps[:, None, :, 2]
    if values.shape[-1] == 1:
        values = torch.cat([values, torch.zeros_like(values)], -1)
    slack = ZERO * values.abs().amax((1, 2))
    top = values.amax(-1, keepdim=True)
    # where one class is on top at every corner, well above the others, it is so in the whole region
    clear = ((values < top - slack[:, None, None]).sum(-1) == values.shape[-1] - 1).all(1)
    same = (values.argmax(-1) == values[:, :1].argmax(-1)).all(1)
    open_regions = (~(clear & same)).nonzero()[:, 0]
    first, second = torch.triu_indices(values.shape[-1], values.shape[-1], 1)
    block = max(1, PAIRS // len(first))
    ends, classes = [corners.new_zeros(0, 2, 2)], [torch.zeros(0, 2, dtype=torch.long)]
    for index in open_regions.split(block):
        region, pair = (x.flatten() for x in torch.meshgrid(index, torch.arange(len(first)), indexing="ij"))
        found, kept = _ties(corners, values, slack, region, first[pair], second[pair])
        ends.append(found)
        classes.append(torch.stack([first[pair[kept]], second[pair[kept]]], 1))
    return torch.cat(ends), torch.cat(classes)


def _ties(
    corners: Tensor, values: Tensor, slack: Tensor, region: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the segments (S, 2, 2) on which classes a and b tie at the top, and the pairs that they are of."""
    columns = torch.arange(values.shape[1])
    apart = values[region[:, None], columns, a[:, None]] - values[region[:, None], columns, b[:, None]]
    apart = torch.where(apart.abs() <= slack[region, None], 0.0, apart)
    after = apart.roll(-1, 1)
    crosses = (apart.amax(1) > 0) & (apart.amin(1) < 0)
    along = (apart == 0) & (after == 0)
    edge = corners.roll(-1, 1)[region] - corners[region]
    along &= (edge != 0).any(-1) & ((apart.amax(1) > 0) & ~crosses)[:, None]
    kept = torch.where(crosses | along.any(1))[0]
    region, apart, after, crosses, along = region[kept], apart[kept], after[kept], crosses[kept], along[kept]
    # where the line enters and leaves, going around: from above 0 to 0 or below, and from below to 0 or above
    leaves = ((apart > 0) & (after <= 0)).to(torch.uint8).argmax(1)
    enters = ((apart <= 0) & (after > 0)).to(torch.uint8).argmax(1)
    rows = torch.arange(len(kept))
    points, tops = [], []
    for edge_of in (leaves, enters):
        start, end = apart[rows, edge_of], after[rows, edge_of]
        share = (start / torch.where(start == end, 1.0, start - end))[:, None]
        behind = (edge_of + 1) % apart.shape[1]
        points.append(torch.lerp(corners[region, edge_of], corners[region, behind], share))
        tops.append(torch.lerp(values[region, edge_of], values[region, behind], share))
    ends, tied = torch.stack(points, 1), torch.stack(tops, 1)
    low, high = _topped(tied, a[kept], slack[region])
    left = low < high
    clipped = torch.stack([torch.lerp(ends[:, 0], ends[:, 1], s[:, None]) for s in (low, high)], 1)
    left &= (clipped[:, 0] != clipped[:, 1]).any(-1)
    return clipped[left], kept[left]


def _topped(tied: Tensor, a: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return between which shares (N) of segments class a is on top; `tied` (N, 2, C) are outputs at their ends."""
    lead = tied.gather(2, a[:, None, None].expand(-1, 2, 1)) - tied
    lead = torch.where(lead.abs() <= 4 * slack[:, None, None], 0.0, lead)
    start, end = lead[:, 0], lead[:, 1]
    meets = start / torch.where(start == end, 1.0, start - end)
    low = torch.where((start < 0) & (end > 0), meets, 0.0).amax(1)
    high = torch.where((start > 0) & (end < 0), meets, 1.0).amin(1)
    never = ((start < 0) & (end <= 0) | (start <= 0) & (end < 0)).any(1)
    return low, torch.where(never, -1.0, high)

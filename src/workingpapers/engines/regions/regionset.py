"""Regions of a plane: their polygons, the affine map on each, and what follows from them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from workingpapers.engines.regions.boundary import Segments, segments
from workingpapers.engines.regions.plane import Plane
from workingpapers.engines.regions.program import Program, program
from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class RegionSet:
    """Regions of a network in a polygon.

    `corners` (R, V, 2) in the plane's coordinates, counter-clockwise, the first one repeated behind the last;
    `counts` (R) of corners; `maps` (R, outputs, 3): output = maps[..., :2] @ u + maps[..., 2].
    """

    corners: Tensor
    counts: Tensor
    maps: Tensor
    plane: Plane

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def polygons(self) -> list[Tensor]:
        """The corners of each region by themselves."""
        return [c[:n] for c, n in zip(self.corners, self.counts.tolist(), strict=True)]

    @cached_property
    def _about_first(self) -> tuple[Tensor, Tensor]:
        """Edges' starts and ends from each region's first corner: small regions far from 0 keep their digits."""
        start = self.corners - self.corners[:, :1]
        return start, start.roll(-1, 1)

    @cached_property
    def _wedges(self) -> Tensor:
        start, end = self._about_first
        return start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0]

    @property
    def areas(self) -> Tensor:
        """Their areas (R), in the plane's coordinates."""
        return self._wedges.sum(1) / 2

    @cached_property
    def centroids(self) -> Tensor:
        """Their centres of mass (R, 2)."""
        start, end = self._about_first
        moment = ((start + end) * self._wedges[..., None]).sum(1)
        area = self.areas
        tiny = area <= 0  # a sliver whose area is lost in rounding
        found = moment / torch.where(tiny, 1.0, 6 * area)[:, None]
        return self.corners[:, 0] + torch.where(tiny[:, None], start.mean(1), found)

    @property
    def middles(self) -> Tensor:
        """A point inside each (R, 2): the mean of its corners, the first of which may count more than once."""
        return self.corners.mean(1)

    @property
    def eccentricities(self) -> Tensor:
        """How long they are (R): sqrt(1 - s / l) of the smaller and larger second moment of area; 0 of squares."""
        start = self.corners - self.centroids[:, None]
        end = start.roll(-1, 1)
        wedge = start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0]
        xx, yy = (
            ((start[..., i] ** 2 + start[..., i] * end[..., i] + end[..., i] ** 2) * wedge).sum(1)
            for i in (0, 1)
        )
        mixed = start[..., 0] * end[..., 1] + end[..., 0] * start[..., 1]
        xy = ((start.prod(-1) + end.prod(-1) + mixed / 2) * wedge).sum(1)
        middle, apart = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
        ratio = (middle - apart) / torch.where(middle > 0, middle + apart, 1.0)
        return (1 - ratio.clamp(0, 1)).sqrt()

    @property
    def slopes(self) -> Tensor:
        """The Frobenius norms (R) of the maps' slopes along the plane's coordinates."""
        found: Tensor = self.maps[..., :2].flatten(1).norm(dim=1)
        return found

    def values(self, region: Tensor, u: Tensor) -> Tensor:
        """Return what the maps of regions (N) give at coordinates (N, 2): (N, outputs)."""
        chosen = self.maps[region]
        found: Tensor = (chosen[..., :2] @ u[..., None])[..., 0] + chosen[..., 2]
        return found

    def codes(self, model: nn.Module | Program) -> Tensor:
        """Return which straight part every neuron is on in each region (R, neurons), uint8; no two are alike."""
        return program(model, self.plane.origin[None]).codes(self.plane(self.middles))

    def inside(self, u: Tensor) -> Tensor:
        """Return for coordinates (N, 2) the region that each lies in, the one it is deepest in; -1 outside all.

        Looks at all pairs whose bounding boxes meet, in blocks of points.
        """
        low, high = self.corners.amin(1), self.corners.amax(1)
        edges = self.corners.roll(-1, 1) - self.corners
        lengths = edges.norm(dim=-1)
        normals = torch.stack([-edges[..., 1], edges[..., 0]], -1)
        normals = normals / torch.where(lengths > 0, lengths, 1.0)[..., None]
        size = float((high.amax(0) - low.amin(0)).max())
        found = torch.full((len(u),), -1)
        for start in range(0, len(u), block := max(1, 4_000_000 // max(1, len(self)))):
            points = u[start : start + block].to(torch.float64)
            near = ((points[:, None] >= low - 1e-12 * size) & (points[:, None] <= high + 1e-12 * size)).all(
                -1
            )
            point, region = near.nonzero(as_tuple=True)
            depth = ((points[point, None] - self.corners[region]) * normals[region]).sum(-1)
            depth = torch.where(lengths[region] > 0, depth, torch.inf).amin(1)
            deepest = torch.full((len(points),), -torch.inf, dtype=torch.float64)
            deepest = deepest.scatter_reduce(0, point, depth, "amax")
            best = (depth == deepest[point]) & (depth >= -1e-9 * size)
            found[start : start + block].scatter_(0, point[best], region[best])
        return found

    def near(self, u: Tensor, radius: float) -> Tensor:
        """Return for coordinates (N, 2) how many regions come closer than `radius` (N)."""
        low, high = self.corners.amin(1) - radius, self.corners.amax(1) + radius
        counts = torch.zeros(len(u), dtype=torch.long)
        for start in range(0, len(u), block := max(1, 4_000_000 // max(1, len(self)))):
            points = u[start : start + block].to(torch.float64)
            point, region = (
                ((points[:, None] > low) & (points[:, None] < high)).all(-1).nonzero(as_tuple=True)
            )
            close = _distances(points[point], self.corners[region]) < radius
            counts[start : start + block] = torch.bincount(point[close], minlength=len(points))
        return counts

    def sample(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return random points, uniform over the area: regions (count) and coordinates (count, 2)."""
        generator = torch.Generator().manual_seed(seed)
        areas = self.areas.clamp(min=0)
        places = torch.rand(count, generator=generator, dtype=torch.float64) * areas.sum()
        region = torch.searchsorted(areas.cumsum(0), places).clamp(max=len(self) - 1)
        return region, self.inner_points(region, generator)

    def inner_points(self, region: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random point of each of the regions (N), uniform in it: coordinates (N, 2)."""
        corners = self.corners[region]
        fans = self._wedges[region].clamp(min=0).cumsum(1)
        at = torch.rand(len(region), 1, generator=generator, dtype=torch.float64) * fans[:, -1:]
        fan = torch.searchsorted(fans, at).clamp(max=fans.shape[1] - 1)[:, 0]
        rows = torch.arange(len(region))
        a, b, c = corners[:, 0], corners[rows, fan], corners[rows, (fan + 1) % corners.shape[1]]
        r, s = torch.rand(2, len(region), 1, generator=generator, dtype=torch.float64)
        root = r.sqrt()
        found: Tensor = (1 - root) * a + root * (1 - s) * b + root * s * c
        return found

    def boundary(self) -> Segments:
        """Return where two classes tie at the top, or where a single output is 0; see `segments`."""
        return segments(self.corners, self.maps, self.plane)

    def sample_boundary(self, count: int, seed: int = 0) -> Tensor:
        """Return random inputs on the decision boundary, uniform along it: (count, *input shape), double precision.

        Raises:
            WorkingPapersError: where the domain has no boundary.
        """
        found = self.boundary()
        if not len(found):
            raise WorkingPapersError(
                "one class is on top in the whole domain, so there is no boundary to sample"
            )
        return self.plane(found.sample(count, seed))


def _distances(points: Tensor, corners: Tensor) -> Tensor:
    """Return the distance (N) of points (N, 2) to polygons (N, V, 2), 0 inside."""
    edges = corners.roll(-1, 1) - corners
    away = points[:, None] - corners
    squares = edges.square().sum(-1)
    share = ((away * edges).sum(-1) / torch.where(squares > 0, squares, 1.0)).clamp(0, 1)
    apart = (away - share[..., None] * edges).norm(dim=-1).amin(1)
    left = edges[..., 0] * away[..., 1] - edges[..., 1] * away[..., 0]
    return torch.where((left >= 0).all(1), 0.0, apart)

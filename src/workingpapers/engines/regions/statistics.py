"""Statistics of a partition, summed up chunk by chunk, so that the regions need not be kept."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workingpapers.engines.regions.partition import partition
from workingpapers.engines.regions.plane import Plane
from workingpapers.engines.regions.program import Program
from workingpapers.engines.regions.regionset import RegionSet


@dataclass
class Statistics:
    """Sums over regions; lengths and areas are in the plane's coordinates.

    Args:
        points: coordinates (N, 2), such as those of data, around which regions are counted.
        radius: how near a region has to come to count.
        boundary: whether the decision boundary is measured.
    """

    points: Tensor | None = None
    radius: float = 0.1
    boundary: bool = True
    number: int = 0
    corners: int = 0
    area: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    near: Tensor | None = None

    def add(self, regions: RegionSet) -> None:
        """Count more regions in."""
        areas, slopes = regions.areas, regions.slopes
        self.number += len(regions)
        self.corners += int(regions.counts.sum())
        self.area += float(areas.sum())
        parts = {
            "eccentricity": regions.eccentricities.sum(),
            "slope": slopes.sum(),
            "slope over area": (slopes * areas).sum(),
            "boundary": regions.boundary().lengths.sum() if self.boundary else 0.0,
        }
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        if self.points is not None:
            found = regions.near(self.points, self.radius)
            self.near = found if self.near is None else self.near + found

    @property
    def numbers(self) -> dict[str, float]:
        """The number of regions, their mean area and eccentricity, corners a region, the norm of the slope as a
        mean over regions and over the area, the length of the boundary, and the mean number near a point."""
        count = max(1, self.number)
        found = {
            "regions": float(self.number),
            "mean_area": self.area / count,
            "eccentricity": self.sums.get("eccentricity", 0.0) / count,
            "corners": self.corners / count,
            "slope": self.sums.get("slope", 0.0) / count,
            "slope_over_area": self.sums.get("slope over area", 0.0) / self.area if self.area else math.nan,
        }
        if self.boundary:
            found["boundary_length"] = self.sums.get("boundary", 0.0)
        if self.near is not None:
            found["regions_near"] = float(self.near.double().mean())
        return found


def statistics(
    model: nn.Module | Program,
    domain: Tensor,
    plane: Plane | None = None,
    *,
    points: Tensor | None = None,
    radius: float = 0.1,
    boundary: bool = True,
) -> Statistics:
    """Count and measure the regions of a network in a polygon without keeping them.

    Arguments are those of `partition` and of `Statistics`; memory does not grow with the number of regions.
    """
    found = Statistics(points, radius, boundary)
    with torch.no_grad():
        for regions in partition(model, domain, plane):
            found.add(regions)
    return found

"""The partition of a polygon of a plane of inputs into the regions on which a network is affine."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from workingpapers.engines.regions.plane import Plane, convex
from workingpapers.engines.regions.polygons import Polygons, stacked
from workingpapers.engines.regions.program import Program, program
from workingpapers.engines.regions.regionset import RegionSet
from workingpapers.engines.regions.walk import Walk


def partition(model: nn.Module | Program, domain: Tensor, plane: Plane | None = None) -> Iterator[RegionSet]:
    """Give the regions of a piecewise-linear network in a polygon, a chunk at a time, neighbours together.

    A region is a set of inputs of the plane on which every neuron is on one straight part of its activation.
    All is computed in double precision.  A neuron's kink is taken to cross a region where it leaves corners
    farther than 1e-12 of the domain's diameter on both sides: thinner slivers stay with a neighbour, whose map is
    wrong there by no more than that distance times its slope.

    Args:
        model: a module, continuous and piecewise linear in evaluation mode, of any shape of input; or a `Program`.
        domain: the corners (n, 2) of a convex polygon in the plane's coordinates.
        plane: where the domain lies in input space; by default the inputs themselves, for two inputs.

    Raises:
        WorkingPapersError: where the model is not piecewise linear, the domain no convex polygon, or shapes differ.
    """
    where = Plane.whole() if plane is None else plane
    corners = convex(domain)
    network = program(model, where.origin[None])
    polygons = Polygons(corners[None], torch.tensor([len(corners)]))
    diameter = float(torch.cdist(corners, corners).max())
    for cells, frames in Walk[Polygons](network, diameter).run(polygons, where.frames):
        yield RegionSet(cells.corners, cells.counts, frames.permute(1, 2, 0), where)


def region_set(model: nn.Module | Program, domain: Tensor, plane: Plane | None = None) -> RegionSet:
    """Return all regions at once; see `partition`."""
    return joined(list(partition(model, domain, plane)))


def joined(parts: Sequence[RegionSet]) -> RegionSet:
    """Return the regions of one plane that came in several chunks as one set."""
    polygons = stacked([Polygons(p.corners, p.counts) for p in parts])
    return RegionSet(polygons.corners, polygons.counts, torch.cat([p.maps for p in parts]), parts[0].plane)

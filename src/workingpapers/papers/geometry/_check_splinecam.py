"""What `inspect` asks of exact partitions: how many regions has the network in the plane of three examples?"""

from functools import partial
from typing import Any

import torch

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.observe import HELD
from workingpapers.engines.regions import Plane, RegionSet, joined, partition, program
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.geometry._partition_plots import draw_regions

INPUTS = 4096  # numbers of an input beyond which a plane's picture takes too long


def _corners(case: Case) -> torch.Tensor:
    """Return three inputs (3, ...) of the first batches that are far from each other."""
    batch = case.activity.batches[0]
    x = batch.arguments[0] if batch.arguments else None
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or len(x) < 3 or x[0].numel() < 2:
        raise NotApplicable("it needs three inputs of floating numbers, two or more each")
    if x[0].numel() > INPUTS:
        raise NotApplicable(f"it needs inputs of at most {INPUTS} numbers; these have {x[0].numel()}")
    flat = x[:HELD].detach().cpu().double().flatten(1)
    away = torch.cdist(flat, flat)
    one, other = divmod(int(away.argmax()), len(flat))
    third = int((away[one] + away[other] - away[one, other]).argmax())
    return x.detach().cpu()[[one, other, third]]


def _draw(regions: RegionSet, corners: torch.Tensor) -> Any:
    figure = draw_regions(regions, corners)
    for shapes in figure.axes[0].collections:
        shapes.set_rasterized(len(regions) > 2000)  # as single shapes they would make a page of megabytes
    return figure


@paper("splinecam", part="slice", kind="analysis", example=example_case())
def slice_of(case: Case, bends: int = 4096, most: int = 50_000) -> Finding:
    """Cut the triangle of three examples far apart into the regions on which the network is one affine map.

    Args:
        case: of `inspect`; three inputs of its first batch are the corners.
        bends: kinks of a network beyond which the plane is not cut, ours for the time it takes.
        most: regions after which counting stops, and the finding says "at least".

    It is no fault to have many or few regions; training draws them together about the data (the paper, Section 5).
    """
    points = _corners(case)
    model = case.model
    try:
        plane = Plane.through(points, orthonormal=True)
        network = program(model, points[:1].to(next(model.parameters()).dtype))
    except WorkingPapersError as error:
        raise NotApplicable(f"it needs a piecewise-linear network and a plane: {error}") from None
    if network.bends > bends:
        raise NotApplicable(f"it needs at most {bends} kinks; the network has {network.bends}")
    corners = plane.coordinates(points)
    parts, number, whole = [], 0, True
    for part in partition(network, corners, plane):
        parts.append(part)
        number += len(part)
        if number >= most:
            whole = False
            break
    regions = joined(parts)
    area = float(regions.areas.sum())
    numbers = {
        "regions": float(number),
        "median area, share": float(regions.areas.median()) / area,
        "kinks": float(network.bends),
        "whole": float(whole),
    }
    return Finding(
        numbers,
        f"The triangle of three examples has {'' if whole else 'at least '}{number:,} linear regions.",
        partial(_draw, regions, corners),
    )

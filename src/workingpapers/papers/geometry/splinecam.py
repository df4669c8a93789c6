"""SplineCam: the exact partition of a slice of input space into the regions on which a network is affine.

    f(x) = A_r x + b_r on region r;   boundary: {x in the slice : f_c(x) = f_c'(x) on top}

Layer by layer, each polygon is cut by the lines a x + b = 0 of the neurons that bend inside it, and the affine
map is carried on, so nothing is sampled and nothing is approximated but by rounding.

Paper: "SplineCam: Exact Visualization and Characterization of Deep Network Geometry and Decision Boundaries"
(2023), arXiv 2302.12828, Section 3.  Here polygons are cut by one line at a time instead of by a search for
cycles in a graph of crossings; `engines/regions` does the work.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.regions import (
    Plane,
    RegionSet,
    Statistics,
    box,
    joined,
    partition,
    program,
    region_set,
    statistics,
)
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.papers.geometry._partition_plots import draw_regions
from workingpapers.tasks import Budget, cnn, fit, initialise, mlp


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([2, 12, 6, 3]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model, box(-1.0, 1.5), None, torch.randn(40, 2, generator=generator)


def _rescaled(model: nn.Sequential, *rest: Any) -> tuple[Any, ...]:
    """Double the weights into the first hidden layer and halve those out of it."""
    state = {**model.state_dict(), "3.weight": model.state_dict()["3.weight"] / 2}
    model.load_state_dict(state | {name: 2 * state[name] for name in ("1.weight", "1.bias")})
    return model, *rest


def _reordered(model: nn.Sequential, *rest: Any) -> tuple[Any, ...]:
    """Turn the order of the first hidden layer around."""
    state = {**model.state_dict()}
    turned = {name: state[name].flip(0) for name in ("1.weight", "1.bias")}
    model.load_state_dict(state | turned | {"3.weight": state["3.weight"].flip(1)})
    return model, *rest


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "splinecam",
    example=_example,
    invariances={
        "positive rescaling of units": _rescaled,
        "order of the units": _reordered,
        "training mode": _in_training,
    },
)
def splinecam(
    model: nn.Module,
    domain: Tensor,
    plane: Plane | None = None,
    points: Tensor | None = None,
    radius: float = 0.1,
    keep: bool = True,
) -> Finding:
    """Compute the linear regions and the decision boundary of a network on a polygon of a plane of inputs.

    Args:
        model: any module that is continuous and piecewise linear in evaluation mode: linear and convolutional
            layers, normalisation by running statistics, average and maximum pooling, residual sums and
            concatenations, with ReLU, LeakyReLU, PReLU, abs, Hardtanh, ReLU6 or maxout.
        domain: corners (n, 2) of a convex polygon, in the plane's coordinates; `box(low, high)` makes one.
        plane: where it lies in input space, such as `Plane.through(three inputs)`; not needed for two inputs.
        points: coordinates (N, 2) of the plane, such as those of data, around which regions are counted.
        radius: how near to a point a region has to come to be counted.
        keep: whether `details["regions"]`, a `RegionSet`, and the picture are kept; else memory stays small.

    The numbers: `regions`, `mean_area`, `eccentricity`, `corners` a region, `slope` (Frobenius norm, mean over
    regions) and `slope_over_area`, `boundary_length`, and with points `regions_near`, the mean number near one.
    """
    found, parts = Statistics(points, radius), []
    with torch.no_grad():
        for part in partition(model, domain, plane):
            found.add(part)
            if keep:
                parts.append(part)
    numbers = found.numbers
    whole = joined(parts) if keep else None
    return Finding(
        numbers,
        f"The network has {found.number} linear regions of mean area {numbers['mean_area']:.3g} in this domain, "
        f"and a decision boundary of length {numbers['boundary_length']:.3g}.",
        None if whole is None else lambda: draw_regions(whole, points),
        {} if whole is None else {"regions": whole, "near": found.near},
    )


def map_error(model: nn.Module, regions: RegionSet, count: int = 20_000, seed: int = 0) -> float:
    """Return the largest distance of the network, in double precision, to the regions' maps at random points."""
    exact = copy.deepcopy(model).double().eval()
    region, u = regions.sample(count, seed)
    with torch.no_grad():
        given = torch.cat([exact(regions.plane(block)).flatten(1) for block in u.split(1000)])
    return float((given - regions.values(region, u)).abs().max())


def mixed_regions(
    model: nn.Module, regions: RegionSet, inner: int = 50, seed: int = 0, most: int | None = None
) -> int:
    """Return in how many regions (of `most` random ones) neurons change sides among `inner` random inner points.

    Points are moved to the region's middle by a thousandth of their distance, so that they do not lie on edges.
    """
    generator = torch.Generator().manual_seed(seed)
    network = program(model, regions.plane.origin[None])
    chosen = torch.randperm(len(regions), generator=generator)[:most]
    mixed = 0
    for block in chosen.split(max(1, 20_000_000 // (inner * network.widest))):
        middle = regions.middles[block]
        u = regions.inner_points(block.repeat_interleave(inner), generator)
        u = torch.lerp(u, middle.repeat_interleave(inner, 0), 1e-3)
        codes = network.codes(regions.plane(u)).unflatten(0, (-1, inner))
        mixed += int((codes != network.codes(regions.plane(middle))[:, None]).flatten(1).any(1).sum())
    return mixed


def grid_codes(model: nn.Module, low: Tensor, high: Tensor, side: int = 200) -> int:
    """Return how many patterns of neurons occur on a grid (side x side) of a rectangle of two inputs."""
    axes = [
        torch.linspace(float(a), float(b), side, dtype=torch.float64) for a, b in zip(low, high, strict=True)
    ]
    u = torch.cartesian_prod(*axes)
    codes = program(model, u[:1]).codes(u).numpy()
    return len(np.unique(np.packbits(codes, axis=1), axis=0))


def moons(count: int, noise: float, seed: int) -> Split:
    """Return two half circles of points (count, 2) that reach into each other, a class each."""
    from sklearn.datasets import make_moons

    x, y = make_moons(2 * count, noise=noise, random_state=seed)
    points, labels = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    return Split(points[:count], labels[:count], points[count:], labels[count:], 2, "moons")


def around(points: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the lower left and upper right corners of the rectangle around points, with a margin."""
    return points.amin(0) - margin, points.amax(0) + margin


def concentration(model: nn.Module, data: Tensor, radius: float, seed: int, margin: float = 0.5) -> float:
    """Return how many regions come near a point of the data (N, 2), over those near a uniform one around it."""
    low, high = around(data, margin)
    generator = torch.Generator().manual_seed(seed)
    uniform = low + (high - low) * torch.rand(data.shape, generator=generator)
    domain = box(low.tolist(), high.tolist())
    near = statistics(model, domain, points=torch.cat([data, uniform]), radius=radius, boundary=False).near
    assert near is not None
    return float(near[: len(data)].sum() / near[len(data) :].sum())


def _digits_plane(budget: Budget, seed: int) -> tuple[nn.Module, Plane]:
    train, side, widths = budget.pick(quick=(2000, 14, (4, 8)), full=(60_000, 28, (8, 16)))
    split = images("mnist", train=train, test=200, size=None if side == 28 else side, seed=seed)
    model = initialise(lambda: cnn(1, 10, widths, size=side), seed)
    fit(model, split, epochs=budget.pick(quick=2, full=5), seed=seed)
    chosen = torch.stack([split.x_test[split.y_test == digit][seed % 10] for digit in (3, 5, 8)])
    return model, Plane.through(chosen)


@claim(
    "splinecam",
    "Over a chosen region of data space, the method computes the geometry of a piecewise-linear network exactly, "
    "with no sampling or simplification.",
    seeds=3,
    holds=all_of(
        at_most(1e-8, of="map_error", by="every"),
        at_most(1e-9, of="area_error", by="every"),
        at_most(0, of="mixed", by="every"),
    ),
)
def exact_partition(budget: Budget, seed: int) -> Evidence:
    """A random and a trained 2-16-16-2 MLP, and a CNN on a part of the plane through three digits of MNIST.

    The largest distance of network and maps at 20,000 points each, the relative error of the areas' sum, and the
    number of regions in which neurons change sides.
    """
    split = moons(500, 0.15, seed)
    low, high = around(split.x_train, 0.5)
    fresh = initialise(lambda: mlp([2, 16, 16, 2]), seed)
    trained = copy.deepcopy(fresh)
    fit(trained, split, epochs=30, seed=seed)
    convolutional, plane = _digits_plane(budget, seed)
    part = budget.pick(quick=0.2, full=0.1)
    third = 1 / 3
    corner = torch.tensor([[third] * 2, [third + part, third], [third, third + part]], dtype=torch.float64)
    cases: list[tuple[nn.Module, Tensor, Plane | None]] = [
        (fresh, box(low.tolist(), high.tolist()), None),
        (trained, box(low.tolist(), high.tolist()), None),
        (convolutional, corner, plane),
    ]
    found = [region_set(model, domain, where) for model, domain, where in cases]
    areas = [float((high.double() - low.double()).prod())] * 2 + [part**2 / 2]
    wrong = [abs(float(r.areas.sum()) / a - 1) for r, a in zip(found, areas, strict=True)]
    most = budget.pick(quick=1000, full=None)
    return Evidence(
        map_error=max(map_error(c[0], r, seed=seed) for c, r in zip(cases, found, strict=True)),
        area_error=max(wrong),
        mixed=sum(mixed_regions(c[0], r, seed=seed, most=most) for c, r in zip(cases, found, strict=True)),
        regions_mlp=len(found[1]),
        regions_cnn=len(found[2]),
    )


@claim(
    "splinecam",
    "It recovers the decision boundary itself and can sample points from it, on or off the data manifold.",
    seeds=3,
    holds=all_of(at_most(1e-8, of="tie", by="every"), above(0, of="unseen", by="every")),
)
def true_boundary(budget: Budget, seed: int) -> Evidence:
    """2-16-16-2 MLP on moons: |f1 - f2| at 5,000 points of the boundary; regions that a 200 x 200 grid misses."""
    split = moons(500, 0.15, seed)
    model = initialise(lambda: mlp([2, 16, 16, 2]), seed)
    fit(model, split, epochs=budget.pick(quick=30, full=100), seed=seed)
    low, high = around(split.x_train, 0.5)
    regions = region_set(model, box(low.tolist(), high.tolist()))
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        logits = exact(regions.sample_boundary(5000, seed))
    return Evidence(
        tie=float((logits[:, 0] - logits[:, 1]).abs().max()),
        unseen=len(regions) - grid_codes(model, low, high),
        regions=len(regions),
        length=float(regions.boundary().lengths.sum()),
    )


@claim(
    "splinecam",
    "The computed geometry serves to compare architectures and to follow generalisation, with regions "
    "concentrating near data.",
    seeds=5,
    holds=at_least(1.1, of="change"),
)
def concentrating(budget: Budget, seed: int) -> Evidence:
    """2-32-32-2 MLP on moons: regions within 0.1 of data over those near uniform points, after over before."""
    split = moons(500, 0.15, seed)
    model = initialise(lambda: mlp([2, 32, 32, 2]), seed)
    before = concentration(model, split.x_train, 0.1, seed)
    accuracy = fit(model, split, epochs=budget.pick(quick=60, full=300), seed=seed).metrics["accuracy"]
    after = concentration(model, split.x_train, 0.1, seed)
    return Evidence(change=after / before, before=before, after=after, accuracy=accuracy)

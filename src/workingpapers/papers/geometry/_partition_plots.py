"""Pictures of a partition: polygons coloured by what the network does on them, and the decision boundary."""

from typing import Any

from torch import Tensor

from workingpapers.engines.regions import RegionSet

MOST = 200_000  # polygons in one picture


def draw_regions(
    regions: RegionSet, points: Tensor | None = None, colours: Tensor | None = None, axes: Any = None
) -> Any:
    """Draw regions as polygons and the decision boundary in red; return the figure.

    Args:
        regions: the partition; of more than 200,000 regions the largest are drawn.
        points: coordinates (N, 2) to mark, such as those of data.
        colours: a number for each region (R); by default the norm of its slope.
        axes: matplotlib axes to draw into; a new figure by default.
    """
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection, PolyCollection

    if axes is None:
        _, axes = pyplot.subplots(figsize=(5, 4.2), layout="constrained")
    shades = regions.slopes if colours is None else colours
    corners = regions.corners.detach()
    chosen = slice(None) if len(regions) <= MOST else regions.areas.argsort(descending=True)[:MOST]
    polygons = PolyCollection(
        list(corners[chosen].numpy()),
        array=shades[chosen].detach().numpy(),
        cmap="viridis",
        edgecolors="white",
        linewidths=max(0.05, min(0.5, 20 / len(regions) ** 0.5)),
    )
    axes.add_collection(polygons)
    edges = regions.boundary()
    axes.add_collection(LineCollection(list(edges.ends.detach().numpy()), colors="red", linewidths=1.5))
    if points is not None:
        axes.plot(*points.detach().numpy().T, ".", color="black", markersize=2)
    low, high = corners.amin((0, 1)), corners.amax((0, 1))
    axes.set(
        xlim=(float(low[0]), float(high[0])),
        ylim=(float(low[1]), float(high[1])),
        xlabel="first coordinate of the plane",
        ylabel="second coordinate of the plane",
        title=f"{len(regions)} regions",
        aspect="equal",
    )
    axes.figure.colorbar(polygons, ax=axes, label="norm of the slope" if colours is None else "value")
    return axes.figure

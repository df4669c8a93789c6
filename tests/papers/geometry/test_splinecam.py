"""SplineCam: against exact arithmetic, its measures of exactness on what is wrong, boundaries, pictures, claims."""

import copy

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import LineCollection, PolyCollection
from torch import nn

from workingpapers.catalog import claims, make, record
from workingpapers.engines.regions import Plane, RegionSet, box, region_set
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry._exact_nets import random_net
from workingpapers.papers.geometry._partition_plots import draw_regions
from workingpapers.papers.geometry.region_counting_complexity import count
from workingpapers.papers.geometry.splinecam import (
    concentration,
    grid_codes,
    map_error,
    mixed_regions,
    moons,
    splinecam,
)
from workingpapers.tasks import initialise, mlp


def integer_mlp(seed: int, widths: list[int]) -> nn.Sequential:
    """Return a perceptron with the small integer weights of an exact network."""
    exact = random_net(np.random.default_rng(seed), 2, widths, largest=5)
    model = mlp([2, *widths, 1]).double()
    linear = [m for m in model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer, rows in zip(linear, exact.layers, strict=True):
            table = torch.tensor(rows, dtype=torch.float64)
            layer.weight.copy_(table[:, :-1])
            layer.bias.copy_(table[:, -1])
    return model


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_exact_arithmetic(seed: int) -> None:
    model = integer_mlp(seed, [5, 4] if seed % 2 else [7])
    wanted = count(model, "proper_activation")
    assert splinecam(model, box(-1e3, 1e3)).numbers["regions"] == wanted


def test_one_region_for_what_has_several_is_found_out() -> None:
    model = initialise(lambda: mlp([2, 8, 8, 2]), 0)
    regions = region_set(model, box(-2.0, 2.0))
    assert mixed_regions(model, regions, 20) == 0
    assert map_error(model, regions, 3000) < 1e-12
    first = slice(0, 1)
    maps = regions.maps[first]
    whole = RegionSet(box(-2.0, 2.0)[None], torch.tensor([4]), maps, Plane.whole())
    assert mixed_regions(model, whole, 50) == 1
    assert map_error(model, whole, 3000) > 1e-3
    # a map that is wrong in one region alone, by little
    spoilt = regions.maps.clone()
    largest = int(regions.areas.argmax())
    spoilt[largest, 0, 2] += 1e-6
    assert map_error(model, RegionSet(regions.corners, regions.counts, spoilt, regions.plane), 3000) > 9e-7


def test_a_grid_sees_no_more_than_there_is() -> None:
    model = initialise(lambda: mlp([2, 2, 1]), 0)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.copy_(torch.tensor([0.05, 0.05]))
    corner = torch.ones(2)
    assert grid_codes(model, -corner, corner) == 4
    assert grid_codes(model, 0 * corner, corner) == 1
    # a strip as narrow as half a cell of a coarse grid is not seen
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([0.1, 0.15]))
    assert grid_codes(model, -corner, corner, 5) == 2
    assert grid_codes(model, -corner, corner, 200) == 3


def test_numbers_and_details() -> None:
    model = initialise(lambda: mlp([2, 10, 3]), 1)
    points = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    found = splinecam(model, box(-1.0, 1.0), points=points)
    regions = found.details["regions"]
    assert found.numbers["regions"] == len(regions) == len(regions.polygons)
    assert found.numbers["mean_area"] * len(regions) == pytest.approx(4.0)
    assert found.details["near"].tolist()[1] == 0
    assert found.numbers["regions_near"] == float(found.details["near"].double().mean())
    lean = splinecam(model, box(-1.0, 1.0), points=points, keep=False)
    assert dict(lean.numbers) == dict(found.numbers)
    assert lean.figure is None
    assert not lean.details


def test_a_plane_in_a_larger_input_space() -> None:
    """On the plane of two of its inputs a network is what is left of it there."""
    large = initialise(lambda: mlp([5, 9, 9, 2]), 2)
    origin = torch.tensor([0.3, 0.0, -0.2, 0.0, 0.5])
    directions = torch.zeros(2, 5)
    directions[0, 1], directions[1, 3] = 2.0, -1.0
    small = copy.deepcopy(mlp([2, 9, 9, 2]))
    small.load_state_dict(
        {
            **large.state_dict(),
            "1.weight": large[1].weight @ directions.T,
            "1.bias": large[1].bias + large[1].weight @ origin,
        }
    )
    one = splinecam(large, box(-1.0, 1.0), Plane(origin, directions)).numbers
    other = splinecam(small, box(-1.0, 1.0)).numbers
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], rel=1e-4, abs=1e-9)


def test_concentration_is_one_where_nothing_is_special() -> None:
    model = initialise(lambda: mlp([2, 40, 2]), 3)
    uniform = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1))
    assert concentration(model, uniform, 0.1, 0, margin=0.0) == pytest.approx(1.0, abs=0.05)


def test_concentration_counts_around_the_data() -> None:
    model = initialise(lambda: mlp([2, 30, 1]), 0)
    with torch.no_grad():  # thirty lines in a bundle through x = 0
        model[1].weight.copy_(torch.tensor([[1.0, 0.0]]).expand(30, 2))
        model[1].bias.copy_(torch.linspace(-0.05, 0.05, 30))
    data = torch.stack([torch.zeros(100), torch.linspace(-1, 1, 100)], 1)
    data = torch.cat([data, torch.tensor([[2.0, 0.0], [-2.0, 0.0]])])
    assert concentration(model, data, 0.1, 0) > 5


def test_pictures_show_every_region_and_the_boundary() -> None:
    split = moons(50, 0.1, 0)
    assert split.x_train.shape == (50, 2)
    model = initialise(lambda: mlp([2, 8, 2]), 0)
    found = splinecam(model, box(-2.0, 2.0), points=split.x_train)
    assert found.figure is not None
    figure = found.figure()
    polygons = next(c for c in figure.axes[0].collections if isinstance(c, PolyCollection))
    lines = next(c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    regions = found.details["regions"]
    assert len(polygons.get_paths()) == len(regions)
    assert len(lines.get_paths()) == len(regions.boundary())
    assert figure.axes[0].get_title() == f"{len(regions)} regions"
    other = draw_regions(regions, colours=regions.areas)
    pyplot.close(figure)
    pyplot.close(other)


def test_by_name_and_refusals() -> None:
    found = make("splinecam")(mlp([2, 4, 1]), box(-1.0, 1.0))
    assert found.numbers["regions"] >= 1
    with pytest.raises(WorkingPapersError, match="does not take the example"):
        splinecam(mlp([3, 4, 1]), box(-1.0, 1.0))
    with pytest.raises(WorkingPapersError, match="is a tanh"):
        splinecam(mlp([2, 4, 1], activation=nn.Tanh), box(-1.0, 1.0))


def test_every_claim_of_the_record_is_measured() -> None:
    assert [c.says for c in claims("splinecam").values()] == [c["says"] for c in record("splinecam").claims]

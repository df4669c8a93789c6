"""Partitions: closed forms, an enumeration of its own, every layer, slivers, boundaries, statistics, lines."""

import math

import numpy as np
import pytest
import torch
from tests.engines.regions import _nets
from tests.engines.regions._nets import Abs, Joined, Maxout, convolutional, dense, enumerated, shaken
from torch import Tensor, nn

from workingpapers.engines.regions import (
    Plane,
    along_line,
    along_path,
    box,
    partition,
    perceptron,
    program,
    region_set,
    statistics,
    walk,
)
from workingpapers.engines.regions.plane import convex
from workingpapers.engines.regions.program import Bend
from workingpapers.errors import WorkingPapersError

DOUBLE = torch.float64


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def of_layers(*layers: tuple[object, object]):  # type: ignore[no-untyped-def]
    return perceptron([(torch.tensor(w, dtype=DOUBLE), torch.tensor(b, dtype=DOUBLE)) for w, b in layers])


def gap(model: nn.Module, regions, count: int = 20_000) -> float:  # type: ignore[no-untyped-def]
    """Return how far the network is off the regions' maps at random points."""
    region, u = regions.sample(count)
    with torch.no_grad():
        given = model(regions.plane(u)).flatten(1)
    return float((given - regions.values(region, u)).abs().max())


def crossing_lines(n: int) -> tuple[Tensor, Tensor]:
    """Return n lines of different directions, all of whose crossings lie near 0."""
    angles = torch.arange(n, dtype=DOUBLE) * math.pi / n + 0.1
    shifts = 0.1 * torch.sin(7.0 * torch.arange(n, dtype=DOUBLE))
    return torch.stack([angles.cos(), angles.sin()], 1), shifts


@pytest.mark.parametrize("n", [0, 1, 2, 5, 23])
def test_lines_in_general_position(n: int) -> None:
    weight, bias = crossing_lines(max(n, 1))
    out = torch.ones(1, n, dtype=DOUBLE)
    net = perceptron([(weight[:n], bias[:n]), (out, torch.zeros(1))]) if n else perceptron([(weight, bias)])
    found = region_set(net, box(-100.0, 100.0))
    assert len(found) == 1 + n + n * (n - 1) // 2
    assert float(found.areas.sum()) == pytest.approx(200.0**2, rel=1e-12)


def test_the_slope_below_zero_moves_no_line_of_the_first_layer() -> None:
    steep = shaken(dense(2, 9, 1, activation=lambda: nn.LeakyReLU(0.3)), 4)
    plain = shaken(dense(2, 9, 1), 4)
    ours, theirs = (region_set(m, box(-1.0, 1.0)).areas.sort().values for m in (steep, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_a_network_without_kinks_has_one_region() -> None:
    model = shaken(nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 2)))
    found = region_set(model, box(-1.0, 3.0))
    assert len(found) == 1
    assert gap(model, found) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_the_cells_are_those_of_a_search_from_cell_to_cell(seed: int) -> None:
    model = shaken(dense(2, 5, 3, 3, 1), seed)
    wanted = enumerated(model, 2.0, torch.tensor([0.11, 0.07], dtype=DOUBLE))
    network = program(model, torch.zeros(1, 2))
    found = region_set(network, box(-2.0, 2.0))
    codes = found.codes(network)
    ours = {np.packbits(c).tobytes(): a for c, a in zip(codes.numpy(), found.areas.tolist(), strict=True)}
    assert len(ours) == len(found)  # a pattern's cell is convex, so none comes twice
    assert ours.keys() == wanted.keys()
    for key, area in ours.items():
        assert area == pytest.approx(wanted[key], abs=1e-9)


NETS = {
    "relu": dense(2, 16, 16, 2),
    "deep": dense(2, *[8] * 6, 1),
    "leaky": dense(2, 12, 12, 2, activation=lambda: nn.LeakyReLU(0.2)),
    "steep below": dense(2, 12, 2, activation=lambda: nn.LeakyReLU(-1.5)),
    "hardtanh": dense(2, 12, 12, 2, activation=lambda: nn.Hardtanh(-0.3, 0.8)),
    "relu6": dense(2, 12, 2, activation=nn.ReLU6),
    "hardsigmoid": dense(2, 12, 12, 2, activation=nn.Hardsigmoid),
    "softshrink": dense(2, 12, 2, activation=lambda: nn.Softshrink(0.2)),
    "chosen": dense(2, 12, 12, 2, activation=_nets.Chosen),
    "abs": dense(2, 12, 8, 2, activation=Abs),
    "prelu": nn.Sequential(nn.Linear(2, 9), nn.PReLU(9), nn.Linear(9, 9), nn.PReLU(), nn.Linear(9, 2)),
    "maxout": nn.Sequential(nn.Linear(2, 12), Maxout(), nn.Linear(4, 12), Maxout(), nn.Linear(4, 2)),
    "norm": nn.Sequential(nn.Linear(2, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 2)),
    "joined": Joined(),
    "ends in a kink": nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 3), nn.ReLU()),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_equal_their_maps(name: str) -> None:
    model = shaken(NETS[name], 1, 1.5)
    found = region_set(model, box((-2.0, -1.0), (1.0, 2.5)))
    assert len(found) > 10
    assert float(found.areas.sum()) == pytest.approx(10.5, rel=1e-12)
    assert gap(model, found) < 1e-12


def test_a_function_in_several_steps_is_one_bend() -> None:
    network = program(nn.Sequential(nn.Linear(2, 3), _nets.Chosen(), nn.Linear(3, 1)), torch.zeros(1, 2))
    (bend,) = [s.operation for s in network.steps if isinstance(s.operation, Bend)]
    assert bend.kinks == (-1.0, 0.0, 2.0)
    assert bend.slopes[:, 0].tolist() == [1.0, 0.25, 1.0, -0.5]
    assert network.bends == 3


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_on_a_plane_through_inputs(rank: int) -> None:
    model = shaken(convolutional(rank), rank, 1.5)
    points = torch.randn(3, 1, *[6] * rank, generator=torch.Generator().manual_seed(rank), dtype=DOUBLE)
    found = region_set(model, tensor([0, 0], [1, 0], [0, 1]), Plane.through(points))
    assert len(found) > 10
    assert float(found.areas.sum()) == pytest.approx(0.5, rel=1e-12)
    assert gap(model, found, 4000) < 1e-12


def test_chunks_and_both_ways_of_a_product_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(dense(2, 20, 20, 20, 2), 3)
    whole = region_set(model, box(-1.0, 1.0))
    for chunk, sparse in ((16, 1.0), (16, 0.0), (10**6, 1.0)):
        monkeypatch.setattr(walk, "MOST", chunk)
        monkeypatch.setattr(walk, "SPARSE", sparse)
        parts = list(partition(model, box(-1.0, 1.0)))
        assert max(map(len, parts)) <= 1.6 * chunk
        areas = torch.cat([p.areas for p in parts]).sort().values
        torch.testing.assert_close(areas, whole.areas.sort().values, rtol=1e-9, atol=1e-15)
        assert max(gap(model, p, 500) for p in parts[:20]) < 1e-12


@pytest.mark.parametrize(("shift", "regions"), [(1e-6, 3), (1e-10, 3), (1e-14, 2), (0.0, 2)])
def test_slivers_down_to_the_tolerance(shift: float, regions: int) -> None:
    net = of_layers(([[1.0, 0.3], [2.0, 0.6]], [0.0, 2 * shift]), ([[1.0, 1.0]], [0.0]))
    found = region_set(net, box(-1.0, 1.0))
    assert len(found) == regions
    assert float(found.areas.sum()) == pytest.approx(4.0, rel=1e-12)
    u = found.sample(2000)
    torch.testing.assert_close(found.values(*u), net(u[1]), rtol=0, atol=1e-12)


def test_rounding_alone_makes_no_regions() -> None:
    """Two neurons with the same kink, whose difference is 0 but for rounding, feed a third."""
    net = of_layers(
        ([[0.1, 0.7], [0.3, 2.1]], [0.2, 0.6]), ([[3.0, -1.0], [1.0, 1.0]], [0.0, 0.0]), ([[1e3, 1.0]], [0.0])
    )
    assert len(region_set(net, box(-1.0, 1.0))) == 2


def test_areas_of_many_regions_sum_to_the_domain() -> None:
    model = shaken(dense(2, 60, 60, 1), 5)
    hexagon = torch.stack([torch.cos(a := torch.arange(6, dtype=DOUBLE) * math.pi / 3), torch.sin(a)], 1)
    found = region_set(model, hexagon.flip(0))  # clockwise
    assert len(found) > 1500
    assert float(found.areas.sum()) == pytest.approx(1.5 * 3**0.5, rel=1e-11)
    assert bool((found.areas > 0).all())
    region, u = found.sample(3000)
    assert float((found.inside(u) == region).double().mean()) > 0.999
    assert bool((found.inside(tensor([5.0, 5.0])) == -1).all())


def diamond() -> list[tuple[object, object]]:
    """Return |x| + |y| - 1."""
    return [([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.0] * 4), ([[1.0] * 4], [-1.0])]


def test_the_zero_set_of_a_diamond() -> None:
    found = region_set(of_layers(*diamond()), box(-2.0, 2.0))
    edges = found.boundary()
    assert float(edges.lengths.sum()) == pytest.approx(4 * 2**0.5, rel=1e-12)
    u = edges.sample(500)
    torch.testing.assert_close(u.abs().sum(1), torch.ones(500, dtype=DOUBLE), rtol=0, atol=1e-12)
    assert bool((u.sign().unique(dim=0).abs().sum(1) == 2).all())
    assert len(u.sign().unique(dim=0)) == 4  # all four sides


def test_two_classes_tie_where_the_difference_is_zero() -> None:
    (first, (row, shift)) = diamond()
    net = of_layers(first, ([row[0], [0.5] * 4], [shift[0], -0.5]))  # type: ignore[index]
    edges = region_set(net, box(-2.0, 2.0)).boundary()
    assert float(edges.lengths.sum()) == pytest.approx(4 * 2**0.5, rel=1e-12)


def test_a_kink_on_the_boundary_counts_once() -> None:
    net = of_layers(([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]), ([[1.0, -2.0]], [0.0]))  # x or 2 x
    edges = region_set(net, box(-1.0, 1.0)).boundary()
    assert edges.ends[:, :, 0].abs().max() == 0
    assert float(edges.lengths.sum()) == pytest.approx(2.0)


def test_three_classes_meet_in_one_point() -> None:
    turn = 2 * math.pi / 3
    rows = [[math.cos(k * turn), math.sin(k * turn)] for k in range(3)]
    net = of_layers((rows, [0.0] * 3))
    found = region_set(net, box(-1.0, 1.0))
    edges = found.boundary()
    # the ties lie against the classes' directions: one ray to the left, two up and down to the right
    assert float(edges.lengths.sum()) == pytest.approx(1 + 2 * 2 / 3**0.5, rel=1e-12)
    assert sorted(map(tuple, edges.classes.tolist())) == [(0, 1), (0, 2), (1, 2)]
    top = net(found.sample_boundary(300)).sort(1, descending=True).values
    torch.testing.assert_close(top[:, 0], top[:, 1], rtol=0, atol=1e-12)
    assert bool((top[:, 1] >= top[:, 2]).all())


def test_no_boundary_to_sample() -> None:
    net = of_layers(([[1.0, 0.0]], [5.0]))
    with pytest.raises(WorkingPapersError, match="no boundary to sample"):
        region_set(net, box(-1.0, 1.0)).sample_boundary(3)


def checkered(n: int):  # type: ignore[no-untyped-def]
    """Return a network whose regions in [0, n]^2 are unit squares."""
    rows = [[1.0, 0.0]] * (n - 1) + [[0.0, 1.0]] * (n - 1)
    return of_layers((rows, [-float(i) for i in range(1, n)] * 2), ([[1.0] * len(rows)], [0.0]))


def test_statistics_of_squares() -> None:
    points = tensor([0.5, 0.5], [1.0, 1.0], [1.5, 1.05], [4.0, 4.0])
    found = statistics(checkered(4), box(0.0, 4.0), points=points, radius=0.1)
    assert found.near is not None
    assert found.near.tolist() == [1, 4, 2, 1]
    numbers = found.numbers
    assert numbers["regions"] == 16
    assert numbers["mean_area"] == pytest.approx(1.0)
    assert numbers["eccentricity"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["corners"] == 4
    # the slope of the sum over i of relu(x - i) is floor(x), likewise of y
    slopes = [math.hypot(i, j) for i in range(4) for j in range(4)]
    assert numbers["slope"] == pytest.approx(sum(slopes) / 16)
    assert numbers["slope_over_area"] == pytest.approx(sum(slopes) / 16)
    assert numbers["regions_near"] == 2.0


@pytest.mark.parametrize(("width", "angle"), [(3.0, 0.0), (7.0, 0.6), (1.5, 2.0)])
def test_eccentricity_of_a_turned_rectangle(width: float, angle: float) -> None:
    turn = tensor([math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)])
    domain = box((0.0, 0.0), (width, 1.0)) @ turn + 50
    found = region_set(of_layers(([[1.0, 1.0]], [0.0])), domain)
    assert float(found.eccentricities) == pytest.approx(math.sqrt(1 - width**-2), rel=1e-9)
    torch.testing.assert_close(found.centroids[0], domain.mean(0))
    assert float(found.areas) == pytest.approx(width, rel=1e-12)


def test_statistics_are_those_of_the_kept_regions() -> None:
    model = shaken(dense(2, 14, 14, 3), 6)
    kept = region_set(model, box(-1.0, 1.0))
    numbers = statistics(model, box(-1.0, 1.0)).numbers
    assert numbers["regions"] == len(kept)
    assert numbers["eccentricity"] == pytest.approx(float(kept.eccentricities.mean()))
    assert numbers["boundary_length"] == pytest.approx(float(kept.boundary().lengths.sum()))
    assert float((kept.slopes * kept.areas).sum() / 4) == pytest.approx(numbers["slope_over_area"])


def test_inner_points_are_uniform_and_inside() -> None:
    found = region_set(checkered(2), tensor([0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 2.0]))
    region, u = found.sample(40_000, seed=1)
    shares = torch.bincount(region, minlength=len(found)) / 40_000
    torch.testing.assert_close(shares.double(), found.areas / found.areas.sum(), rtol=0, atol=0.02)
    for r in range(len(found)):
        torch.testing.assert_close(u[region == r].mean(0), found.centroids[r], rtol=0, atol=0.02)
    assert bool((found.inside(u) == region).all())


def test_breakpoints_of_known_kinks() -> None:
    kinks = [0.9, 0.1, 0.4, 0.4, 3.0]
    net = of_layers(([[1.0, 0.0]] * 5, [-k for k in kinks]), ([[1.0, 2.0, -1.0, 1.0, 1.0]], [0.0]))
    found = along_line(net, tensor(0.0, 5.0)[0:2], tensor(2.0, -5.0))
    torch.testing.assert_close(found.t, tensor(0.0, 0.05, 0.2, 0.45, 1.0), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.slopes[:, 0], tensor(0.0, 4.0, 4.0, 6.0), rtol=0, atol=1e-14)
    # at 0.4 two neurons bend and cancel
    torch.testing.assert_close(found.bends(), tensor(0.05, 0.45), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["deep", "maxout", "joined", "prelu", "hardtanh"])
def test_between_breakpoints_networks_are_affine_and_codes_change_at_each(name: str) -> None:
    model = shaken(NETS[name], 2, 1.5)
    path = torch.tensor([[-2.0, -1.0], [2.0, 1.5], [0.3, -2.0]], dtype=DOUBLE)
    network = program(model, path[:1])
    found = along_path(network, path)
    assert len(found) > 6
    assert bool((found.t.diff() > 0).all())
    with torch.no_grad():
        torch.testing.assert_close(model(found.inputs(found.t)), found.values, rtol=0, atol=1e-12)
        start, end = found.t[:-1], found.t[1:]
        inner = [model(found.inputs(torch.lerp(start, end, torch.full_like(start, s)))) for s in (0.3, 0.9)]
    slopes = (inner[1] - inner[0]) / (0.6 * (end - start))[:, None]
    torch.testing.assert_close(slopes, found.slopes, rtol=1e-7, atol=1e-7)
    codes = network.codes(found.inputs((start + end) / 2))
    assert bool(
        (codes[1:] != codes[:-1]).any(1).sum() >= len(found) - 2
    )  # but perhaps not where the path turns


def test_lines_agree_with_the_plane() -> None:
    model = shaken(dense(2, 10, 10, 1), 8)
    a, b = tensor(-1.0, -0.7), tensor(1.0, 0.9)
    regions = region_set(model, box(-1.0, 1.0))
    found = along_line(model, a, b)
    middle = found.inputs((found.t[1:] + found.t[:-1]) / 2)
    where = regions.inside(middle)
    assert len(set(where.tolist())) == len(found)
    slopes = (regions.maps[where][..., :2] @ (b - a))[..., 0]
    torch.testing.assert_close(slopes, found.slopes[:, 0], rtol=0, atol=1e-12)


def test_planes() -> None:
    points = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    plane = Plane.through(points)
    torch.testing.assert_close(plane(tensor([0, 0], [1, 0], [0, 1])), points.double())
    flat = Plane.through(points, orthonormal=True)
    u = flat.coordinates(points)
    torch.testing.assert_close(flat(u), points.double())
    torch.testing.assert_close(torch.cdist(u, u), torch.cdist(points.flatten(1), points.flatten(1)).double())
    with pytest.raises(WorkingPapersError, match="on one line"):
        Plane.through(torch.arange(3.0)[:, None] * torch.ones(1, 4))
    with pytest.raises(WorkingPapersError, match="two directions of the shape"):
        Plane(torch.zeros(3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    "corners",
    [
        [[0.0, 0.0], [1.0, 0.0]],
        [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]],
        [[0.0, 0.0], [2.0, 0.0], [0.5, 0.5], [0.0, 2.0]],
        [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]],
        [[0.0, 0.0], [1.0, math.inf], [1.0, 0.0]],
    ],
)
def test_domains_are_convex(corners: list[list[float]]) -> None:
    with pytest.raises(WorkingPapersError, match=r"a domain is a (convex )?polygon"):
        convex(torch.tensor(corners))


def test_clockwise_domains_and_corners_on_edges() -> None:
    corners = tensor([0, 0], [0, 1], [0, 2], [2, 2], [2, 0])
    turned = convex(corners)
    torch.testing.assert_close(turned, corners.flip(0))
    assert float(region_set(of_layers(([[1.0, 0.0]], [-1.0])), turned).areas.sum()) == pytest.approx(4.0)


@pytest.mark.parametrize("curved", [nn.Sigmoid(), nn.Softmax(1), nn.LayerNorm(4), nn.Hardshrink(0.1)])
def test_what_is_not_piecewise_linear_is_named(curved: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 4), curved)
    with pytest.raises(WorkingPapersError, match="continuous piecewise-linear networks; the node"):
        region_set(model, box(-1.0, 1.0))


def test_models_keep_their_mode_and_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    region_set(model, box(-1.0, 1.0))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_enumeration_finds_a_grid() -> None:
    model = shaken(dense(2, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([0.0, 0.5]))
    areas = _nets.enumerated(model, 1.0, torch.tensor([0.3, 0.3], dtype=DOUBLE))
    assert sorted(areas.values()) == pytest.approx([0.5, 0.5, 1.5, 1.5])

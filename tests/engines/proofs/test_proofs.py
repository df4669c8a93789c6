"""Both searches against exact minima: mixed-integer programs, linear programs, dense grids."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds as Ranges
from scipy.optimize import LinearConstraint, linprog, milp
from tests.engines.bounds._random import RELU_STEPS, Draw
from tests.engines.proofs._hunt import hunt, least_found, problem_of
from torch import Tensor

from workingpapers.engines.bounds.build import Builder, Hidden
from workingpapers.engines.bounds.fuse import fused
from workingpapers.engines.bounds.graph import Graph
from workingpapers.engines.bounds.primitives import KINKED, SMOOTH, WAVES
from workingpapers.engines.bounds.propagate import bounds
from workingpapers.engines.bounds.region import Box
from workingpapers.engines.proofs.branching import branch
from workingpapers.engines.proofs.halving import halve
from workingpapers.engines.proofs.integer import by_integers
from workingpapers.engines.proofs.optimise import improve
from workingpapers.engines.proofs.pieces import separated
from workingpapers.engines.proofs.problem import Problem, problems

Layers = list[tuple[Tensor, Tensor]]
Make = Callable[[Builder, Hidden], Any]
BOTH = pytest.mark.parametrize("search", [halve, branch])


def graph_of(shape: tuple[int, ...], make: Make) -> Graph:
    builder = Builder(shape)
    made = make(builder, builder.input)
    assert isinstance(made, Hidden)
    return fused(builder, made)


def random_layers(sizes: list[int]) -> Layers:
    return [
        (torch.randn(b, a, dtype=torch.float64), torch.randn(b, dtype=torch.float64))
        for a, b in pairwise(sizes)
    ]


def relu_network(layers: Layers) -> Graph:
    def make(builder: Builder, x: Any) -> Any:
        for i, (weight, bias) in enumerate(layers):
            x = builder.linear(x, weight, bias)
            x = x if i == len(layers) - 1 else builder.apply(KINKED["relu"], x)
        return x

    return graph_of((layers[0][0].shape[1],), make)


def unit(inputs: int) -> Box:
    one = torch.ones(1, inputs, dtype=torch.float64)
    return Box(-one, one)


def exact_least(layers: Layers) -> float:
    """Return the least value of the one output of a ReLU network over [-1, 1]^n, by a program written for this."""
    size = layers[0][0].shape[1] + 3 * sum(len(b) for _, b in layers[:-1])
    rows: list[np.ndarray] = []
    low: list[float] = []
    high: list[float] = []
    lower, upper, whole = np.full(size, -np.inf), np.full(size, np.inf), np.zeros(size)

    def keep(terms: dict[int, float], a: float, b: float) -> None:
        row = np.zeros(size)
        row[list(terms)] = list(terms.values())
        rows.append(row), low.append(a), high.append(b)

    place = inputs = layers[0][0].shape[1]
    before = list(range(inputs))
    lower[:inputs], upper[:inputs] = -1, 1
    reach = np.ones(inputs)
    for weight, bias in layers[:-1]:
        reach = weight.abs().numpy() @ reach + bias.abs().numpy()
        after = []
        for row, offset, big in zip(weight.tolist(), bias.tolist(), reach.tolist(), strict=True):
            z, y, side = place, place + 1, place + 2
            place += 3
            after.append(y)
            keep({z: -1, **dict(zip(before, row, strict=True))}, -offset, -offset)
            lower[y], lower[side], upper[side], whole[side] = 0, 0, 1, 1
            keep({y: 1, z: -1}, 0, np.inf)
            keep({y: 1, side: -big}, -np.inf, 0)
            keep({y: 1, z: -1, side: big}, -np.inf, big)
        before = after
    cost = np.zeros(size)
    cost[before] = layers[-1][0][0].numpy()
    found = milp(
        cost,
        constraints=LinearConstraint(np.stack(rows), low, high),
        bounds=Ranges(lower, upper),
        integrality=whole,
        options={"mip_rel_gap": 0},
    )
    assert found.status == 0
    return float(found.fun) + float(layers[-1][1][0])


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_close_to_the_exact_minimum(seed: int) -> None:
    """HiGHS keeps to 1e-6; ten times that has one true answer, which is found or left open; 1e-3 is found."""
    for _ in range(2):
        layers = random_layers([2 + seed % 3, 6, 5, 1])
        graph, box = relu_network(layers), unit(2 + seed % 3)
        least = exact_least(layers)
        one = torch.ones(1, 1)
        for share, answer in ((1e-3, "violated"), (1e-5, "violated"), (-1e-5, "holds"), (-1e-3, "holds")):
            problem = problem_of(graph, box, one.double(), one.bool(), least + share * (1 + abs(least)))
            for search in (halve, branch, by_integers):
                found = search(problem, time.monotonic() + (20 if abs(share) > 1e-4 else 3))
                verdict = found[0] if isinstance(found, tuple) else found.verdict
                # by_integers leaves open what is nearer than its own tolerance,
                # halve has no end where a minimum over many kinks is met along a whole edge
                allowed = {answer} if abs(share) > 1e-4 else {answer, "unknown", "timeout"}
                if search is branch and answer == "violated":
                    allowed |= {"timeout", "unknown"}
                assert verdict in allowed, (search, share)


def test_the_hunt_finds_no_false_proof() -> None:
    mistakes, answers = hunt(20, first=int(torch.randint(10**6, ())))
    assert mistakes == []
    assert {"halve holds", "halve violated", "branch holds", "branch violated"} <= set(answers)


CURVED: dict[str, Make] = {
    "product": lambda b, x: b.multiply(b.move(lambda h: h[:1], x), b.move(lambda h: h[1:], x)),
    "sine of a product": lambda b, x: b.apply(
        WAVES["sin"],
        b.multiply(b.multiply(b.move(lambda h: h[:1], x), torch.tensor(3.0)), b.move(lambda h: h[1:], x)),
    ),
    "tanh of sums": lambda b, x: b.linear(
        b.apply(SMOOTH["tanh"], b.linear(x, torch.tensor([[2.0, -1.0], [1.0, 3.0]]))),
        torch.tensor([[1.0, -1.5]]),
    ),
    "affine": lambda b, x: b.linear(x, torch.tensor([[2.0, -1.0]]), torch.tensor([0.5])),
    "relu of the input": lambda b, x: b.linear(b.apply(KINKED["relu"], x), torch.tensor([[1.0, -2.0]])),
    "relu of moved numbers": lambda b, x: b.linear(
        b.apply(KINKED["relu"], b.move(lambda h: torch.cat([h, h[:1]]), b.linear(x, torch.eye(2)))),
        torch.tensor([[1.0, -2.0, 0.5]]),
    ),
    "a condition": lambda b, x: b.pointwise("gt", b.move(lambda h: h[:1], x), torch.tensor(0.25)),
}


@pytest.mark.parametrize("name", CURVED)
@BOTH
def test_curved_networks_against_a_grid(name: str, search: Any) -> None:
    graph, box, one = graph_of((2,), CURVED[name]), unit(2), torch.ones(1, 1)
    axis = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    least = float(graph.forward(torch.cartesian_prod(axis, axis)).min())
    for share, answer in ((0.01, "violated"), (-0.01, "holds")):
        found = search(
            problem_of(graph, box, one.double(), one.bool(), least + share),
            time.monotonic() + (2 if name == "a condition" else 20),
        )
        loose = name == "a condition" and answer == "holds"  # no line meets a jump
        assert found.verdict == answer or (loose and found.verdict in ("timeout", "unknown")), share
        if answer == "violated":
            assert float(graph.forward(found.witness[None])) <= least + share


@BOTH
def test_groups(search: Any) -> None:
    """|x| <= 1: x > 0.5 and x < 0.6 meet, x > 0.6 and x < 0.5 do not; one of two ways that meets is enough."""
    graph = graph_of((1,), lambda b, x: b.linear(x, torch.tensor([[1.0]])))
    rows = torch.tensor([[0, -1], [0, 1], [0, -1], [0, 1]], dtype=torch.float64)
    offsets = torch.tensor([0.5, -0.6, 0.6, -0.5], dtype=torch.float64)
    from workingpapers.engines.proofs.problem import with_rows

    made = with_rows(graph, rows, offsets)
    for groups, answer in (
        ([[1, 1, 0, 0]], "violated"),
        ([[0, 0, 1, 1]], "holds"),
        ([[0, 0, 1, 1], [1, 1, 0, 0]], "violated"),
        ([[1, 0, 0, 0]], "violated"),
    ):
        problem = Problem(made, unit(1), torch.tensor(groups).bool())
        found = search(problem, time.monotonic() + (0.5 if search is branch and answer == "holds" else 10))
        # cases split hidden numbers, and here there are none
        open_end = search is branch and answer == "holds" and found.verdict in ("timeout", "unknown")
        assert found.verdict == answer or open_end


def test_separated_against_linear_programs() -> None:
    """What is called separated has no solution; and what has none by far is found to be separated."""
    rows = torch.randn(300, 3, 4, dtype=torch.float64)
    offsets = torch.randn(300, 3, dtype=torch.float64) * 2 + 1
    boxes = Box(-torch.rand(300, 4, dtype=torch.float64), torch.rand(300, 4, dtype=torch.float64))
    proved, near = separated(rows, offsets, boxes)
    assert bool(((near >= boxes.lower - 1e-9) & (near <= boxes.upper + 1e-9)).all())
    empty = 0
    for i in range(300):
        ends = list(zip(boxes.lower[i].tolist(), boxes.upper[i].tolist(), strict=True))
        # the least t for which rows @ x + offsets <= t has a solution
        found = linprog(
            [0, 0, 0, 0, 1],
            A_ub=np.concatenate([rows[i].numpy(), -np.ones((3, 1))], 1),
            b_ub=-offsets[i].numpy(),
            bounds=[*ends, (None, None)],
        )
        assert found.status == 0
        if bool(proved[i]):
            assert found.fun > -1e-9
        if found.fun > 0.2:
            empty += 1
            assert bool(proved[i])
    assert empty > 50


def test_improved_bounds_lie_between_crown_and_the_minimum() -> None:
    tighter = 0
    for seed in range(16):
        draw = Draw(seed, steps=RELU_STEPS if seed % 2 else ())
        graph, box = draw.graph(3 + seed % 5), draw.box(1)
        form = torch.randn(1, 2, *graph.nodes[-1].shape, generator=draw.generator, dtype=torch.float64)
        found = bounds(graph, box)
        plain = improve(graph, found, form, 0)
        better = improve(graph, found, form, 15)
        assert bool((better.lower >= plain.lower).all())
        for row in range(2):
            whole = form[0, row].reshape(1, -1)
            problem = problem_of(graph, box, whole, torch.ones(1, 1).bool(), 0.0)
            least = least_found(problem, seed)
            assert float(better.lower[0, row]) <= least + 1e-9 * (1 + abs(least))
        tighter += int(bool((better.lower > plain.lower + 1e-6).any()))
    assert tighter > 0


@BOTH
def test_the_deadline_is_kept(search: Any) -> None:
    layers = random_layers([30, 60, 60, 1])
    one = torch.ones(1, 1)
    problem = problem_of(relu_network(layers), unit(30), one.double(), one.bool(), -3000.0)
    began = time.monotonic()
    assert search(problem, began - 1).verdict in ("timeout", "holds", "unknown", "violated")
    assert search(problem, began + 1).verdict in ("timeout", "holds", "unknown", "violated")
    assert time.monotonic() - began < 30


@BOTH
def test_witnesses_are_confirmed_or_not_given(search: Any) -> None:
    graph = graph_of((2,), CURVED["tanh of sums"])
    one, asked = torch.ones(1, 1), []

    def never(x: Tensor) -> bool:
        asked.append(x)
        return False

    plain = problem_of(graph, unit(2), one.double(), one.bool(), 0.0)
    refused = Problem(plain.graph, plain.box, plain.groups, never)
    found = search(refused, time.monotonic() + 1)
    assert found.verdict in ("timeout", "unknown")
    assert found.witness is None
    assert asked
    assert all(bool(((x >= -1) & (x <= 1)).all()) for x in asked)
    # one that only takes some points gets one of them
    some = Problem(plain.graph, plain.box, plain.groups, lambda x: float(x[0]) < 0)
    found = search(some, time.monotonic() + 20)
    assert found.witness is not None
    assert float(found.witness[0]) < 0


def test_single_precision_takes_boxes_outwards() -> None:
    from workingpapers.engines.bounds.network import Network
    from workingpapers.engines.bounds.vnnlib import Property, Region

    builder = Builder((2,), torch.float32)
    output = builder.linear(builder.input, torch.eye(2))
    assert isinstance(output, Hidden)
    network = Network(fused(builder, output), (1, 2), (1, 2))
    lower, upper = np.array([0.1, -0.3]), np.array([0.7, 0.9])
    region = Region(lower, upper, np.array([[0, 0, 1.0, 0]]), np.array([0.0]))
    (problem,) = problems(network, Property(2, 2, (region,)), torch.float32)
    assert (problem.box.lower.double().numpy() <= lower).all()
    assert (problem.box.upper.double().numpy() >= upper).all()
    np.testing.assert_allclose(problem.box.lower.double().numpy()[0], lower, rtol=2e-7)

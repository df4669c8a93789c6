"""A piecewise-linear network as affine maps and bends in turns, applied to what is affine on a cell.

A cell is a piece of a line or a plane.  What a layer gives there is affine in the d coordinates u of the line or
plane, so it is held as d + 1 numbers a neuron: `frames` (d + 1, cells, neurons) are the slopes along each
coordinate and the value at u = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from workingpapers.engines.bounds.affine import Affine, Dense, Shape
from workingpapers.engines.bounds.build import Builder, Hidden, Value
from workingpapers.engines.bounds.formula import Formula
from workingpapers.engines.bounds.from_torch import capture
from workingpapers.engines.bounds.functions import Function
from workingpapers.engines.bounds.graph import Elementwise, Graph, Node
from workingpapers.engines.bounds.straight import Kinked
from workingpapers.engines.regions.scalar import parts_of
from workingpapers.errors import WorkingPapersError

_RELU = Kinked("relu", torch.relu, (0.0,), (0.0, 1.0))


class Bend:
    """A continuous scalar function of straight parts, applied to each of `size` neurons.

    Part i is slopes[i] * z + offsets[i], each (parts, neurons); part i ends at kinks[i].  `real[i]` (neurons) says
    where the slope changes there.
    """

    def __init__(self, function: Kinked, shape: Shape) -> None:
        self.kinks = function.kinks
        parts = [torch.as_tensor(s, dtype=torch.float64).expand(shape).flatten() for s in function.slopes]
        self.slopes = torch.stack(parts)
        ends = [self.kinks[max(i - 1, 0)] if self.kinks else 0.0 for i in range(len(parts))]
        at = [function(torch.full(shape, end, dtype=torch.float64)).flatten() for end in ends]
        self.offsets = torch.stack(
            [value - slope * end for value, slope, end in zip(at, parts, ends, strict=True)]
        )
        self.shifted = bool(self.offsets.any())
        self.real = self.slopes[1:] != self.slopes[:-1]
        self.everywhere = [bool(real.all()) for real in self.real]

    def part(self, z: Tensor) -> Tensor:
        """Return the number of the part that values of any shape lie in."""
        found = torch.zeros(z.shape, dtype=torch.uint8)
        for kink in self.kinks:
            found += z > kink
        return found

    def __call__(self, frames: Tensor, part: Tensor) -> Tensor:
        """Apply the given parts (cells, neurons) to frames."""
        if len(self.kinks) == 1 and not self.shifted:
            bent = frames * torch.where(part.bool(), self.slopes[1], self.slopes[0])
        else:
            columns = torch.arange(part.shape[1])
            chosen = part.long()
            bent = frames * self.slopes[chosen, columns]
            bent[-1] += self.offsets[chosen, columns]
        return bent


@dataclass(frozen=True)
class Step:
    """One operation: what it reads, by places among the values, and the shapes of that and of what it gives."""

    name: str
    operation: Affine | Bend | None  # None: the input
    inputs: tuple[int, ...]
    shapes: tuple[Shape, ...]
    shape: Shape
    offset: Tensor | None  # of an affine map, flat, where it is not 0

    @property
    def size(self) -> int:
        """How many numbers it gives."""
        return prod(self.shape)

    @property
    def is_product(self) -> bool:
        """Whether it is one product of a vector with a matrix."""
        return isinstance(self.operation, Dense) and prod(self.shape[:-1]) == 1

    def affine(self, *frames: Tensor) -> Tensor:
        """Apply an affine step to the frames that it reads."""
        rows, cells = frames[0].shape[:2]
        assert isinstance(self.operation, Affine)
        if self.is_product:
            assert isinstance(self.operation, Dense)
            out = (frames[0].reshape(rows * cells, -1) @ self.operation.weight.T).view(rows, cells, -1)
            if self.offset is not None:
                out[-1] += self.offset
            return out
        flat = [f.reshape(rows * cells, *shape) for f, shape in zip(frames, self.shapes, strict=True)]
        out = self.operation.forward(*flat).reshape(rows, cells, -1)
        if self.offset is not None:
            out[:-1] -= self.offset
        return out


class Program:
    """A network in the order in which it is computed; `steps[0]` is its input, the last one its output."""

    def __init__(self, graph: Graph, input_shape: Shape) -> None:
        self.input_shape = input_shape
        straight = _straight(graph)
        self.steps = [_step(straight, node) for node in straight.nodes]
        self.last_use = list(range(len(self.steps)))
        for place, step in enumerate(self.steps):
            for i in step.inputs:
                self.last_use[i] = place
        self.last_use[-1] = len(self.steps)
        self.widest = max(step.size for step in self.steps)

    @property
    def outputs(self) -> int:
        """How many numbers it gives."""
        return self.steps[-1].size

    @property
    def bends(self) -> int:
        """How many neurons with a kink it has."""
        return sum(s.size for s in self.steps if isinstance(s.operation, Bend) and s.operation.kinks)

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        values: dict[int, Tensor] = {0: x.reshape(1, len(x), -1).to(torch.float64)}
        codes = []
        for place, step in enumerate(self.steps):
            given = [values[i] for i in step.inputs]
            if isinstance(step.operation, Bend):
                part = step.operation.part(given[0][0])
                codes.append(part)
                values[place] = step.operation(given[0], part)
            elif step.operation is not None:
                values[place] = step.affine(*given)
            for i in {*step.inputs}:
                if self.last_use[i] == place:
                    del values[i]
        return values[len(self.steps) - 1][0], codes

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute the outputs (N, outputs) of inputs (N, ...) in double precision."""
        return self._run(x)[0]

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return for inputs (N, ...) which straight part every neuron is on (N, neurons), uint8, from 0 on."""
        codes = self._run(x)[1]
        return torch.cat(codes, 1) if codes else torch.zeros(len(x), 0, dtype=torch.uint8)


def program(model: nn.Module | Program, example: Tensor) -> Program:
    """Read a piecewise-linear network in evaluation mode; weights become double precision.

    Args:
        model: takes one tensor; a `Program` is given back as it is.
        example: an input with its batch dimension, (1, ...), converted to the type of the model's parameters.

    Raises:
        WorkingPapersError: where the model cannot be exported, or a part of it is not piecewise linear and
            continuous; it is named.
    """
    if isinstance(model, Program):
        return model
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    network = capture(model, example.to(dtype))
    return Program(network.graph, tuple(example.shape[1:]))


def perceptron(layers: Sequence[tuple[Tensor, Tensor]]) -> Program:
    """Return the network of (weight, bias) pairs with ReLU between them, without exporting a module."""
    builder = Builder((layers[0][0].shape[1],))
    value: Value = builder.input
    for depth, (weight, bias) in enumerate(layers):
        builder.name = f"layer {depth}"
        hidden = builder.apply(_RELU, value) if depth else value
        value = builder.linear(hidden, weight.to(torch.float64), bias.to(torch.float64))
    return Program(builder.graph, builder.input.shape)


def _step(graph: Graph, node: Node) -> Step:
    shapes = tuple(graph.nodes[i].shape for i in node.inputs)
    operation: Affine | Bend | None = None
    offset = None
    match node.operation:
        case Affine() as affine:
            operation = affine
            offset = affine.offset.flatten() if bool(affine.offset.any()) else None
        case Elementwise(Kinked() as function):
            operation = Bend(function, node.shape)
    return Step(node.name, operation, node.inputs, shapes, node.shape, offset)


def _straight(graph: Graph) -> Graph:
    """Return the graph with compositions of straight functions written out, one after the other."""
    builder = Builder(graph.nodes[0].shape, graph.dtype)
    places = {0: 0}
    for place, node in enumerate(graph.nodes):
        inputs = tuple(places[i] for i in node.inputs)
        builder.name = node.name
        match node.operation:
            case Affine() | Elementwise(Kinked()):
                places[place] = builder.graph.add(node.name, node.operation, inputs, node.shape)
            case Elementwise(Formula() as formula) if (kinked := parts_of(formula)) is not None:
                places[place] = builder.graph.add(node.name, Elementwise(kinked), inputs, node.shape)
            case Elementwise(Formula() as formula):
                places[place] = _written_out(builder, formula, Hidden(inputs[0], node.shape))
            case Elementwise(function):
                raise _curved(node.name, function)
            case None:
                pass
            case _:
                raise _curved(node.name, "product of two hidden numbers")
    return builder.graph


def _curved(name: str, what: Function | str) -> WorkingPapersError:
    kind = what if isinstance(what, str) else what.name
    return WorkingPapersError(
        f"regions are of continuous piecewise-linear networks; the node {name!r} is a {kind}"
    )


def _written_out(builder: Builder, formula: Formula, argument: Hidden) -> int:
    """Add the steps of a scalar function to the graph; the larger of two numbers is b + relu(a - b)."""
    values: list[Value] = [argument]
    for step in formula.steps:
        given = [values[a] if isinstance(a, int) else a for a in step.arguments]
        constants = sum(isinstance(g, Tensor) for g in given)
        match step.operation:
            case Kinked() as kinked:
                values.append(builder.apply(kinked, given[0]))
            case "add":
                values.append(builder.add(*given))
            case "sub":
                values.append(builder.subtract(*given))
            case "mul" if constants:
                values.append(builder.multiply(*given))
            case "maximum" | "minimum" as name:
                sign = 1 if name == "maximum" else -1
                a, b = given
                rise = builder.apply(_RELU, builder.subtract(a, b))
                values.append(builder.add(b, rise) if sign > 0 else builder.subtract(a, rise))
            case operation:
                raise _curved(builder.name, operation)
    last = values[-1]
    assert isinstance(last, Hidden)
    return last.place

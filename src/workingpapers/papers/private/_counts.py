"""How many nonlinearities and multiply-adds a model has, by layer: what private inference is billed for.

Counted is what one example passes through: entries of tensors that go through an activation, whether that is
a module, a function held by one or called in a `forward`.  Max-pooling and softmax are not activations and
not counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.places import watching
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private._sites import Counted, Shape, Sites
from workingpapers.surgery.fitted import Overwriting
from workingpapers.surgery.running import call


@dataclass(frozen=True)
class Nonlinearity:
    """One run of an activation in a pass.

    Attributes:
        name: of the module, or `module:function` for a call; a second run in one pass ends in `#2`.
        activation: such as "relu"; what this family put in is "relu" too.
        shape: of one example.
        total: entries of one example.
        kept: those that are nonlinear still.
    """

    name: str
    activation: str
    shape: Shape
    total: int
    kept: int

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.activation}, {self.kept:,} of {self.total:,}"


@torch.no_grad()
def nonlinearities(model: nn.Module, inputs: Any) -> list[Nonlinearity]:
    """Run `model` once in evaluation mode and return its nonlinearities in the order in which they ran.

    Args:
        model: any model; it stays as it is.
        inputs: the argument with examples in its first dimension, a tuple of arguments, or a mapping by name.
    """
    found: list[Nonlinearity] = []

    def see(kind: str, name: str, module: nn.Module, held: str | None, *rest: Any) -> None:
        if kind != "activation" or held is None:
            return
        output: Tensor = rest[1]
        shape = tuple(output.shape[1:])
        total = output[0].numel()
        place: Any = module.activation if isinstance(module, Overwriting) else module
        if isinstance(place, Sites) and place.units:
            at = place.last
            found.append(Nonlinearity(place.names[at], "relu", shape, total, kept_of(place.units[at], total)))
        elif not isinstance(place, Sites):
            found.append(Nonlinearity(name, held, shape, total, total))

    with watching(model, see) as begin:
        begin()
        call(model, inputs)
    return found


def kept_of(unit: nn.Module, total: int) -> int:
    """Return how many of `total` entries a unit treats nonlinearly."""
    if isinstance(unit, Counted):
        return unit.kept()
    return 0 if isinstance(unit, nn.Identity) else total


def relu_count(model: nn.Module, inputs: Any) -> int:
    """Return how many ReLUs one example passes: entries that go through a ReLU, or through what stands for
    one."""
    return sum(n.kept for n in nonlinearities(model, inputs) if n.activation == "relu")


@torch.no_grad()
def multiply_adds(model: nn.Module, inputs: Any) -> dict[str, int]:
    """Return the multiply-adds of one example in each Linear and Conv module, by name, in the order they
    ran."""
    names = {module: name for name, module in model.named_modules()}
    found: Counter[str] = Counter()

    def see(layer: Any, args: Any, output: Tensor) -> None:
        each = layer.weight[0].numel()
        size = (
            args[0][0].numel() if isinstance(layer, nn.modules.conv._ConvTransposeNd) else output[0].numel()
        )
        found[names[layer]] += size * each

    layers = [m for m in names if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [m.register_forward_hook(see) for m in layers]
    try:
        with watching(model, lambda *_: None):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return dict(found)


def stages(found: Sequence[Nonlinearity]) -> list[list[Nonlinearity]]:
    """Group nonlinearities of one resolution, the first that ran first: the stages of a convolutional
    network.

    Raises:
        WorkingPapersError: where there is none behind a convolution.
    """
    groups: dict[Shape, list[Nonlinearity]] = {}
    for one in found:
        if len(one.shape) > 1:
            groups.setdefault(one.shape[1:], []).append(one)
    if not groups:
        raise WorkingPapersError(
            "stages are layers of one resolution, and no ReLU of this model has a resolution (channels, H, W)"
        )
    return list(groups.values())


def by_stage(found: Sequence[Nonlinearity]) -> list[int]:
    """Return how many nonlinear entries each stage keeps."""
    return [sum(one.kept for one in stage) for stage in stages(found)]


@dataclass(frozen=True)
class StageCost:
    """The ReLUs and the multiply-adds of one example at one resolution."""

    relus: int
    macs: int


def relu_flops(model: nn.Module, x: Tensor) -> list[StageCost]:
    """Return ReLUs and multiply-adds of each stage; a layer belongs to the resolution of what it gives.

    Layers that give vectors are counted with the last stage.
    """
    groups = stages(nonlinearities(model, x[:1]))
    at: dict[Shape, int] = {group[0].shape[1:]: i for i, group in enumerate(groups)}
    names = {module: name for name, module in model.named_modules()}
    macs, found = [0] * len(groups), multiply_adds(model, x[:1])
    shapes: dict[str, Shape] = {}
    handles = [
        module.register_forward_hook(lambda m, args, out: shapes.__setitem__(names[m], tuple(out.shape[2:])))
        for module, name in names.items()
        if name in found
    ]
    try:
        multiply_adds(model, x[:1])
    finally:
        for handle in handles:
            handle.remove()
    for name, count in found.items():
        macs[at.get(shapes[name], len(groups) - 1)] += count
    return [StageCost(sum(n.kept for n in group), count) for group, count in zip(groups, macs, strict=True)]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of the points (cost, quality) no other one beats in both, by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, front = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front

"""Finding the feed-forward layers of any model by one run: plain ones, gated ones, and gated ones of one
fused layer.

plain: down(act(expand(x)))        gated: down(act(gate(x)) * up(x)), gate and up two layers or parts of one
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery._unit_tracing import transposed
from workingpapers.surgery.activations import FORMULAS, module_named
from workingpapers.surgery.running import call
from workingpapers.surgery.units import Units, units_of

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Units `start` to `start + count - 1` of a linear layer."""

    name: str
    layer: nn.Module
    start: int


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer.

    Attributes:
        down: the layer that reads the neurons.
        gate: what the activation reads (the expanding layer of a plain one).
        up: what the activation is multiplied with; None in a plain one.
        count: how many neurons.
        activation: the module that acts on the gate, or a function of the same values.
        holder: the module whose output is this layer's and nothing else, bit for bit; None where there is
        none.
    """

    down: Part
    gate: Part
    up: Part | None
    count: int
    activation: Activation
    holder: Part | None

    @property
    def name(self) -> str:
        """The holder's name, or the down projection's where there is no holder."""
        return self.holder.name if self.holder else self.down.name


def feed_forwards(model: nn.Module, inputs: Any) -> list[FeedForward]:
    """Return the feed-forward layers of a model in the order in which they run.

    Args:
        model: any model; it runs once or twice in evaluation mode and stays as it is.
        inputs: a small batch: the argument, a tuple of arguments, or a mapping of arguments by name.

    Raises:
        WorkingPapersError: where there is none.
    """
    units = units_of(model, inputs)
    downs: dict[tuple[str, int], dict[tuple[str, int], Units]] = {}
    for one in units.values():
        for reader in one.readers:
            linear = isinstance(reader.layer, nn.Linear) or transposed(reader.layer)
            if linear and reader.block == 1:
                downs.setdefault((reader.name, reader.count), {})[one.name, reader.start] = one
    found = [
        layer for (name, count), sources in downs.items() if (layer := _read(model, name, count, sources))
    ]
    if not found:
        raise WorkingPapersError(
            f"{type(model).__name__} has no feed-forward layer: no linear layer reads what an "
            "activation gives"
        )
    return _held(model, inputs, found)


def _read(
    model: nn.Module, name: str, count: int, sources: dict[tuple[str, int], Units]
) -> FeedForward | None:
    """Return the layer whose down projection is `name`, from what it reads; None where that is no such layer."""
    gates: list[Part] = []
    ups: list[Part] = []
    act: Activation | None = None
    for (source, start), units in sources.items():
        on_the_way = [a for a in units.activations if a.start == start]
        if any(n.start == start for n in units.norms) or len(on_the_way) > 1:
            return None
        (gates if on_the_way else ups).append(Part(source, units.layer, start))
        act = _activation(on_the_way[0].name, on_the_way[0].module) if on_the_way else act
    if len(gates) != 1 or len(ups) > 1 or act is None:
        return None
    down = Part(name, model.get_submodule(name), 0)
    return FeedForward(down, gates[0], ups[0] if ups else None, count, act, None)


def _activation(name: str, module: nn.Module) -> Activation | None:
    """Return the activation itself: a module, or the function that a module calls."""
    _, colon, function = name.partition("#")[0].partition(":")
    if not colon:
        return module
    return FORMULAS.get(function)


def _held(model: nn.Module, inputs: Any, layers: list[FeedForward]) -> list[FeedForward]:
    """Find the holders: the smallest modules around each layer's parts that compute it and nothing else."""
    candidates = {layer: _around(model, layer) for layer in layers}
    seen: dict[nn.Module, tuple[Any, Any]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[module] = ((args, kwargs), output)

    handles = [p.layer.register_forward_hook(note, with_kwargs=True) for p in candidates.values() if p]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call(model, inputs)
            return [_with_holder(layer, candidates[layer], seen) for layer in layers]
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _around(model: nn.Module, layer: FeedForward) -> Part | None:
    parts = [p.name.split(".") for p in (layer.down, layer.gate, layer.up) if p]
    shared = []
    for steps in zip(*parts, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    name = ".".join(shared[: min(len(p) for p in parts) - 1])
    return Part(name, model.get_submodule(name), 0)


def _with_holder(layer: FeedForward, around: Part | None, seen: dict[nn.Module, Any]) -> FeedForward:
    if around is None or around.layer not in seen:
        return layer
    (args, kwargs), output = seen[around.layer]
    whole = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
    if not whole or not torch.equal(compute(layer, args[0]), output):
        return layer
    return FeedForward(layer.down, layer.gate, layer.up, layer.count, layer.activation, around)


def gates(layer: FeedForward, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the activated gate (..., count) of the layer's input, and what it is multiplied with."""
    first = layer.gate.layer(x)
    gate = first.narrow(-1, layer.gate.start, layer.count) if first.shape[-1] != layer.count else first
    if layer.up is None:
        return layer.activation(gate), None
    second = first if layer.up.layer is layer.gate.layer else layer.up.layer(x)
    up = second.narrow(-1, layer.up.start, layer.count) if second.shape[-1] != layer.count else second
    return layer.activation(gate), up


def compute(layer: FeedForward, x: Tensor) -> Tensor:
    """Return the layer's output of its input, part by part."""
    a, up = gates(layer, x)
    found: Tensor = layer.down.layer(a if up is None else a * up)
    return found


def named(layer: FeedForward) -> str:
    """Return the name of the activation, "function" where it is none that is known."""
    act = layer.activation
    if isinstance(act, nn.Module):
        return module_named(act, "activation") or type(act).__name__
    return next((name for name, formula in FORMULAS.items() if formula is act), "function")

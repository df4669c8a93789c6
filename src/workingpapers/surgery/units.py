"""What reads the units of each layer, and what stands between: found in one run, whatever the model's code is.

A unit of a layer is one of its outputs (linear) or output channels (convolution).  Tensors of the run carry which
layer's units they hold and where; operations that act on each unit alone pass this on, also through flattening,
pooling, norms, and products of two such tensors, as in gated layers.  Sums, attention and all else do not: then
what the units do is not in the hands of the layers that read them, and they are not `closed`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.surgery._unit_tracing import Tracing, transposed
from workingpapers.surgery.running import call


@dataclass(frozen=True)
class Reader:
    """A layer that reads units: unit `start + i` lies in its inputs i * block to (i + 1) * block - 1, i < count."""

    name: str
    layer: nn.Module
    start: int
    count: int
    block: int


@dataclass(frozen=True)
class Between:
    """A norm or an activation on the way, which sees units `start` to `start + count - 1`.

    An activation goes under its module's name, or `module:function` where a module calls it itself; a second run in
    one pass ends in `#2`.
    """

    name: str
    module: nn.Module
    start: int
    count: int


@dataclass(frozen=True)
class Units:
    """The units of a linear or convolution layer.

    Attributes:
        name: of the layer.
        layer: the module.
        count: how many units.
        readers: what reads them, through nothing that mixes them with others.
        norms: on the way to the readers; batch norms treat each unit alone, layer norms do not.
        activations: on the way.
        partners: other layers whose units are multiplied with these, one by one.
        closed: whether the readers are all that the units reach, and there is one.
    """

    name: str
    layer: nn.Module
    count: int
    readers: tuple[Reader, ...] = field(repr=False)
    norms: tuple[Between, ...]
    activations: tuple[Between, ...]
    partners: tuple[str, ...]
    closed: bool


@torch.no_grad()
def units_of(model: nn.Module, inputs: Any) -> dict[str, Units]:
    """Run `model` once in evaluation mode and return the units of its layers, in the order in which they ran.

    Args:
        model: any model; it stays as it is.
        inputs: the argument, a tuple of arguments, or a mapping of arguments by name.

    Raises:
        WorkingPapersError: where the model does not run on the inputs.
    """
    tracing = Tracing(model)
    modes = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"), tracing.watching():
            tracing.leaves_by(call(model, inputs))
    finally:
        torch.set_rng_state(state)
        for module, training in modes.items():
            module.training = training
    return {name: _units(name, tracing) for name in tracing.found}


def _units(name: str, tracing: Tracing) -> Units:
    path = tracing.found[name]
    modules = tracing.modules
    readers = tuple(Reader(n, modules[n], start, count, block) for n, start, count, block in path.readers)
    return Units(
        name,
        modules[name],
        path.count,
        readers,
        tuple(Between(n, module, start, count) for (n, start, count), module in path.norms.items()),
        tuple(Between(n, module, start, count) for (n, start, count), module in path.activations.items()),
        tuple(path.partners),
        bool(readers) and not path.open,
    )


def incoming(layer: nn.Module, units: Tensor) -> Tensor:
    """Return which entries of a layer's weight feed the units (count,) bool: a mask of the weight's shape."""
    weight: Any = layer.weight
    dim = 1 if transposed(layer) else 0
    shape = [1] * weight.ndim
    shape[dim] = -1
    return units.to(weight.device).reshape(shape).expand(weight.shape)


def outgoing(reader: Reader, units: Tensor) -> Tensor:
    """Return which entries of a reader's weight carry the units (count,) bool of the layer: a mask of its shape."""
    weight: Any = reader.layer.weight
    own = units[reader.start : reader.start + reader.count].to(weight.device)
    inputs = own.repeat_interleave(reader.block)
    if transposed(reader.layer):
        return inputs[:, None].expand(weight.shape)
    groups = int(getattr(reader.layer, "groups", 1))
    by_group = inputs.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)  # (out, in / groups)
    return by_group.reshape(*by_group.shape, *[1] * (weight.ndim - 2)).expand(weight.shape)

"""What an initialisation made for one activation reads off a model: layers, their fans and their neighbours."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
LAYERS = (nn.Linear, *_CONVOLUTIONS)


class Placed(NamedTuple):
    """A layer of a model, the activation that feeds it and the one that it feeds (None: there is none)."""

    name: str
    layer: nn.Module
    before: nn.Module | None
    after: nn.Module | None


def placed_layers(model: nn.Module, is_activation: Callable[[nn.Module], bool]) -> Iterator[Placed]:
    """Yield the linear and convolution layers of `model`, in the order in which its modules were registered.

    The order stands for that of execution, as it does in sequential models and in blocks written in order.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    following: list[nn.Module | None] = [None] * len(modules)
    for i in range(len(modules) - 1, 0, -1):
        following[i - 1] = modules[i][1] if is_activation(modules[i][1]) else following[i]
    before: nn.Module | None = None
    seen: set[int] = set()
    for (name, module), after in zip(modules, following, strict=True):
        if is_activation(module):
            before = module
        elif isinstance(module, LAYERS) and id(module) not in seen:
            seen.add(id(module))
            yield Placed(name, module, before, after)


def fans(layer: nn.Module) -> tuple[int, int]:
    """Return how many inputs each output of `layer` sums, and how many outputs each input feeds (stride 1)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if not isinstance(layer, _CONVOLUTIONS):
        raise TypeError(f"fans are those of a linear or convolution layer; got {type(layer).__name__}")
    taps = layer.weight[0, 0].numel()
    return layer.in_channels // layer.groups * taps, layer.out_channels // layer.groups * taps

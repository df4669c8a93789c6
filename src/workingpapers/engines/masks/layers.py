"""Masks on the weights of Linear and Conv2d layers.

A masked layer is a Linear or Conv2d whose class is exchanged in place: parameters, names, hooks and modes stay, a
boolean buffer `mask` comes in, and the layer computes with weight * mask.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

Masks = dict[str, Tensor]


class MaskedLinear(nn.Linear):
    """A linear layer with a `mask` on its weight; with `straight_through` the gradient ignores the mask."""

    mask: Tensor
    straight_through: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Return input @ (weight * mask).T + bias."""
        return F.linear(input, _effective(self), self.bias)


class MaskedConv2d(nn.Conv2d):
    """A convolution with a `mask` on its weight; with `straight_through` the gradient ignores the mask."""

    mask: Tensor
    straight_through: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution with weight * mask."""
        out: Tensor = self._conv_forward(input, _effective(self), self.bias)
        return out


Layer = nn.Linear | nn.Conv2d
KINDS: dict[type, type] = {nn.Linear: MaskedLinear, nn.Conv2d: MaskedConv2d}
PLAIN = {masked: plain for plain, masked in KINDS.items()}


def _effective(layer: MaskedLinear | MaskedConv2d) -> Tensor:
    kept: Tensor = layer.weight * layer.mask
    through: Tensor = layer.weight + (kept - layer.weight).detach()
    return through if layer.straight_through else kept


def prunable(model: nn.Module) -> dict[str, Layer]:
    """Return the Linear and Conv2d layers of the model by name, without subclasses of other packages.

    Raises:
        WorkingPapersError: where there is none.
    """
    found = {
        name: cast(Layer, m) for name, m in model.named_modules() if type(m) in KINDS or type(m) in PLAIN
    }
    if not found:
        raise WorkingPapersError(
            f"{type(model).__name__} has no Linear or Conv2d layer whose weights can be masked"
        )
    return found


def masked(model: nn.Module) -> dict[str, Layer]:
    """Return the layers of the model that have a mask, by name."""
    return {name: layer for name, layer in prunable(model).items() if type(layer) in PLAIN}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers that can be masked, by the layers' names, detached."""
    return {name: layer.weight.detach() for name, layer in prunable(model).items()}


def masks_of(model: nn.Module) -> Masks:
    """Return the masks of the model by the layers' names (the buffers themselves)."""
    return {name: cast(Tensor, layer.mask) for name, layer in masked(model).items()}


@torch.no_grad()
def set_mask(layer: Layer, mask: Tensor) -> None:
    """Give the layer a mask of its weight's shape, in place of one that it has, and set what is off to 0."""
    if mask.shape != layer.weight.shape:
        raise WorkingPapersError(
            f"a mask has the shape of its weight, {tuple(layer.weight.shape)}; got {tuple(mask.shape)}"
        )
    mask = (mask != 0).to(layer.weight.device)
    if type(layer) in PLAIN:
        cast(Tensor, layer.mask).copy_(mask)
    else:
        layer.register_buffer("mask", mask)
        layer.__class__ = KINDS[type(layer)]
    layer.weight.mul_(mask)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set the masks by the layers' names, in place; return the model."""
    layers = prunable(model)
    for name, mask in masks.items():
        if name not in layers:
            raise unknown("layer that can be masked", name, layers)
        set_mask(layers[name], mask)
    return model


@torch.no_grad()
def remove_masks(model: nn.Module) -> nn.Module:
    """Take the masks off, in place, leaving zeros in the weights; return the model."""
    for layer in masked(model).values():
        layer.weight.mul_(cast(Tensor, layer.mask))
        del layer.mask
        layer.__class__ = PLAIN[type(layer)]
    return model


def density(model: nn.Module) -> float:
    """Return the share of the weights of all Linear and Conv2d layers that are not masked."""
    masks, weights = masks_of(model), weights_of(model)
    on = sum(int(masks[n].count_nonzero()) if n in masks else w.numel() for n, w in weights.items())
    return on / sum(w.numel() for w in weights.values())

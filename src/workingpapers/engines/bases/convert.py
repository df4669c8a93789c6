"""Layers of pykan, the authors' package, from and to ours; known by their attributes, so that pykan is not needed.

Such a layer (`kan.KANLayer`) has the knots `grid` (I, G + 2k + 1), `coef` (I, O, G + k), `scale_base`, `scale_sp`
and `mask` (I, O), the order `k`, the base function `base_fun`, and computes
y_j = sum_i mask_ij (scale_base_ij base_fun(x_i) + scale_sp_ij spline_ij(x_i)).
"""

from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.bases.families import BSpline
from workingpapers.engines.bases.layer import BasisLinear
from workingpapers.errors import WorkingPapersError

ATTRIBUTES = ("grid", "coef", "scale_base", "scale_sp", "mask", "k", "base_fun")


class Function(nn.Module):
    """A plain function of a tensor as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        found: Tensor = self.function(x)
        return found


@torch.no_grad()
def from_pykan(layer: Any) -> BasisLinear:
    """Return our layer of the same function as a spline layer of pykan; its own scales become part of the weights.

    Raises:
        WorkingPapersError: where the layer has not the attributes or shapes of such a layer.
    """
    _check(layer)
    inputs, outputs, bases = layer.coef.shape
    spline = BSpline(inputs, bases - layer.k, layer.k).to(layer.coef)
    base = layer.base_fun if isinstance(layer.base_fun, nn.Module) else Function(layer.base_fun)
    ours = BasisLinear(inputs, outputs, spline, base).to(layer.coef)
    spline.knots.copy_(layer.grid)
    ours.coefficients.copy_((layer.coef * layer.scale_sp.unsqueeze(-1)).transpose(1, 2))
    # masks of pykan may be any numbers, ours tell which edges there are
    ours.coefficients.mul_(layer.mask.unsqueeze(1))
    if ours.base_weight is not None:
        ours.base_weight.copy_((layer.scale_base * layer.mask).T)
    ours.mask.copy_(layer.mask.T != 0)
    return ours


@torch.no_grad()
def to_pykan(ours: BasisLinear, layer: Any) -> Any:
    """Write our layer into a spline layer of pykan of the same inputs, outputs, grid and order, and return that.

    Its scale of splines becomes 1, its base function ours (the zero function where there is no base term).
    """
    spline = ours._spline()
    _check(layer)
    if ours.bias is not None:
        raise WorkingPapersError("a spline layer of pykan has no bias; this layer has one")
    wanted = (ours.in_features, ours.out_features, spline.size)
    if tuple(layer.coef.shape) != wanted or layer.k != spline.order:
        raise WorkingPapersError(
            f"the layer of pykan needs coefficients of shape {wanted} and order {spline.order}; "
            f"it has {tuple(layer.coef.shape)} and {layer.k}"
        )
    layer.grid.copy_(spline.knots)
    layer.coef.copy_(ours.coefficients.transpose(1, 2))
    layer.scale_sp.fill_(1.0)
    layer.mask.copy_(ours.mask.T)
    if ours.base is None or ours.base_weight is None:
        layer.scale_base.zero_()
    else:
        layer.scale_base.copy_(ours.base_weight.T)
        layer.base_fun = ours.base
    return layer


def _check(layer: Any) -> None:
    missing = [name for name in ATTRIBUTES if not hasattr(layer, name)]
    if missing:
        kind, whole, lacks = type(layer).__name__, ", ".join(ATTRIBUTES), ", ".join(missing)
        raise WorkingPapersError(f"a spline layer of pykan has {whole}; {kind} lacks {lacks}")
    inputs, outputs, bases = layer.coef.shape
    shapes = {"grid": (inputs, bases + layer.k + 1)}
    shapes |= dict.fromkeys(("scale_base", "scale_sp", "mask"), (inputs, outputs))
    for name, shape in shapes.items():
        if tuple(getattr(layer, name).shape) != shape:
            raise WorkingPapersError(
                f"coefficients {tuple(layer.coef.shape)} go with a {name} of shape {shape}; "
                f"it has {tuple(getattr(layer, name).shape)}"
            )

"""Sparse weights by masks on linear and convolutional layers: where they sit, how dense, what they keep."""

from workingpapers.engines.masks.densities import layer_densities
from workingpapers.engines.masks.layers import (
    MaskedConv2d,
    MaskedLinear,
    apply_masks,
    density,
    masked,
    masks_of,
    prunable,
    remove_masks,
    set_mask,
    weights_of,
)
from workingpapers.engines.masks.scores import keep_by_score, n_of_m, random_masks, shuffled

__all__ = [
    "MaskedConv2d",
    "MaskedLinear",
    "apply_masks",
    "density",
    "keep_by_score",
    "layer_densities",
    "masked",
    "masks_of",
    "n_of_m",
    "prunable",
    "random_masks",
    "remove_masks",
    "set_mask",
    "shuffled",
    "weights_of",
]

"""Layers that skip: a model's own feed-forward and linear layers, leaving out what is small."""

from workingpapers.engines.skipping.calibration import activations, quantile, tokens_of
from workingpapers.engines.skipping.layers import (
    cut_below,
    expert_activations,
    note,
    realised,
    skip_below,
    skipper,
    skipping_layers,
)

__all__ = [
    "activations",
    "cut_below",
    "expert_activations",
    "note",
    "quantile",
    "realised",
    "skip_below",
    "skipper",
    "skipping_layers",
    "tokens_of",
]

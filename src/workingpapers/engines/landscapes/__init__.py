"""Landscapes: a model's loss along random directions through its weights."""

from workingpapers.engines.landscapes.slices import filter_direction, loss_grid

__all__ = ["filter_direction", "loss_grid"]

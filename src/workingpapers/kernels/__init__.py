"""Kernels: fast forms of what papers compute, each equal to a plain formula in torch operations."""

from workingpapers.kernels.fusion import fusing
from workingpapers.kernels.pointwise import per_channel, pointwise, rowwise

__all__ = ["fusing", "per_channel", "pointwise", "rowwise"]

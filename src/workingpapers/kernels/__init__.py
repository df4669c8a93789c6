"""Kernels: fast forms of what papers compute, each equal to a plain formula in torch operations."""

from workingpapers.kernels.fusion import compiles, fusing
from workingpapers.kernels.pointwise import per_channel, pointwise, rowwise

__all__ = ["compiles", "fusing", "per_channel", "pointwise", "rowwise"]

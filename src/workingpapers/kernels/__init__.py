"""Kernels: fast forms of what papers compute, each equal to a plain formula in torch operations."""

from workingpapers.kernels.pointwise import pointwise

__all__ = ["pointwise"]

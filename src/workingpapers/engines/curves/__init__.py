"""Curves: what can be said of an elementwise function by looking at its values and slopes."""

from workingpapers.engines.curves.properties import Curve, measured

__all__ = ["Curve", "measured"]

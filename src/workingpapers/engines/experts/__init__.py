"""Mixtures of experts: products for the chosen experts alone, and dense layers of trained models as experts."""

from workingpapers.engines.experts.products import EVALUATIONS, Experts
from workingpapers.engines.experts.reading import Dense, as_experts, feed_forwards, with_layers

__all__ = ["EVALUATIONS", "Dense", "Experts", "as_experts", "feed_forwards", "with_layers"]

"""Experiments: paired, seeded, resumable runs, and the statistics that judge them."""

from workingpapers.experiments.evidence import (
    Evidence,
    Finding,
    above,
    all_of,
    any_of,
    at_least,
    at_most,
    below,
    between,
)

__all__ = ["Evidence", "Finding", "above", "all_of", "any_of", "at_least", "at_most", "below", "between"]

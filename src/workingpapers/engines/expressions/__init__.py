"""Scalar functions composed from unary and binary pieces: as a search space, as text, as something to call."""

from workingpapers.engines.expressions.pieces import BINARY, UNARY, Piece
from workingpapers.engines.expressions.tree import Expression, expression_space

__all__ = ["BINARY", "UNARY", "Expression", "Piece", "expression_space"]

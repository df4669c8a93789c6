"""Layers of functions of one variable on every edge (Kolmogorov-Arnold networks), over any family of bases."""

from workingpapers.engines.bases.convert import from_pykan, to_pykan
from workingpapers.engines.bases.families import (
    BASES,
    RBF,
    Basis,
    BSpline,
    Chebyshev,
    Fourier,
    Gram,
    Linear,
    MexicanHat,
    Rational,
    ReLUPower,
    basis,
)
from workingpapers.engines.bases.layer import BasisLinear
from workingpapers.engines.bases.products import basis_product
from workingpapers.engines.bases.pruning import edge_magnitudes, prune_edges, prune_nodes, regularisation
from workingpapers.engines.bases.symbolic import LIBRARY, Reading, fit_symbolic, read_edge

__all__ = [
    "BASES",
    "LIBRARY",
    "RBF",
    "BSpline",
    "Basis",
    "BasisLinear",
    "Chebyshev",
    "Fourier",
    "Gram",
    "Linear",
    "MexicanHat",
    "Rational",
    "ReLUPower",
    "Reading",
    "basis",
    "basis_product",
    "edge_magnitudes",
    "fit_symbolic",
    "from_pykan",
    "prune_edges",
    "prune_nodes",
    "read_edge",
    "regularisation",
    "to_pykan",
]

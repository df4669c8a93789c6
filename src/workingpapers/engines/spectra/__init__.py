"""Spectra: products with the Hessian of any model's loss, its extreme eigenvalues, trace and density."""

from workingpapers.engines.spectra.density import Density, spectral_density
from workingpapers.engines.spectra.extremes import Extremes, extremes
from workingpapers.engines.spectra.hessian import Hessian, hessian, parameter_vector
from workingpapers.engines.spectra.operator import Operator, of_matrix
from workingpapers.engines.spectra.sgd import Rates, SecondMoments, jacobians
from workingpapers.engines.spectra.stability import sharpness, smallest, stability_limit
from workingpapers.engines.spectra.trace import Estimate, trace

__all__ = [
    "Density",
    "Estimate",
    "Extremes",
    "Hessian",
    "Operator",
    "Rates",
    "SecondMoments",
    "extremes",
    "hessian",
    "jacobians",
    "of_matrix",
    "parameter_vector",
    "sharpness",
    "smallest",
    "spectral_density",
    "stability_limit",
    "trace",
]

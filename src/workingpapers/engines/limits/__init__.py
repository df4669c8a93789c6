"""Limits of width: kernels of infinitely wide networks, tangent kernels of finite ones, criticality."""

from workingpapers.engines.limits.critical import (
    Criticality,
    Layer,
    criticality,
    layer_criticality,
    second_moment,
    susceptibilities,
    variance_flow,
    weight_variances,
)
from workingpapers.engines.limits.duals import Dual, dual, expectations
from workingpapers.engines.limits.kernels import Limit, conv_limit, dense_limit
from workingpapers.engines.limits.scalars import Activation, Kink, Scalar
from workingpapers.engines.limits.tangent import empirical_ntk, linearise, sketched_ntk

__all__ = [
    "Activation",
    "Criticality",
    "Dual",
    "Kink",
    "Layer",
    "Limit",
    "Scalar",
    "conv_limit",
    "criticality",
    "dense_limit",
    "dual",
    "empirical_ntk",
    "expectations",
    "layer_criticality",
    "linearise",
    "second_moment",
    "sketched_ntk",
    "susceptibilities",
    "variance_flow",
    "weight_variances",
]

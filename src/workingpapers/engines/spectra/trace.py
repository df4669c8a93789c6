"""The trace of a symmetric operator from random products, with its standard error.

    Hutchinson:  tr A = E[g.A g],  g of random signs
    Hutch++:     tr A = tr(Q.A Q) + E[g'.A g'],  Q spans A S for random S, g' = g - Q Q.g

The second is exact for operators of low rank, and its error falls with the inverse of the number of products.
Source: "Hutch++: Optimal Stochastic Trace Estimation" (2020), Algorithm 1.
"""

import math
from dataclasses import dataclass

import torch

from workingpapers.engines.spectra.operator import Operator, finite, signs
from workingpapers.errors import WorkingPapersError, unknown


@dataclass(frozen=True)
class Estimate:
    """An estimated number, its standard error, and how many products with the operator it cost."""

    value: float
    error: float
    products: int


def trace(
    operator: Operator,
    *,
    method: str = "hutch++",
    tolerance: float = 0.005,
    most: int = 300,
    sketch: int = 20,
    seed: int = 0,
) -> Estimate:
    """Estimate the trace of `operator`, with random signs until the standard error is small enough.

    Args:
        method: "hutch++" or "hutchinson".
        tolerance: standard error relative to the estimate at which to stop (after eight draws at least).
        most: products at most.  An operator whose size is no more is traced exactly, with error 0.
        sketch: columns of S in Hutch++, twice as many products; fewer where `most` does not leave room.
        seed: decides all draws.
    """
    if method not in ("hutch++", "hutchinson"):
        raise unknown("way to estimate a trace", method, ("hutch++", "hutchinson"))
    if most < 2:
        raise WorkingPapersError(f"a trace with its error needs at least 2 products; got most={most}")
    if operator.size <= most:
        return Estimate(float(operator.dense().double().trace()), 0.0, operator.size)
    generator = torch.Generator().manual_seed(seed)
    space, base, products = None, 0.0, 0
    columns = min(sketch, (most - 2) // 3) if method == "hutch++" else 0
    if columns:
        draws = torch.stack([signs(operator, generator) for _ in range(columns)], 1)
        space = torch.linalg.qr(finite(operator @ draws))[0]
        base = float((space * finite(operator @ space)).double().sum())
        products = 2 * columns
    samples: list[float] = []
    while True:
        g = signs(operator, generator)
        if space is not None:
            g = g - space @ (space.T @ g)
        samples.append(float((g.double() * finite(operator @ g).double()).sum()))
        products += 1
        value = base + math.fsum(samples) / len(samples)
        if len(samples) < 2:
            continue
        error = float(torch.tensor(samples, dtype=torch.float64).std()) / math.sqrt(len(samples))
        if products >= most or (len(samples) >= 8 and error <= tolerance * abs(value)):
            return Estimate(value, error, products)

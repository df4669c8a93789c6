"""What is stated of ranks in random ReLU networks, and what wide networks do to the correlation of two inputs."""

import math

from workingpapers.errors import WorkingPapersError

RHO = 1 - 2 / math.pi


def stated_rank(layer: int, m: int) -> float:
    """Return the paper's expected rank at a layer (from 0) for `m` inputs: m [1 - (1 - 2/pi)^layer]."""
    return m * (1 - RHO**layer)


def revival_depths(count: int, rho: float = RHO) -> list[float]:
    """Return the paper's first `count` depths of local maxima, (k + 1/2) pi / log(1 / rho)."""
    if not 0 < rho < 1:
        raise WorkingPapersError(f"rho is a ratio of decay, between 0 and 1; got {rho}")
    return [(k + 0.5) * math.pi / math.log(1 / rho) for k in range(count)]


def revival_height(m: int) -> float:
    """Return the paper's height of the local maxima, (1 - exp(-pi / 2)) m = 0.792 m."""
    return m * (1 - math.exp(-math.pi / 2))


def next_correlation(rho: float, slope: float = 0.0) -> float:
    """Return the cosine of two inputs one wide random layer later, for ReLU or leaky ReLU with a slope below 0.

    Cho and Saul 2009 for ReLU; the rest is linear.  It is above rho, unless that is 1 or the slope is 1.
    """
    rho = min(1.0, max(-1.0, rho))
    relu = (math.sqrt(1 - rho * rho) + (math.pi - math.acos(rho)) * rho) / math.pi
    return (2 * slope * rho + (1 - slope) ** 2 * relu) / (1 + slope**2)


def correlation_curve(depth: int, slope: float = 0.0, rho: float = 0.0) -> list[float]:
    """Return the cosine of two inputs after 0 to `depth` wide random layers, from `rho` on."""
    found = [rho]
    for _ in range(depth):
        found.append(next_correlation(found[-1], slope))
    return found

"""How many weights each layer keeps for a total density: uniform, Erdos-Renyi (ER) and Erdos-Renyi-kernel (ERK).

ER gives a layer the density eps (n_in + n_out) / (n_in n_out); ERK adds the kernel's sides to both,
eps (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w).  Layers that would exceed 1 are dense, and eps is solved so
that the whole has the density asked for (Mocanu et al., 2018; Evci et al., 2020).
"""

import math
from collections.abc import Mapping, Sequence

from workingpapers.errors import WorkingPapersError, unknown

WAYS = ("uniform", "er", "erk")


def layer_densities(
    shapes: Mapping[str, Sequence[int]], density: float, way: str = "erk"
) -> dict[str, float]:
    """Return the density of each layer, whose weight has the shape (out, in) or (out, in, kernel sides).

    Raises:
        WorkingPapersError: for a density that is not above 0 and at most 1.
    """
    if way not in WAYS:
        raise unknown("allocation of densities", way, WAYS)
    if not 0 < density <= 1:
        raise WorkingPapersError(f"a density lies above 0 and at most at 1; got {density}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if way == "uniform":
        return dict.fromkeys(shapes, density)
    raw = {
        name: sum(shape if way == "erk" else shape[:2]) / math.prod(shape if way == "erk" else shape[:2])
        for name, shape in shapes.items()
    }
    dense: set[str] = set()
    while True:
        rest = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        open_ = [name for name in shapes if name not in dense]
        scale = rest / sum(raw[name] * sizes[name] for name in open_) if open_ else 0.0
        over = [name for name in open_ if scale * raw[name] > 1]
        if not over:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense.update(over)


def counts(shapes: Mapping[str, Sequence[int]], density: float, way: str = "erk") -> dict[str, int]:
    """Return how many weights each layer keeps: the densities times the sizes, rounded."""
    found = layer_densities(shapes, density, way)
    return {name: round(found[name] * math.prod(shape)) for name, shape in shapes.items()}

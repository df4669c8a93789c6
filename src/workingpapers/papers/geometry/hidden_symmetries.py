"""Hidden symmetries: how many directions of a ReLU network's parameters change its function, and how many should.

    dim_fun(theta) = max over z_1, z_2, ... of rank d/dtheta (f(z_1), f(z_2), ...) <= D - sum of hidden widths

Scaling a hidden neuron's weights up and those that read it down leaves the function as it is: one direction for
each.  Where more directions are lost, the network has hidden symmetries: neurons that are never or always on,
that share a hyperplane or whose bent hyperplanes do not meet, layers with an image of too low dimension.

Paper: "Hidden symmetries of ReLU networks" (2023), arXiv 2306.06179, Sections 3-5.  There the rank is that at
random inputs.  Here each input stands for its whole region, on which derivatives are affine, and for one and two
inputs every region is visited, so that no symmetry is seen where inputs were only not found.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.geometry import _function_rank as ranks
from workingpapers.papers.geometry._canonical import (
    Layers,
    canonical,
    largest_difference,
    read_layers,
    same_function,
)
from workingpapers.papers.geometry._function_rank import jacobian_rank
from workingpapers.papers.geometry._planted import planted
from workingpapers.tasks import Budget, mlp

_SAYS = {
    "inactive": "neurons never on",
    "active": "neurons always on",
    "coincident": "pairs with one hyperplane",
    "unmet": "pairs of neighbouring layers that do not meet",
    "collapsed": "layers with a collapsed image",
}


def functional_dimension(
    model: nn.Module | Layers, seed: int = 0
) -> tuple[int, int, dict[str, list[tuple[int, ...]]]]:
    """Return the functional dimension of a ReLU perceptron, its bound, and the mechanisms that may lower it.

    Args:
        model: nn.Linear and nn.ReLU in turns, or a list of weights and biases.
        seed: of the inputs, which are drawn where there are more than two of them.

    Raises:
        WorkingPapersError: for other modules; `jacobian_rank` takes any.
    """
    layers = read_layers(model)
    rank, x = ranks.dimension(layers, seed)
    return rank, ranks.bound(layers), ranks.mechanisms(layers, x)


def random_layers(
    inputs: int, width: int, depth: int, init: str, generator: torch.Generator, outputs: int = 1
) -> Layers:
    """Return a random network of `depth` hidden layers.

    Args:
        init: "he", normal weights of variance 2 / fan-in and biases of variance 0.01; or "torch", both uniform up
            to 1 / sqrt(fan-in).
    """
    if init not in ("he", "torch"):
        raise unknown("initialisation", init, ("he", "torch"))
    sizes = [inputs, *[width] * depth, outputs]
    layers = []
    for a, b in pairwise(sizes):
        shape = (b, a + 1)
        if init == "he":
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            drawn[:, :-1] *= (2 / a) ** 0.5
            drawn[:, -1] *= 0.1
        else:
            drawn = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / a**0.5
        layers.append((drawn[:, :-1], drawn[:, -1]))
    return layers


def full_fraction(inputs: int, width: int, depth: int, nets: int, init: str = "he", seed: int = 0) -> float:
    """Return the share of random networks whose functional dimension attains its bound."""
    generator = torch.Generator().manual_seed(seed)
    full = 0
    for _ in range(nets):
        layers = random_layers(inputs, width, depth, init, generator)
        full += ranks.dimension(layers, seed)[0] == ranks.bound(layers)
    return full / nets


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([2, 4, 3, 1]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return (model,)


def _rescaled(model: Any) -> tuple[Any, ...]:
    """Scale the units of the first hidden layer and undo it behind them."""
    s = torch.tensor([0.1, 3.0, 20.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        model[1].weight.mul_(s[:, None])
        model[1].bias.mul_(s)
        model[3].weight.div_(s)
    return (model,)


def _reordered(model: Any) -> tuple[Any, ...]:
    """Turn the order of the first hidden layer around."""
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight.flip(0))
        model[1].bias.copy_(model[1].bias.flip(0))
        model[3].weight.copy_(model[3].weight.flip(1))
    return (model,)


@paper(
    "hidden_symmetries",
    example=_example,
    invariances={"positive rescaling of units": _rescaled, "order of the units": _reordered},
)
def hidden_symmetries(model: nn.Module, seed: int = 0) -> Finding:
    """Measure how many directions of a network's parameters change its function, and what hides the others.

    Args:
        model: nn.Linear and nn.ReLU in turns, (N, n) -> (N, outputs), of some hundred to a few thousand parameters.
        seed: of the inputs, which are drawn where there are more than two of them.

    The numbers: `parameters`, `bound`, `dimension`, `hidden` = bound - dimension, and how many neurons, pairs or
    layers show each mechanism; `details["mechanisms"]` names them.  Mechanisms are suspects: a pair that does not
    meet need not cost a dimension.
    """
    layers = read_layers(model)
    rank, most, mechanisms = functional_dimension(layers, seed)
    numbers = {
        "parameters": float(ranks.parameters(layers)),
        "bound": float(most),
        "dimension": float(rank),
        "hidden": float(most - rank),
        **{name: float(len(found)) for name, found in mechanisms.items()},
    }
    suspects = ", ".join(f"{len(found)} {_SAYS[name]}" for name, found in mechanisms.items() if found)
    if rank == most:
        reading = f"All {most} directions that scaling leaves change the function, so no symmetry is hidden."
    else:
        reading = (
            f"Of {most} directions that scaling leaves {most - rank} do not change the function; "
            f"suspects are {suspects or 'none of the known mechanisms'}."
        )
    return Finding(numbers, reading, None, {"mechanisms": mechanisms})


def _sweep_example(generator: torch.Generator) -> tuple[Any, ...]:
    return [(2, 4, 1), (2, 4, 2)], 3


@paper("hidden_symmetries", part="sweep", kind="analysis", example=_sweep_example)
def sweep(
    architectures: Sequence[tuple[int, int, int]], nets: int = 30, init: str = "he", seed: int = 0
) -> Finding:
    """Measure which share of random networks has no hidden symmetry, for (inputs, width, depth) each.

    Args:
        nets: random networks for each architecture.
        init: "he" or "torch", see `random_layers`.
    """
    if not architectures or nets < 1:
        raise WorkingPapersError("a sweep needs at least one architecture and one network of each")
    shares = {a: full_fraction(*a, nets, init, seed) for a in architectures}
    best, worst = max(shares, key=lambda a: shares[a]), min(shares, key=lambda a: shares[a])
    return Finding(
        {f"inputs {n} width {w} depth {d}": share for (n, w, d), share in shares.items()},
        f"The share of networks without hidden symmetries is largest, {shares[best]:.0%}, for {best[0]} inputs, "
        f"width {best[1]} and depth {best[2]}, and smallest, {shares[worst]:.0%}, for {worst[0]}, {worst[1]} and "
        f"{worst[2]}.",
        lambda: _draw(shares),
        {"shares": shares},
    )


def _draw(shares: dict[tuple[int, int, int], float]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for inputs, width in sorted({a[:2] for a in shares}):
        depths = sorted(d for n, w, d in shares if (n, w) == (inputs, width))
        values = [shares[inputs, width, d] for d in depths]
        axes.plot(depths, values, marker="o", label=f"{inputs} inputs, width {width}")
    axes.set(xlabel="hidden layers", ylabel="share without hidden symmetries", ylim=(-0.03, 1.03))
    axes.legend()
    return figure


def worst_step(shares: Sequence[float], sign: int) -> float:
    """Return by how much neighbours in a row go most against falling (sign -1) or rising (1)."""
    return max(-sign * (b - a) for a, b in pairwise(shares))


@claim(
    "hidden_symmetries",
    "Random networks are less likely to be free of hidden symmetries when deeper, and more likely when wider or "
    "with larger inputs.",
    figure="probability decreases towards 0 as depth increases, increases towards 1 as width and input dimension "
    "increase",
    seeds=5,
    holds=all_of(
        at_most(0.07, of="against_depth", by="every"),
        at_most(0.07, of="against_width"),
        at_most(0.07, of="against_inputs"),
        at_least(0.8, of="shallow", by="every"),
        at_most(0.5, of="deep_over_shallow", by="every"),
        at_least(0.1, of="gain_by_width"),
        at_least(0.1, of="gain_by_inputs"),
    ),
)
def depth_width_inputs(budget: Budget, seed: int) -> Evidence:
    """He networks: depths 1 to 5 of width 5 on two inputs; 3 layers as wide as the input; 2 of width 5 on 1 to 6.

    Figures `against_...` are the largest step against the claimed direction, in shares of the networks of a cell;
    `gain_...` the last share of a row less the first.  `width_alone` is the gain from width 4 to 10 on two inputs.
    """
    nets = budget.pick(quick=30, full=200)
    widest = budget.pick(quick=8, full=12)

    def shares(cells: Sequence[tuple[int, int, int]]) -> list[float]:
        return [full_fraction(*cell, nets, seed=seed) for cell in cells]

    depth = shares([(2, 5, d) for d in range(1, 6)])
    width = shares([(w, w, 3) for w in range(4, widest + 1, 2)])
    inputs = shares([(n, 5, 2) for n in (1, 2, 4, 6)])
    narrow, wide = shares([(2, 4, 3), (2, 10, 3)])
    return Evidence(
        against_depth=worst_step(depth, -1),
        against_width=worst_step(width, 1),
        against_inputs=worst_step(inputs, 1),
        shallow=depth[0],
        deep_over_shallow=depth[-1] / depth[0] if depth[0] else 1.0,
        gain_by_width=width[-1] - width[0],
        gain_by_inputs=inputs[-1] - inputs[0],
        width_alone=wide - narrow,
        widest=width[-1],
    )


__all__ = [
    "canonical",
    "full_fraction",
    "functional_dimension",
    "hidden_symmetries",
    "jacobian_rank",
    "largest_difference",
    "planted",
    "same_function",
    "sweep",
]

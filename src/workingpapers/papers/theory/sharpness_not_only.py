"""What minimising sharpness does beside minimising sharpness: three two-layer networks on an XOR.

    x uniform on {-1, 1}^d,  y = x_1 x_2;   sharpness = tr(H) = mean_i |grad f(x_i)|^2 where all are fitted

    a . relu(W x)              the flattest networks generalise            least trace of a generaliser 2 sqrt(d)
    a . relu(W x + b)          some memorise, and SAM ends at one          of both 2 sqrt(d + 1)
    a . relu(W x + b) / |.|    some memorise, and SAM does not end there   of both 1

Paper: "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better Generalization" (2023),
arXiv 2307.11007.  The form of the normalisation is from memory.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.engines.spectra import Estimate, hessian, trace
from workingpapers.engines.spectra.hessian import Batches
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most, between
from workingpapers.papers.theory._xor_nets import (
    KINDS,
    OPTIMISERS,
    Net,
    make_generaliser,
    make_memoriser,
    start,
    train,
    xor_data,
)
from workingpapers.tasks import Budget

TEST = 2000


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1/(2n) sum (f - y)^2."""
    return (outputs.reshape(targets.shape) - targets).square().sum() / (2 * len(targets))


def sharpness(model: nn.Module, batches: Batches, most: int = 300, seed: int = 0) -> Estimate:
    """Return the trace of the Hessian of 1/(2n) sum (f - y)^2 of any model over batches of inputs and targets."""
    return trace(hessian(model, half_squares, batches), most=most, seed=seed)


def least_trace(kind: str, d: int) -> float:
    """Return the least trace of generalisers, and of memorisers where the kind has biases."""
    if kind == "norm":
        return 1.0
    return 2 * math.sqrt(d + (kind == "bias"))


def accuracy(net: Net, x: Tensor, y: Tensor) -> float:
    """Return the share of signs that are right; an output of 0 counts half."""
    return float((torch.sign(net.outputs(x)) * y + 1).mean() / 2)


@paper("sharpness_not_only", example=lambda generator: ("bias", 8, 20, "sam", 40, 300))
def scenario(
    kind: str = "bias",
    d: int = 30,
    n: int = 100,
    optimiser: str = "sam",
    neurons: int = 200,
    steps: int = 30_000,
    lr: float = 0.02,
    seed: int = 0,
) -> Finding:
    """Train one of the three networks on n points of the XOR, and compare it with memorisers and generalisers.

    Args:
        kind: "plain", "bias" or "norm".
        optimiser: "sam" (ascent of 0.3 along each example's gradient), "label_noise" (0.3) or "gd".
        seed: decides points, weights and noise.

    The numbers: accuracy on the training points and on 2,000 new ones, mean square of the training errors, the
    trace before and after, that of the flattest memoriser on these points (of "plain", which has none, that of the
    flattest generaliser) and of the flattest generaliser.

    Raises:
        WorkingPapersError: for another kind or optimiser, or sizes that do not make sense.
    """
    if neurons < 1 or steps < 0 or lr <= 0:
        raise WorkingPapersError(
            f"training needs neurons, steps and a rate above 0; got {neurons}, {steps}, {lr}"
        )
    first, (x, y) = start(kind, d, neurons, seed), xor_data(d, n, seed)
    generator = torch.Generator().manual_seed(seed + 2**32)
    new = 2.0 * torch.randint(0, 2, (TEST, d), generator=generator) - 1
    net = train(first, x, y, optimiser, steps, lr, seed=seed)
    general = make_generaliser(kind, d)
    memory = general if kind == "plain" else make_memoriser(kind, x, y)
    numbers = {
        "train_accuracy": accuracy(net, x, y),
        "test_accuracy": accuracy(net, new, new[:, 0] * new[:, 1]),
        "train_mse": float((net.outputs(x) - y).square().mean()),
        "trace_before": first.trace(x),
        "trace": net.trace(x),
        "flat_memoriser": memory.trace(x),
        "flat_generaliser": general.trace(x),
    }
    return Finding(
        numbers,
        f"Trained by {optimiser}, the network is right on {numbers['test_accuracy']:.0%} of new points at a "
        f"trace of {numbers['trace']:.3g}, where the flattest that we know has {least_trace(kind, d):.3g}.",
        lambda: _draw(net, x),
        {"net": net, "x": x, "y": y},
    )


def _draw(net: Net, x: Tensor) -> Any:
    from matplotlib import pyplot

    share = (net.hidden(x) > 0).float().mean(0)
    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.scatter(share, net.a * net.w.norm(dim=1), s=8)
    axes.set(xlabel="share of the points on which a neuron is on", ylabel="read-out times size of weights")
    return figure


def _run(budget: Budget, seed: int, kind: str, optimiser: str = "sam") -> Mapping[str, float]:
    """Return the numbers of a scenario of the specification's size; gradient descent needs fewer steps to fit.

    With normalisation the least trace is a tenth of the others', so the rate is ten times theirs.
    """
    steps = budget.pick(quick=30_000, full=120_000) // (1 if optimiser == "sam" else 3)
    if kind == "norm":
        return scenario(kind, 30, 100, optimiser, 200, 2 * steps, 0.2, seed).numbers
    return scenario(kind, 30, 100, optimiser, 200, steps, 0.02, seed).numbers


@claim(
    "sharpness_not_only",
    "In some architectures flatness implies generalisation and in others sharpness minimisers fail though flattest "
    "models exist.",
    figure="three scenarios for two-layer ReLU networks",
    seeds=5,
    holds=all_of(
        at_least(1.0, of="fitted", by="every"),
        at_least(0.9, of="plain"),
        at_most(0.85, of="bias"),
        at_least(0.12, of="gap"),
        at_most(0.75, of="plain_gd"),
        between(0.95, 1.05, of="bias_trace"),
    ),
)
def flatness_and_generalisation(budget: Budget, seed: int) -> Evidence:
    """d=30, n=100: test accuracy of SAM without and with biases, of gradient descent; trace over 2 sqrt(d + 1)."""
    plain, bias = (_run(budget, seed, kind) for kind in ("plain", "bias"))
    gd = _run(budget, seed, "plain", "gd")
    return Evidence(
        fitted=min(run["train_accuracy"] for run in (plain, bias, gd)),
        plain=plain["test_accuracy"],
        bias=bias["test_accuracy"],
        gap=plain["test_accuracy"] - bias["test_accuracy"],
        plain_gd=gd["test_accuracy"],
        plain_trace=plain["trace"] / least_trace("plain", 30),
        bias_trace=bias["trace"] / least_trace("bias", 30),
    )


@claim(
    "sharpness_not_only",
    "Sharpness minimisation can still generalise even where flattest models that do not generalise exist.",
    seeds=5,
    holds=all_of(
        at_least(1.0, of="fitted", by="every"),
        at_least(0.1, of="gain"),
        at_most(1.05, of="memoriser", by="every"),
    ),
    calibrated="the normalised net's rate and steps, not the rule, on seed 1000: at the other nets' rate, after "
    "15,000, 30,000 and 90,000 steps, its trace still fell; then at 0.2 after 30,000, and 60,000 as it is now",
)
def beyond_sharpness(budget: Budget, seed: int) -> Evidence:
    """With normalisation: test accuracy over the biased net's, flat memoriser's trace over the trained one's."""
    norm, bias = (_run(budget, seed, kind) for kind in ("norm", "bias"))
    return Evidence(
        fitted=min(norm["train_accuracy"], bias["train_accuracy"]),
        gain=norm["test_accuracy"] - bias["test_accuracy"],
        memoriser=norm["flat_memoriser"] / norm["trace"],
        norm=norm["test_accuracy"],
        bias=bias["test_accuracy"],
        norm_trace=norm["trace"],
    )


__all__ = ["KINDS", "OPTIMISERS", "make_generaliser", "make_memoriser", "scenario", "sharpness"]

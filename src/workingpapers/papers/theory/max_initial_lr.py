"""The maximal initial learning rate: the largest rate at which a fresh network still starts to learn.

    eta* = sup { eta : plain SGD at eta reaches the threshold within the budget },   eta* ~ C (depth width)^-a

The rate is bracketed by doubling and halving and then bisected on a log scale.  The power law is for wide ReLU
networks of constant width whose input layer is trained slowly.

Paper: "Maximal Initial Learning Rates in Deep ReLU Networks" (2022), arXiv 2212.07295.  Budget, threshold and the
rate of the input layer are ours.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.spectra import sharpness
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, below
from workingpapers.tasks import Budget, initialise, mlp
from workingpapers.tasks.training import Training, points

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Trial:
    """One short run: its rate, the best accuracy on the way, and whether that reached the threshold."""

    lr: float
    accuracy: float
    success: bool


@dataclass(frozen=True)
class Power:
    """A fit of y = C x^exponent: the exponent with its standard error, and R^2 in logarithms."""

    exponent: float
    error: float
    r2: float


def bracket(
    succeeds: Callable[[float], bool], start: float = 0.1, precision: float = 0.1, doublings: int = 40
) -> tuple[float, float]:
    """Return a rate that succeeds and a failing one at most 1 + `precision` times as large.

    Doubles or halves from `start` until one succeeds and one fails, then halves the gap of their logarithms.

    Raises:
        WorkingPapersError: where `doublings` steps in one direction find no change.
    """
    if not (start > 0 and precision > 0):
        raise WorkingPapersError(f"a search needs start > 0 and precision > 0; got {start} and {precision}")
    first = succeeds(start)
    factor, lr = (2.0, start) if first else (0.5, start)
    for _ in range(doublings):
        lr *= factor
        if succeeds(lr) != first:
            break
    else:
        word = "succeeds" if first else "fails"
        raise WorkingPapersError(
            f"every learning rate from {start:g} to {lr:g} {word}: there is no limit here"
        )
    low, high = (lr / 2, lr) if first else (lr, 2 * lr)
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if succeeds(middle) else (low, middle)
    return low, high


def try_rate(
    model: nn.Module,
    split: Split,
    lr: float,
    threshold: float,
    steps: int = 60,
    batch: int = 64,
    input_factor: float = 0.01,
    seed: int = 0,
) -> Trial:
    """Train a copy of `model` by plain SGD to the threshold or for `steps`, measured on the test part of `split`.

    The first layer (of the parameters' order) learns at `input_factor` times the rate.  A loss that is not finite
    ends the run.
    """
    own = copy.deepcopy(model)
    first = {
        id(p) for p in next(m for m in own.modules() if any(True for _ in m.parameters(False))).parameters()
    }

    def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        every = list(parameters)
        slow = {"params": [p for p in every if id(p) in first], "lr": rate * input_factor}
        rest = {"params": [p for p in every if id(p) not in first]}
        return torch.optim.SGD([group for group in (slow, rest) if group["params"]], lr=rate)

    how = Training(steps=steps, lr=lr, optimizer=sgd, batch=batch, seed=seed, every=max(1, steps // 6))
    best = 0.0
    for point in points(own, split, how):
        best = max(best, point["accuracy"] if math.isfinite(point["accuracy"]) else 0.0)
        if best >= threshold:
            break
    return Trial(lr, best, best >= threshold)


def power_fit(x: Sequence[float], y: Sequence[float]) -> Power:
    """Return the least-squares fit of log y on log x, both positive and of three points at least."""
    from scipy.stats import linregress

    if len(x) < 3 or min(*x, *y) <= 0:
        raise WorkingPapersError("a power is fitted to three or more pairs of positive numbers")
    found = linregress(np.log(x), np.log(y))
    return Power(float(found.slope), float(found.stderr), float(found.rvalue) ** 2)


def he_mlp(features: int, depth: int, width: int, classes: int) -> nn.Sequential:
    """Build a ReLU perceptron of `depth` hidden layers of one width, He initialisation, zero biases."""
    model = mlp([features, *[width] * depth, classes])
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([4, 8, 3])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    y = torch.arange(90) % 3
    x = torch.randn(90, 4, generator=generator) + 4 * F.one_hot(y, 4)
    return model, Split(x[:60], y[:60], x[60:], y[60:], 3, "example"), None, 20, 16


@paper(
    "max_initial_lr",
    example=_example,
    invariances={"training mode": lambda model, *rest: (model.train(), *rest)},
)
def max_initial_lr(
    model: nn.Module | Build,
    split: Split,
    threshold: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    input_factor: float = 0.01,
    seeds: Sequence[int] = (0, 1),
    start: float = 0.1,
) -> Finding:
    """Find the largest rate of plain SGD at which a classifier starts to learn, and its initial sharpness.

    Args:
        model: a module, whose own weights are the start (the seeds then decide the order of data alone), or a
            function that builds one with fresh weights.
        split: data; its training part trains, and the first 512 examples of that part measure the accuracy.
        threshold: accuracy that counts as learning; three times chance by default, at most half-way to 1 from it.
        steps: budget of a run; one epoch by default.
        batch: examples a step.
        input_factor: rate of the first layer over that of the others; 1 for a model's own safe rate.
        seeds: one search for each.
        start: rate from which the search sets out.

    The numbers: `max_lr`, geometric mean over the seeds, found within 10 %, and `spread`, the largest over the
    smallest; `safe_lr`, half the smallest; `sharpness`, the top eigenvalue of the Hessian on 256 examples, mean
    over the seeds; `product` of both, which is 2 for a quadratic.  `details` has each seed's rate and all trials.
    """
    chance = 1 / split.num_classes if split.num_classes else math.nan
    limit = min(3 * chance, (1 + chance) / 2) if threshold is None else threshold
    if not 0 < limit <= 1:
        raise WorkingPapersError(f"the threshold is an accuracy in (0, 1] of a classifier; got {limit}")
    budget = steps or math.ceil(len(split.x_train) / batch)
    inner = replace(split, x_test=split.x_train[:512], y_test=split.y_train[:512])
    rates, sharp, trials = [], [], []
    for seed in seeds:
        own = model if isinstance(model, nn.Module) else initialise(model, seed)

        def run(lr: float, own: nn.Module = own, seed: int = seed) -> bool:
            trials.append(try_rate(own, inner, lr, limit, budget, batch, input_factor, seed))
            return trials[-1].success

        low, high = bracket(run, start)
        rates.append(math.sqrt(low * high))
        data = [(split.x_train[:256], split.y_train[:256])]
        sharp.append(sharpness(own, F.cross_entropy, data, tolerance=0.01))
    rate, top = math.exp(float(np.log(rates).mean())), float(np.mean(sharp))
    numbers = {
        "max_lr": rate,
        "spread": max(rates) / min(rates),
        "safe_lr": min(rates) / 2,
        "sharpness": top,
        "product": rate * top,
        "threshold": limit,
    }
    return Finding(
        numbers,
        f"Learning starts at rates up to {rate:.3g}, {rate * top:.3g} over the initial sharpness of {top:.3g}.",
        lambda: _draw(trials, limit),
        {"rates": rates, "sharpness": sharp, "trials": trials},
    )


def _draw(trials: Sequence[Trial], threshold: float) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    axes.scatter(
        [t.lr for t in trials], [t.accuracy for t in trials], c=["C0" if t.success else "C3" for t in trials]
    )
    axes.axhline(threshold, color="0.5", lw=0.8)
    axes.set(xscale="log", xlabel="learning rate", ylabel="best accuracy within the budget")
    return figure


def measure_grid(budget: Budget, seed: int) -> dict[str, list[float]]:
    """Return depth, width, maximal rate and sharpness of ReLU perceptrons on Fashion-MNIST, one entry a network."""
    split = images("fashion_mnist", train=2000, test=100, seed=seed)
    draws = budget.pick(quick=2, full=4)
    widths = budget.pick(quick=(64, 128, 256), full=(256, 512, 1024))
    found: dict[str, list[float]] = {"depth": [], "width": [], "rate": [], "sharpness": []}
    start = 0.1
    for depth in (2, 3, 4, 6, 8):
        for width in widths:
            report = max_initial_lr(
                lambda d=depth, w=width: he_mlp(784, d, w, 10),  # type: ignore[misc]
                split,
                steps=60,
                seeds=range(draws * seed, draws * (seed + 1)),
                start=start,
            ).numbers
            start = report["max_lr"]
            for name, value in zip(found, (depth, width, start, report["sharpness"]), strict=True):
                found[name].append(value)
    return found


@claim(
    "max_initial_lr",
    "A fresh network's top usable step size follows a power law in the product of depth and width, for wide enough "
    "nets with a slowly trained input layer.",
    seeds=5,
    holds=all_of(
        at_least(0.85, of="r2"),
        below(0.0, of="exponent", by="every"),
        at_least(0.05, of="over_depth"),
        at_least(0.05, of="over_width"),
    ),
)
def power_of_depth_times_width(budget: Budget, seed: int) -> Evidence:
    """Fashion-MNIST, 15 networks: fit of the maximal rate on depth x width, and how much better than on either."""
    grid = measure_grid(budget, seed)
    product = [d * w for d, w in zip(grid["depth"], grid["width"], strict=True)]
    both, depth, width = (power_fit(x, grid["rate"]) for x in (product, grid["depth"], grid["width"]))
    return Evidence(
        r2=both.r2, exponent=both.exponent, over_depth=both.r2 - depth.r2, over_width=both.r2 - width.r2
    )


@claim(
    "max_initial_lr",
    "That rate is closely, though not inversely, related to sharpness at initialisation.",
    seeds=5,
    holds=all_of(at_least(0.7, of="correlation"), above(1.0, of="errors_from_inverse")),
)
def related_to_sharpness(budget: Budget, seed: int) -> Evidence:
    """The same networks: correlation of log rate and log sharpness, and standard errors of the exponent from -1."""
    grid = measure_grid(budget, seed)
    found = power_fit(grid["sharpness"], grid["rate"])
    return Evidence(
        correlation=math.sqrt(found.r2),
        exponent=found.exponent,
        errors_from_inverse=abs(found.exponent + 1) / found.error,
    )

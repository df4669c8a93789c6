"""Bits of inductive bias: how unlikely a hypothesis that fits the training set is to reach a test error.

    I(eps) = -log2 P( L_test(h) <= eps | h fits the training set ),      h drawn from a class of hypotheses

The losses of many hypotheses that fit are described by a scaled non-central chi-square distribution, which squared
errors of Gaussian processes follow, and its tail gives probabilities that no sample would meet.

Paper: "Towards Exact Computation of Inductive Bias" (2024), arXiv 2406.15941; constants as in the authors' code.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, below
from workingpapers.papers.theory import _noncentral
from workingpapers.papers.theory._hypotheses import KernelHypotheses, NetworkHypotheses, cosines
from workingpapers.tasks import Budget, cnn, mlp

Losses = NDArray[np.float64]


def bits(distribution: _noncentral.Noncentral, eps: float) -> float:
    """Return -log2 of the probability of a loss of at most `eps`."""
    return -distribution.log_cdf(eps) / math.log(2) + 0.0


@dataclass(frozen=True)
class Bias:
    """Bits at a target error, the fitted distribution, and the 90 % bootstrap interval over hypotheses."""

    bits: float
    distribution: _noncentral.Noncentral
    low: float
    high: float


def inductive_bias(losses: Losses, eps: float, resamples: int = 100, seed: int = 0) -> Bias:
    """Estimate the bits that a class needs for a test error of `eps` > 0 from losses (N,) of its hypotheses.

    Each of `resamples` bootstrap samples is fitted anew.
    """
    if not (math.isfinite(eps) and eps > 0):
        raise WorkingPapersError(f"a target error is a number above 0; got {eps}")
    losses = np.sort(np.asarray(losses, dtype=np.float64))
    fitted = _noncentral.fit(losses)
    rng, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        again = losses[rng.integers(len(losses), size=len(losses))]
        if again.max() > again.min():
            found.append(bits(_noncentral.fit(again, start=fitted, steps=120), eps))
    low, high = (float(q) for q in np.quantile(found or [math.nan], [0.05, 0.95]))
    return Bias(bits(fitted, eps), fitted, low, high)


def _loss_example(generator: torch.Generator) -> tuple[Any, ...]:
    z = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    return (z + 0.5).square().mean(1).numpy(), 0.4, 10


@paper(
    "inductive_bias_bits",
    example=_loss_example,
    invariances={
        "units of the loss": lambda losses, eps, n: (4 * losses, 4 * eps, n),
        "order": lambda losses, eps, n: (losses[::-1].copy(), eps, n),
    },
)
def inductive_bias_bits(losses: Losses, eps: float, resamples: int = 100, seed: int = 0) -> Finding:
    """Say how many bits of bias a class of hypotheses lacks for a test error, from the losses of some.

    Args:
        losses: test errors (N,) of hypotheses of the class that fit the training set, all above 0.
        eps: the target error.
        resamples: bootstrap samples for the interval.
        seed: decides the bootstrap.

    The numbers: `bits`, `low` and `high` of its 90 % interval, `counted` from the share of losses at most eps (one
    half of a loss where there is none, so then a lower bound), and `sankaran`, both in bits; `ks`, the largest
    distance of the fitted distribution function from the losses' own.  `details["bias"]` has the parameters.
    """
    from scipy.stats import ncx2

    found = inductive_bias(losses, eps, resamples, seed)
    own, values = found.distribution, np.sort(np.asarray(losses, dtype=np.float64))
    steps = np.arange(1, len(values) + 1) / len(values)
    cdf = ncx2.cdf(values / own.scale, own.k, max(own.l, 1e-12))
    share = max(float((values <= eps).sum()), 0.5) / len(values)
    numbers = {
        "bits": found.bits,
        "low": found.low,
        "high": found.high,
        "counted": -math.log2(share) + 0.0,
        "sankaran": -own.sankaran(eps) / math.log(2) + 0.0,
        "ks": float(np.maximum(np.abs(cdf - steps), np.abs(cdf - steps + 1 / len(values))).max()),
    }
    return Finding(
        numbers,
        f"Hypotheses that fit reach a test error of {eps:.3g} with probability 2^-{found.bits:.3g}, so the task "
        "asks for that many bits of bias beyond the class.",
        lambda: _draw(values, own, eps),
        {"bias": found},
    )


def _draw(losses: Losses, fitted: _noncentral.Noncentral, eps: float) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.hist(losses, bins=min(60, max(10, len(losses) // 10)), density=True, alpha=0.5, label="hypotheses")
    grid = np.linspace(losses[0], losses[-1], 200)
    axes.plot(grid, np.exp(fitted.log_density(grid)), label="non-central chi-square")
    axes.axvline(eps, linestyle="--", color="black", label="target error")
    axes.set(xlabel="mean squared test error", ylabel="density")
    axes.legend()
    return figure


@claim(
    "inductive_bias_bits",
    "Tasks of higher dimension need more inductive bias to be solved.",
    seeds=5,
    holds=all_of(*[above(0, of=f"step_to_{d}") for d in (2, 3, 4, 6)], at_least(0, of="excess")),
    calibrated="After seed 1000 one class, of width 1/4, meets all tasks, where first its width was sqrt(d) / 2.  "
    "That class is so smooth that at four dimensions it is sure of wrong functions: 7,166 bits, and 401 at six.",
)
def more_dimensions(budget: Budget, seed: int) -> Evidence:
    """Products of cosines in 1, 2, 3, 4 and 6 dimensions, 100 points each, target error 5 % of their variance.

    RBF kernel of width 1/4; `step_to_` is the growth in bits, `excess` is bits(6) - 5 bits(1) - 5.  `exact` are
    bits without a fit, and `wide` those for the width sqrt(d) / 2.
    """
    found, exact, wide = {}, {}, {}
    for dim in (1, 2, 3, 4, 6):
        x, y, x_test, y_test = cosines(dim, seed)
        eps = 0.05 * float(y_test.var(correction=0))
        functions = KernelHypotheses(x, y, sigma=0.25)
        losses = functions.losses(x_test, y_test, 10_000, seed)
        found[dim] = inductive_bias(losses, eps, resamples=0).bits
        exact[dim] = functions.exact_bits(x_test, y_test, eps)
        wide[dim] = KernelHypotheses(x, y).exact_bits(x_test, y_test, eps)
    steps = {f"step_to_{b}": found[b] - found[a] for a, b in ((1, 2), (2, 3), (3, 4), (4, 6))}
    parts = {"bits": found, "exact": exact, "wide": wide}
    values = {f"{name}_{dim}": value for name, part in parts.items() for dim, value in part.items()}
    return Evidence(excess=found[6] - 5 * found[1] - 5, **steps, **values)


@claim(
    "inductive_bias_bits",
    "Neural networks as a class encode large amounts of bias compared with other expressive model classes.",
    seeds=5,
    holds=all_of(at_least(0, of="excess"), below(0, of="mlp_high_over_rbf_low")),
    calibrated="After seed 1000 the target is the best error of any network, where first it was that of a CNN, "
    "which on 8 x 8 digits is worse than every MLP's, so that the MLPs needed no bits at all.",
)
def networks_encode_more(budget: Budget, seed: int) -> Evidence:
    """Digits, 300 images each to fit and to test; the target error is the best of 3 CNNs and 40 MLPs.

    Classes: RBF kernel, and MLPs with two hidden layers of 100; `excess` is bits(RBF) - 10 bits(MLP),
    `mlp_high_over_rbf_low` the difference of the 90 % intervals' near ends, below 0 where they lie apart.
    """
    split = images("digits", train=300, test=300, seed=seed)
    steps, count = budget.pick(quick=(300, 40), full=(2000, 200))
    builds = {"cnn": lambda: cnn(1, 10, size=8), "mlp": lambda: mlp([64, 100, 100, 10])}
    nets = {name: NetworkHypotheses(build, split, steps, lr=3e-3) for name, build in builds.items()}
    cnns, mlps = nets["cnn"].losses(3, seed), nets["mlp"].losses(count, seed)
    eps = float(min(cnns.min(), mlps.min()))
    x, y = split.x_train, F.one_hot(split.y_train, 10)
    rbf = KernelHypotheses(x, y).losses(split.x_test, F.one_hot(split.y_test, 10), 10_000, seed)
    own, kernel = (inductive_bias(losses, eps, 20, seed) for losses in (mlps, rbf))
    return Evidence(
        excess=kernel.bits - 10 * own.bits,
        mlp_high_over_rbf_low=own.high - kernel.low,
        rbf_bits=kernel.bits,
        mlp_bits=own.bits,
        target=eps,
        cnn_mean=float(cnns.mean()),
        mlp_mean=float(mlps.mean()),
        rbf_mean=float(rbf.mean()),
    )

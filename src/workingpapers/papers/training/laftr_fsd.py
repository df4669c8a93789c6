"""LAFTR: how far two networks' outputs differ over data that are gone, from one number for each hidden unit.

    distance = mean over the old data of |f1(x) - f0(x)|^2 / 2
    a = W0 h + b0,     e = W1 d + (W1 - W0) h + (b1 - b0),     h' = m a,     d' = m e,     m ~ Bernoulli(mu)

Kept are the moments of the inputs and, for each hidden unit, the share mu of the data for which it is on.  ReLUs
become gates that are drawn apart from the inputs, the same in both networks, so that moments of activation and
change go through in closed form ("deterministic") or by drawing ("stochastic").

Paper: "Efficient Parametric Approximations of Neural Network Function Space Distance" (2023), arXiv 2302.03519.
The paper's estimators are BGLN-D and BGLN-S; which covariances they keep is reconstructed from the idea.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.training._distance_rivals import (
    diagonal_fisher,
    exact_curvature,
    example_gradients,
    influence,
    self_influence,
    squared_length,
)
from workingpapers.papers.training._distance_runs import closeness, continual, perturbed, with_flipped_labels
from workingpapers.papers.training._function_distance import Summary, fsd, true_fsd
from workingpapers.tasks import Budget, fit, initialise, mlp


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    models = [mlp([6, 12, 8, 3]), mlp([6, 12, 8, 3])]
    with torch.no_grad():
        for p in models[0].parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 2)
        for p, old in zip(models[1].parameters(), models[0].parameters(), strict=True):
            p.copy_(old + torch.randn(p.shape, generator=generator) / 20)
    return *models, torch.randn(200, 6, generator=generator)


def _rescaled(zero: Any, one: Any, x: Tensor) -> tuple[Any, ...]:
    """Double what goes into a hidden unit of both networks and halve what comes out of it."""
    with torch.no_grad():
        for model in (zero, one):
            model[1].weight[2] *= 2
            model[1].bias[2] *= 2
            model[3].weight[:, 2] /= 2
    return zero, one, x


@paper(
    "laftr_fsd",
    example=_example,
    invariances={
        "positive rescaling of units": _rescaled,
        "training mode": lambda zero, one, x: (zero.train(), one.train(), x),
    },
)
def laftr_fsd(
    model: nn.Module, other: nn.Module, x: Tensor, full: bool = False, samples: int = 100, seed: int = 0
) -> Finding:
    """Estimate how far the function of `other` is from that of `model` over `x`, and compare with the truth.

    Args:
        model: a chain of affine layers, ReLUs, average pools and batch normalisation, (N, ...) -> (N, outputs).
        other: a network of the same build.
        x: the data of `model`, (N, ...); see `Summary` and `fsd` for what to keep when they are to go.
        full: keep whole covariances, through linear layers only, instead of variances.
        samples, seed: of the stochastic estimate.

    The numbers: `deterministic` and `stochastic` estimates, the `true` distance, the quadratic form of the diagonal
    `fisher`, half the squared distance of the `parameters`, and `memory`, the numbers that LAFTR keeps beside the
    weights.  `details` has the summary.
    """
    summary = Summary.from_data(model, x, full=full)
    with torch.no_grad():
        numbers = {
            "deterministic": float(fsd(summary, other)),
            "stochastic": float(fsd(summary, other, "stochastic", samples, seed)),
            "true": true_fsd(model, other, x),
            "fisher": float(diagonal_fisher(model, x)(other)),
            "memory": float(summary.memory),
        }
    return Finding(
        numbers,
        f"From {summary.memory} numbers the distance of the two functions is estimated at "
        f"{numbers['deterministic']:.3g}, and it is {numbers['true']:.3g}.",
        lambda: _draw(numbers),
        {"summary": summary, "parameters": float(squared_length(model, other).detach())},
    )


def _draw(numbers: dict[str, float]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 2.5), layout="constrained")
    names = ["true", "deterministic", "stochastic", "fisher"]
    axes.barh(names, [numbers[name] for name in names])
    axes.set(xlabel="half the mean squared distance of outputs")
    return figure


@claim(
    "laftr_fsd",
    "An approximation with one parameter per unit estimates the distance between two networks' outputs better than "
    "other parametric summaries.",
    figure="only one parameter per unit of the network",
    seeds=5,
    holds=all_of(
        at_least(0.95, of="correlation"),
        at_most(0.35, of="error"),
        at_most(0.7, of="error_over_fisher"),
        at_least(0.95, of="diagonal_correlation"),
        at_most(0.7, of="diagonal_error_over_fisher"),
    ),
    calibrated="After seed 1000 the inputs' whole covariance is kept for the first three figures, since with "
    "variances alone the estimate is about half of the distance (error 0.54); that estimate has two rules of its "
    "own.",
)
def better_than_parametric(budget: Budget, seed: int) -> Evidence:
    """An MLP 784-100-100-10 on MNIST and 60 networks about it: estimated and true distance over 2,000 images.

    `correlation` of logarithms and median relative `error` are of the better version, deterministic or stochastic,
    with the inputs' covariance; `diagonal` ones with their variances.  The other figures are of the diagonal Fisher
    (EWC) and of the distance of the parameters.
    """
    train, steps = budget.pick(quick=(4000, 400), full=(60_000, 4000))
    split = images("mnist", train=train, test=1000, seed=seed)
    model = initialise(lambda: mlp([784, 100, 100, 10]), seed)
    fit(model, split, steps=steps, every=10**6, seed=seed)
    x = split.x_train[:2000]
    estimates: dict[str, Callable[[nn.Module], Tensor]] = {
        "fisher": diagonal_fisher(model, x),
        "parameters": partial(squared_length, model),
    }
    for kind in ("full", "diagonal"):
        summary = Summary.from_data(model, x, full=kind == "full")
        estimates[kind] = partial(fsd, summary)
        estimates[f"{kind} drawn"] = partial(fsd, summary, version="stochastic", samples=100, seed=seed)
    others = perturbed(model, split, seed)
    truth = [true_fsd(model, other, x) for other in others]
    with torch.no_grad():
        found = {
            name: closeness([float(f(other)) for other in others], truth) for name, f in estimates.items()
        }
    best = {
        kind: min((found[kind], found[f"{kind} drawn"]), key=lambda pair: pair[1])
        for kind in ("full", "diagonal")
    }
    error = found["fisher"][1]
    return Evidence(
        correlation=best["full"][0],
        error=best["full"][1],
        error_over_fisher=best["full"][1] / error,
        diagonal_correlation=best["diagonal"][0],
        diagonal_error_over_fisher=best["diagonal"][1] / error,
        fisher_correlation=found["fisher"][0],
        fisher_error=error,
        parameters_correlation=found["parameters"][0],
    )


@claim(
    "laftr_fsd",
    "Used for continual learning it is competitive with methods that store many training examples.",
    seeds=5,
    holds=all_of(
        at_least(-0.005, of="over_fisher"),
        at_least(0.05, of="over_nothing"),
        at_least(-0.02, of="over_examples"),
    ),
)
def competitive_memory(budget: Budget, seed: int) -> Evidence:
    """Five permutations of the digits learnt in turn by an MLP 64-100-100-10: gains of mean accuracy.

    Over EWC (the better of two, by the squared distance of outputs and by the likelihood), plain fine-tuning, and
    the distance over 200 stored examples of each task; all weights chosen in the same way on the first two tasks.
    """
    found = continual(images("digits", seed=seed), budget.pick(quick=8, full=40), seed)
    found["fisher"] = max(found["fisher"], found["likelihood"])
    gains = {f"over_{name}": found["laftr"] - found[name] for name in ("fisher", "nothing", "examples")}
    return Evidence(**gains, accuracy=found["laftr"], weight=found["laftr_weight"])


@claim(
    "laftr_fsd",
    "It estimates influence functions accurately and finds mislabelled examples without passing over the data "
    "again.",
    seeds=5,
    holds=all_of(
        at_least(0.8, of="auroc"), at_least(-0.01, of="over_parameters"), at_least(0.7, of="like_exact")
    ),
    calibrated="After seed 1000 it may be 0.01 below the squared gradient's AUROC, first 0: that is 0.997 there, "
    "and exact influences have 0.996 themselves.",
)
def finds_mislabelled(budget: Budget, seed: int) -> Evidence:
    """Digits with 10 % flipped labels, an MLP 64-32-10: AUROC of each example's influence on itself.

    `over_parameters` is the gain over the squared gradient, the influence by the distance of parameters;
    `like_exact` the rank correlation with influences by the Gauss-Newton curvature of the data themselves.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    flipped = with_flipped_labels(images("digits", seed=seed), 0.1, seed)
    split = flipped.split
    model = initialise(lambda: mlp([64, budget.pick(quick=32, full=64), 10]), seed)
    fit(model, split, epochs=budget.pick(quick=15, full=30), every=10**6, seed=seed)
    summary = Summary.from_data(model, split.x_train, full=True, metric="softmax")
    slopes = example_gradients(model, split.x_train, split.y_train, F.cross_entropy)
    damping = 1e-3
    scores = {
        "laftr": self_influence(slopes, influence(summary, slopes, damping)),
        "parameters": self_influence(slopes, slopes),
    }
    exact = exact_curvature(model, split.x_train, "softmax")
    matrix = exact + damping * torch.eye(len(exact))
    scores["exact"] = self_influence(slopes, torch.linalg.solve(matrix, slopes.T).T)
    auroc = {name: float(roc_auc_score(flipped.wrong.numpy(), s.numpy())) for name, s in scores.items()}
    return Evidence(
        auroc=auroc["laftr"],
        over_parameters=auroc["laftr"] - auroc["parameters"],
        like_exact=float(spearmanr(scores["laftr"].numpy(), scores["exact"].numpy()).statistic),
        exact_auroc=auroc["exact"],
    )


__all__ = ["Summary", "diagonal_fisher", "fsd", "influence", "laftr_fsd", "self_influence", "true_fsd"]

"""Effective model complexity: how many samples a network can really be trained to fit.

    EMC = max { n : training from scratch on n samples ends in a minimum with 100 % training accuracy }

A minimum has a small gradient, or a loss that stands still, and no Hessian eigenvalue below -1e-3.  The search
starts with few samples, grows their number by half while they are fitted, and then halves the bracket.

Paper: "Just How Flexible are Neural Networks in Practice?" (2024), arXiv 2406.11463.  Thresholds are reconstructed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.papers.theory._capacity import Build, Capacity, Recipe, emc, labelled, matched
from workingpapers.tasks import Budget, fit, initialise, mlp


def relative_gap(correct: Capacity, random: Capacity) -> float:
    """Return how many more samples are fitted with correct labels than with random ones, over the latter."""
    return (correct.samples - random.samples) / max(random.samples, 1)


def capacities(
    build: Build,
    x: Tensor,
    y: Tensor,
    labellings: Sequence[str] = ("correct", "random"),
    recipe: Recipe | None = None,
    start: int = 50,
    tolerance: float = 0.05,
    seed: int = 0,
) -> dict[str, Capacity]:
    """Return the effective model complexity under each labelling; further arguments as of `emc`."""
    classes = int(y.max()) + 1
    return {
        name: emc(build, *labelled(x, y, classes, name, seed), recipe, start, tolerance, seed)
        for name in labellings
    }


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    x = torch.randn(40, 3, generator=generator)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
    return lambda: mlp([3, 3, 2]), x, y, ("correct", "random"), Recipe(steps=100), 10, 0.3


@paper("effective_capacity", example=_example)
def effective_capacity(
    build: Build,
    x: Tensor,
    y: Tensor,
    labellings: Sequence[str] = ("correct", "random"),
    recipe: Recipe | None = None,
    start: int = 50,
    tolerance: float = 0.05,
    seed: int = 0,
) -> Finding:
    """Search for the most samples that a network fits under each labelling, and compare with its parameters.

    Args:
        build: makes the network with random weights, (n, ...) -> (n, classes).
        x, y: samples (N, ...) and labels (N,), of which the first so many are tried.
        labellings: among "correct", "random", "random_inputs" and "shuffled_pixels".
        recipe: optimizer, learning rates, length and loss; by default SGD at 0.1, batches of 64, 300 epochs.
        start: samples of the first trial.
        tolerance: relative width of the bracket at which to stop.
        seed: decides weights, order and labels.

    The numbers: `parameters`; for each labelling `samples_` and `ratio_` (a parameter); with both correct and
    random labels their relative `gap`.  `details["capacities"]` has every trial.
    """
    if not labellings:
        raise WorkingPapersError("give at least one labelling")
    found = capacities(build, x, y, labellings, recipe, start, tolerance, seed)
    first = next(iter(found.values()))
    numbers = {"parameters": float(first.parameters)}
    for name, one in found.items():
        numbers |= {f"samples_{name}": float(one.samples), f"ratio_{name}": one.ratio}
    if {"correct", "random"} <= found.keys():
        numbers["gap"] = relative_gap(found["correct"], found["random"])
    said = ", ".join(f"{one.samples} {name.replace('_', ' ')}" for name, one in found.items())
    return Finding(
        numbers,
        f"A network of {first.parameters} parameters is trained to fit {said} samples of {len(x)} offered.",
        lambda: _draw(found),
        {"capacities": found},
    )


def _draw(found: Mapping[str, Capacity]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for name, one in found.items():
        tried = list(one.trials.values())
        (line,) = axes.plot([t.samples for t in tried], [t.accuracy for t in tried], "o-", label=name)
        axes.axvline(one.samples, linestyle=":", color=line.get_color())
    axes.set(xlabel="samples", ylabel="training accuracy")
    axes.legend()
    return figure


def grey(name: str, count: int, test: int, seed: int) -> Split:
    """Return images in grey, pooled to 14 x 14 and standardised."""
    split = images(name, train=count, test=test, size=14, seed=seed)
    return replace(
        split, x_train=split.x_train.mean(1, keepdim=True), x_test=split.x_test.mean(1, keepdim=True)
    )


def _random(split: Split, seed: int) -> tuple[Tensor, Tensor]:
    return labelled(split.x_train, split.y_train, split.num_classes, "random", seed)


@claim(
    "effective_capacity",
    "Standard optimisers reach minima that fit far fewer samples than the model has parameters.",
    seeds=3,
    holds=all_of(
        at_most(0.7, of="largest_ratio", by="every"), at_least(0.02, of="smallest_ratio", by="every")
    ),
)
def fewer_samples_than_parameters(budget: Budget, seed: int) -> Evidence:
    """SGD on random labels of MNIST and grey CIFAR-10 at 14 x 14, MLPs of about 3,000 and 6,000 parameters.

    A trial fits where one of the learning rates 0.03 and 0.1 does within 2,000 updates (quick) or 300 epochs.
    """
    recipe = Recipe(lrs=(0.03, 0.1), steps=budget.pick(quick=2000, full=None))
    figures = {}
    for name in ("mnist", "cifar10"):
        x, y = _random(grey(name, 6000, 100, seed), seed)
        for size in (3000, 6000):
            tolerance = budget.pick(quick=0.3, full=0.05)
            found = emc(matched("mlp", size, 14), x, y, recipe, size // 20, tolerance, seed)
            figures[f"{name}_{size}"] = found.ratio
    return Evidence(largest_ratio=max(figures.values()), smallest_ratio=min(figures.values()), **figures)


@claim(
    "effective_capacity",
    "Convolutional nets use parameters better than MLPs and ViTs even on random labels, and SGD fits more data "
    "than full-batch gradient descent.",
    seeds=5,
    holds=all_of(
        at_least(1.1, of="cnn_over_mlp"), at_least(1.1, of="cnn_over_vit"), at_least(1, of="sgd_over_gd")
    ),
)
def convolution_and_noise(budget: Budget, seed: int) -> Evidence:
    """Random labels of MNIST at 14 x 14, about 3,000 parameters, at most 2,000 updates (1,000 quick) a trial.

    Full-batch descent is of the MLP, with SGD's momentum and number of updates.
    """
    x, y = _random(grey("mnist", 4000, 100, seed), seed)
    steps, tolerance = budget.pick(quick=(1000, 0.1), full=(2000, 0.05))
    recipe = Recipe(lrs=budget.pick(quick=(0.1,), full=(0.03, 0.1)), steps=steps)
    found = {
        kind: emc(matched(kind, 3000, 14), x, y, recipe, 100, tolerance, seed)
        for kind in ("mlp", "cnn", "vit")
    }
    gd = emc(matched("mlp", 3000, 14), x, y, replace(recipe, optimizer="gd"), 100, tolerance, seed)
    return Evidence(
        cnn_over_mlp=found["cnn"].samples / max(found["mlp"].samples, 1),
        cnn_over_vit=found["cnn"].samples / max(found["vit"].samples, 1),
        sgd_over_gd=found["mlp"].samples / max(gd.samples, 1),
        gd=gd.samples,
        **{kind: one.samples for kind, one in found.items()},
    )


@claim(
    "effective_capacity",
    "ReLU leads to minima fitting more data, and the gap between correct and random labels can predict "
    "generalisation.",
    seeds=5,
    holds=all_of(
        at_least(1.3, of="relu_over_identity"), at_least(0.95, of="relu_over_tanh"), above(0.3, of="spearman")
    ),
    calibrated="The rule is as it was; after seed 1000 quick runs train at 0.1 and check eigenvalues more rarely, "
    "since they took minutes, and a smaller MLP stands in the place of a second CNN.",
)
def relu_and_the_gap(budget: Budget, seed: int) -> Evidence:
    """Six networks of about 3,000 parameters on MNIST at 14 x 14; test accuracy after training on all that is
    offered, 600 images (quick) or 6,000.

    MLPs with ReLU, tanh and identity, a smaller one with ReLU, a CNN, a ViT; at most 2,000 updates (800 quick).
    """
    from scipy.stats import spearmanr

    split = grey("mnist", budget.pick(quick=600, full=6000), 1000, seed)
    steps, tolerance = budget.pick(quick=(800, 0.4), full=(2000, 0.05))
    recipe = Recipe(lrs=budget.pick(quick=(0.1,), full=(0.03, 0.1)), steps=steps)
    models: dict[str, tuple[str, int, Any]] = {
        "relu": ("mlp", 3000, nn.ReLU),
        "tanh": ("mlp", 3000, nn.Tanh),
        "identity": ("mlp", 3000, nn.Identity),
        "small": ("mlp", 1500, nn.ReLU),
        "cnn": ("cnn", 3000, nn.ReLU),
        "vit": ("vit", 3000, nn.GELU),
    }
    random, gaps, accuracies = {}, [], []
    for name, (kind, size, activation) in models.items():
        build = matched(kind, size, 14, activation=activation)
        found = capacities(
            build, split.x_train, split.y_train, recipe=recipe, start=100, tolerance=tolerance, seed=seed
        )
        random[name] = found["random"].samples
        gaps.append(relative_gap(found["correct"], found["random"]))
        model = initialise(build, seed)
        trained = fit(model, split, steps=steps, lr=0.1, optimizer="sgd", seed=seed, every=10**6)
        accuracies.append(trained.metrics["accuracy"])
    return Evidence(
        relu_over_identity=random["relu"] / max(random["identity"], 1),
        relu_over_tanh=random["relu"] / max(random["tanh"], 1),
        spearman=float(spearmanr(gaps, accuracies).statistic),
        **{f"{name}_random": value for name, value in random.items()},
        **{f"{name}_gap": gap for name, gap in zip(models, gaps, strict=True)},
        **{f"{name}_accuracy": a for name, a in zip(models, accuracies, strict=True)},
    )

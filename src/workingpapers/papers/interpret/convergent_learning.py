"""Convergent learning: do networks that were trained apart learn the same units?

    one to one    max over permutations pi of sum_i corr(a_i, b_pi(i))
    few to one    min over w of |b_j - A w|^2 / 2n + penalty |w|_1

Two networks see the same inputs; a layer's units, at every position of its maps, are correlated, matched with and
without reuse, predicted by few units of the other network, and grouped by spectral clustering.

Paper: "Convergent Learning: Do different neural networks learn the same representations?" (2015), arXiv 1511.07543,
Sections 3-5.  Penalties and numbers of groups are chosen for small networks.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.interpret._mappings import PENALTIES, Clusters, Prediction, spectral_clusters
from workingpapers.papers.interpret._matching import (
    Correlations,
    Matching,
    bipartite_matching,
    correlation,
    dead_units,
    duplicates,
    mutual_information,
    semi_matching,
)
from workingpapers.papers.interpret._unit_pairs import (
    Pair,
    chance,
    draw,
    draw_filters,
    losses,
    pair_up,
    quarters,
    span_over_match,
)
from workingpapers.tasks import Budget, cnn, fit, initialise, mlp


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    models = [mlp([5, 8, 3]), mlp([5, 6, 3])]
    with torch.no_grad():
        for p in [p for model in models for p in model.parameters()]:
            p.copy_(torch.randn(p.shape, generator=generator))
    return *models, torch.randn(150, 5, generator=generator), "2"


def _rescaled(model_a: Any, model_b: Any, *rest: Any) -> tuple[Any, ...]:
    """Double what goes into a hidden unit."""
    with torch.no_grad():
        model_b[1].weight[2] *= 2
        model_b[1].bias[2] *= 2
    return model_a, model_b, *rest


def _in_training(model_a: nn.Module, model_b: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model_a.train(), model_b.train(), *rest


@paper(
    "convergent_learning",
    example=_example,
    invariances={"positive rescaling of units": _rescaled, "training mode": _in_training},
)
def convergent_learning(
    model_a: nn.Module,
    model_b: nn.Module,
    x: Tensor,
    layer: str,
    layer_b: str | None = None,
    clusters: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Finding:
    """Compare a layer of two networks unit by unit: which features recur, singly, as subspaces or in groups?

    Args:
        model_a, model_b: any networks that take `x` (N, ...).
        layer, layer_b: names of the layers as in `named_modules`, such as that of an activation.
        clusters: groups of units; a third of the live units of the first network by default.
        penalties: of the sparse prediction of b's units from a's.
        seed: decides the sample of rows, the shuffling and k-means.

    The numbers: `live_a`, `live_b`; mean correlations of a's live units `semi` (best unit of b) and `one_to_one`,
    the latter's `top_quarter` and `bottom_quarter`, at `chance`, and what one-to-one loses in the best half and the
    worst quarter; `same_by_information`, the share that mutual information matches alike; `explained`, the mean
    share of variance of b's units that all of a's explain, and the median of the `predictors` that explain 90 % of
    it; `span_over_match`; |correlation| across the nets `within_clusters` and `outside_clusters`.  `details` has
    the pair, the matchings, the prediction and the clusters.
    """
    pair = pair_up(model_a, model_b, x, layer, layer_b, seed=seed)
    live_b = pair.joint.shape[0] - pair.units_a - sum(i >= pair.units_a for i in pair.dead)
    if not pair.live or not live_b:
        raise WorkingPapersError(f"no unit of the layer {layer!r} varies in one of the networks")
    semi, one = semi_matching(pair.between), bipartite_matching(pair.between)
    informed = bipartite_matching(mutual_information(pair.rows_a, pair.rows_b))
    predicted = pair.prediction(penalties)
    groups = spectral_clusters(pair.joint, pair.units_a, clusters or max(1, len(pair.live) // 3), seed)
    curves = pair.curves()
    numbers = {
        "live_a": float(len(pair.live)),
        "live_b": float(live_b),
        "semi": float(curves[0].mean()),
        "one_to_one": float(curves[1].mean()),
        **quarters(curves[1]),
        "chance": chance(pair, seed),
        **losses(*curves),
        "same_by_information": float((informed.partner == one.partner)[pair.live].mean()),
        "explained": float(1 - predicted.loss[0, predicted.live].mean()),
        "predictors": float(np.median(predicted.fewest())),
        "span_over_match": span_over_match(pair),
        "within_clusters": groups.score,
        "outside_clusters": groups.outside,
    }
    return Finding(
        numbers,
        f"Matched one to one, the best quarter of the units correlates at {numbers['top_quarter']:.2f} and the "
        f"worst at {numbers['bottom_quarter']:.2f}, where chance gives {numbers['chance']:.2f}; "
        f"{numbers['predictors']:.0f} units explain nearly all that can be told of a unit of the other network.",
        lambda: draw(pair, one, curves),
        {"pair": pair, "semi": semi, "one_to_one": one, "prediction": predicted, "clusters": groups},
    )


def _networks(budget: Budget, seed: int, count: int = 4) -> tuple[list[nn.Module], list[nn.Module], Tensor]:
    """Return CNNs trained on Fashion-MNIST from different seeds, the same before training, and test images."""
    train, test, epochs = budget.pick(quick=(3000, 1000, 10), full=(20_000, 1000, 10))
    split: Split = images("fashion_mnist", train=train, test=test, seed=seed)
    trained: list[nn.Module] = []
    untrained: list[nn.Module] = []
    for i in range(count):
        own = 100 * seed + i
        untrained.append(initialise(lambda: cnn(1, 10), own))
        trained.append(initialise(lambda: cnn(1, 10), own))
        fit(trained[-1], split, epochs=epochs, every=10**6, seed=own)
    return trained, untrained, split.x_test


def _pairs(models: Sequence[nn.Module], x: Tensor) -> list[Pair]:
    """Return the first layers' rectified maps of every two of the networks."""
    return [pair_up(a, b, x, "1", sample=1000) for a, b in combinations(models, 2)]


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@claim(
    "convergent_learning",
    "Some features are learned reliably in several networks and others are not.",
    seeds=5,
    holds=all_of(
        at_least(0.8, of="top_quarter"),
        at_most(0.6, of="bottom_quarter"),
        at_least(0.1, of="over_untrained"),
    ),
)
def some_recur(budget: Budget, seed: int) -> Evidence:
    """One-to-one correlations of the 16 first-layer maps of four CNNs on 1,000 images, mean of six pairs.

    `over_untrained` is how much lower the best quarter of the same networks before training correlates.
    """
    trained, untrained, x = _networks(budget, seed)
    found = _means([quarters(pair.curves()[1]) for pair in _pairs(trained, x)])
    control = _means([quarters(pair.curves()[1]) for pair in _pairs(untrained, x)])
    return Evidence(
        **found,
        over_untrained=found["top_quarter"] - control["top_quarter"],
        untrained_bottom=control["bottom_quarter"],
    )


@claim(
    "convergent_learning",
    "Subspaces recur across networks, but the particular basis vectors within them do not.",
    seeds=5,
    holds=all_of(
        at_most(0.05, of="best_half_loss"),
        at_least(0.1, of="worst_quarter_loss"),
        at_least(0.1, of="span_over_match"),
    ),
)
def subspaces_recur(budget: Budget, seed: int) -> Evidence:
    """What one-to-one matching loses to the best unit with reuse, and to all units together, mean of six pairs.

    `span_over_match` is the share of variance that all units explain of the worse matched half, over their match's.
    """
    trained, _, x = _networks(budget, seed)
    pairs = _pairs(trained, x)
    return Evidence(
        **_means([losses(*pair.curves()) for pair in pairs]),
        span_over_match=float(np.mean([span_over_match(pair) for pair in pairs])),
    )


@claim(
    "convergent_learning",
    "Codes mix local and slightly distributed representation, so a few units explain much of a unit in another "
    "net.",
    seeds=5,
    holds=all_of(at_most(6.0, of="predictors"), at_least(0.6, of="explained")),
)
def few_units_explain(budget: Budget, seed: int) -> Evidence:
    """How many of 16 units the lasso needs for 90 % of what all explain of another net's unit, median of six pairs.

    `by_loss` is how many it needs for a loss at most 10 % above the unpenalised one; `explained` is the mean share
    of variance that all 16 units explain.
    """
    trained, _, x = _networks(budget, seed)
    path = [10 ** (i / 10 - 4) for i in range(41)]
    predicted = [pair.prediction(path) for pair in _pairs(trained, x)]
    counts = {
        of: float(np.median(np.concatenate([p.fewest(of=of) for p in predicted])))
        for of in ("explained", "loss")
    }
    explained = float(np.mean([1 - p.loss[0, p.live].mean() for p in predicted]))
    return Evidence(predictors=counts["explained"], by_loss=counts["loss"], explained=explained)


__all__ = [
    "Clusters",
    "Correlations",
    "Matching",
    "Prediction",
    "bipartite_matching",
    "convergent_learning",
    "correlation",
    "dead_units",
    "draw_filters",
    "duplicates",
    "mutual_information",
    "pair_up",
    "semi_matching",
]

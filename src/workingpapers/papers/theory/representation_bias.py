"""Features that a network computes equally well, and represents unequally strongly.

    R2(f) = |E[h | f] - E[h]|^2 / Var(h)     share of the variance of a layer h that the feature f explains

Simple features, and those learned first, take most of the variance of the representation, the others hide in what
looks like noise.  Tools that look at variance, principal components or representational similarity, follow them.

Paper: "Learned feature representations are biased by complexity, learning order, position, and more" (2024),
arXiv 2405.05847; data sets are rebuilt from its description.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least
from workingpapers.papers.theory import _variance
from workingpapers.papers.theory._alignment import rsa
from workingpapers.papers.theory._feature_nets import Phase, trained_net
from workingpapers.papers.theory._features import EASY, XOR, Feature, bit_inputs
from workingpapers.papers.theory._probes import halves, linear_accuracy
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, mlp
from workingpapers.tasks.randomness import stream


def feature_measures(
    rows: Tensor, features: Mapping[str, Tensor], seed: int = 0, pairs: int = 300
) -> dict[str, float]:
    """Return how activations `rows` (n, ...) carry each of `features`, values (n,) by name, nan where absent.

    `r2 NAME` variance explained; `unique NAME` what no other feature explains (on rows that have all features);
    `probe NAME` accuracy of a linear classifier on held-out rows; `density NAME` share of units that code for it;
    `rsa NAME` similarity to the dissimilarities of the feature alone, on the first `pairs` rows; `pc1 NAME` and
    `pc2 NAME` R2 in the first two principal components.
    """
    values = torch.stack([v.double() for v in features.values()], 1)
    if len(values) != len(rows):
        raise WorkingPapersError(f"features have a value for each of the {len(rows)} rows; got {len(values)}")
    full = ~values.isnan().any(1)
    if int(full.sum()) < 4:
        raise WorkingPapersError(f"at least 4 rows must hold all features; got {int(full.sum())}")
    flat = rows.detach().flatten(1)
    alone = _variance.unique(flat[full], values[full])
    numbers: dict[str, float] = {}
    for i, name in enumerate(features):
        there = ~values[:, i].isnan()
        h, value = flat[there], values[there, i]
        one, other = halves(len(h), seed)
        label = value.unique(return_inverse=True)[1]
        first, second = _variance.components(h, value)
        numbers |= {
            f"r2 {name}": _variance.explained(h, value),
            f"unique {name}": alone[i],
            f"probe {name}": linear_accuracy(h[one], label[one], h[other], label[other]),
            f"density {name}": _variance.coding_units(h, value),
            f"rsa {name}": rsa(h[:pairs], value[:pairs, None]),
            f"pc1 {name}": first,
            f"pc2 {name}": second if np.isfinite(second) else 0.0,
        }
    return numbers


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the last nn.Linear of a model reads, for inputs `x` (n, ...), as rows (n, units)."""
    found = collect(model, x, nn.Linear, side="input")
    return list(found.values())[-1].flatten(1)


def _report_example(generator: torch.Generator) -> tuple[Any, ...]:
    x, values = bit_inputs((EASY, XOR), 80, generator, units=4)
    model = mlp([8, 12, 2])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, x, {"easy": values[:, 0], "hard": values[:, 1]}


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "representation_bias",
    part="report",
    kind="analysis",
    example=_report_example,
    invariances={"training mode": _in_training},
)
def bias_report(
    model: nn.Module, x: Tensor, features: Mapping[str, Tensor], layers: Modules | None = None, seed: int = 0
) -> Finding:
    """Measure how strongly and densely the layers of any model carry features of its inputs.

    Args:
        model, x: the model and inputs (n, ...).
        features: values (n,) by name, any numbers that repeat, nan where an input does not hold the feature.
        layers: modules whose outputs are measured; by default what the last nn.Linear reads.
        seed: decides the halves that probes are trained and tested on.

    The numbers: those of `feature_measures`, with the layer's name behind where `layers` are given.
    """
    if layers is None:
        numbers = feature_measures(penultimate(model, x), features, seed)
        strengths = {name: numbers[f"r2 {name}"] for name in features}
    else:
        numbers = {}
        for layer, rows in collect(model, x, layers).items():
            found = feature_measures(rows, features, seed)
            numbers |= {f"{what} {layer}": value for what, value in found.items()}
            strengths = {name: found[f"r2 {name}"] for name in features}
    words = ", ".join(f"{name} {share:.1%}" for name, share in strengths.items())
    return Finding(
        numbers, f"Shares of the variance of the last layer measured: {words}.", lambda: _draw(strengths)
    )


def _draw(strengths: Mapping[str, float]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.bar(list(strengths), list(strengths.values()))
    axes.set(xlabel="feature", ylabel="share of variance explained")
    return figure


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    seed = int(torch.randint(100, (), generator=generator))
    return (EASY, Feature("sum", 3)), [((0, 1), 30)], "mlp", 16, 1, seed


@paper("representation_bias", example=_example)
def representation_bias(
    features: Sequence[Feature] = (EASY, XOR),
    phases: Sequence[Phase] | None = None,
    model: str = "mlp",
    width: int = 256,
    depth: int = 4,
    seed: int = 0,
    optimizer: str = "adam",
) -> Finding:
    """Train a network to compute several features and measure how strongly it represents each.

    Args:
        features: `Feature`s, by default an easy one, a single bit, and the XOR of two bits, 32 inputs each.
        phases: (which features, steps) in order, by default all until each has an accuracy of 99 %.
        model: "mlp"; "transformer", which writes the features one after the other; "cnn" on images, where the
            features are shape, texture and colour.
        width, depth: of the MLP; a transformer has half as many blocks.
        optimizer: "adam" or "sgd".

    The numbers: `accuracy NAME` and those of `feature_measures` on the layer before the last, on 2,000 new inputs;
    features are named by their place, 0 the first.  `details["model"]` is the network.
    """
    net, sample, accuracy = trained_net(features, phases, model, width, depth, seed, optimizer=optimizer)
    x, values = sample(2000, torch.Generator().manual_seed(stream(seed, "measured")))
    report = bias_report(net, x, {str(i): v for i, v in enumerate(values.T)}, seed=seed)
    numbers = {**{f"accuracy {i}": float(a) for i, a in enumerate(accuracy)}, **report.numbers}
    return Finding(numbers, report.reading, report.figure, {"model": net, "accuracy": accuracy})


def strengths(net: nn.Module, sample: Any, seed: int, count: int = 10_000) -> list[float]:
    """Return R2 of each feature in the layer before the last, on `count` new inputs."""
    x, values = sample(count, torch.Generator().manual_seed(stream(seed, "measured")))
    rows = penultimate(net, x)
    return [_variance.explained(rows, column) for column in values.T]


@claim(
    "representation_bias",
    "Features that are simple to compute are represented more strongly and densely than complex ones learned "
    "equally well.",
    seeds=5,
    holds=all_of(
        at_least(2, of="ratio"),
        at_least(0.9, of="easy_wins"),
        at_least(0.99, of="accuracy", by="every"),
        above(0, of="density_gap"),
    ),
)
def simple_features_take_more_variance(budget: Budget, seed: int) -> Evidence:
    """A single bit against XOR in MLPs 4x128 that compute both, four networks a seed.

    `ratio` of mean R2; `easy_wins` the share of networks where the bit has the more; `accuracy` the least;
    `density_gap` the mean difference of the shares of units that code for the two.
    """
    rows, least, gaps = [], 1.0, []
    for i in range(budget.pick(quick=4, full=20)):
        own = stream(seed, f"net {i}")
        net, sample, accuracy = trained_net((EASY, XOR), seed=own)
        rows.append(strengths(net, sample, own))
        least = min(least, float(accuracy.min()))
        x, values = sample(2000, torch.Generator().manual_seed(stream(own, "density")))
        easy, hard = (_variance.coding_units(penultimate(net, x), column) for column in values.T)
        gaps.append(easy - hard)
    found = np.array(rows)
    easy, hard = found.mean(0)
    return Evidence(
        ratio=easy / hard,
        easy_wins=(found[:, 0] > found[:, 1]).mean(),
        accuracy=least,
        density_gap=float(np.mean(gaps)),
        easy=easy,
        hard=hard,
    )


@claim(
    "representation_bias",
    "Features learned first tend to stay more strongly represented than those learned later.",
    seeds=5,
    holds=all_of(at_least(0.8, of="first_wins"), at_least(1.2, of="ratio")),
    calibrated="After seed 1000 (ratio 0.62) each phase begins with a fresh Adam: the moments left by the first, 0 "
    "for all that only the later feature uses, made its steps several times as long.",
)
def first_features_stay_stronger(budget: Budget, seed: int) -> Evidence:
    """Two single bits in MLPs 4x128: one alone for 10 epochs of 5,120 inputs, then both for 30; four a seed."""
    rows = []
    for i in range(budget.pick(quick=4, full=20)):
        own = stream(seed, f"net {i}")
        net, sample, _ = trained_net((EASY, EASY), [((0,), 400), ((0, 1), 1200)], seed=own)
        rows.append(strengths(net, sample, own))
    found = np.array(rows)
    first, later = found.mean(0)
    return Evidence(
        first_wins=(found[:, 0] > found[:, 1]).mean(), ratio=first / later, first=first, later=later
    )


@claim(
    "representation_bias",
    "These biases challenge interpretability and the comparison of models with brains, since representation "
    "strength can dissociate from computational role.",
    seeds=5,
    holds=all_of(at_least(0.1, of="rsa_gap"), at_least(0.99, of="accuracy", by="every")),
)
def similarity_follows_the_easy_feature(budget: Budget, seed: int) -> Evidence:
    """Networks that compute both, only the bit, or only XOR, on one kind of inputs: representational similarity.

    `easy` and `hard`, Spearman's correlation of Euclidean dissimilarities of 300 inputs between a network of both
    and one of a single feature, two of each kind a seed; `rsa_gap` the difference.
    """
    figures: dict[str, list[float]] = {"easy": [], "hard": []}
    least = 1.0
    for i in range(budget.pick(quick=2, full=10)):
        nets = {}
        for name, chosen in {"both": (0, 1), "easy": (0,), "hard": (1,)}.items():
            own = stream(seed, f"{name} {i}")
            nets[name], sample, accuracy = trained_net((EASY, XOR), [(chosen, None)], seed=own)
            least = min(least, float(accuracy[list(chosen)].min()))
        x, _ = sample(300, torch.Generator().manual_seed(stream(seed, "compared")))
        rows = {name: penultimate(net, x) for name, net in nets.items()}
        for name, found in figures.items():
            found.append(rsa(rows["both"], rows[name]))
    easy, hard = (float(np.mean(figures[name])) for name in ("easy", "hard"))
    return Evidence(rsa_gap=easy - hard, easy=easy, hard=hard, accuracy=least)

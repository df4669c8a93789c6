"""Lottery tickets carried to other tasks: by a new linear head, or by a prompt around the image.

    LP: y = W feat(x);   VP: y = map(f(pad(resize(x)) + frame))      f frozen, dense or a ticket of density 0.8^r

The map from target to source classes is one-to-one, made anew before every epoch from how often each source class
is predicted for each target class (iterative label mapping).  Accuracy and calibration (ECE in 15 bins) are
measured by density and by examples of a class.

Paper: "Reprogramming under constraints: Revisiting efficient and reliable transferability of lottery tickets"
(2023), later "Uncovering the Hidden Cost of Model Compression".
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, any_of, at_least, at_most
from workingpapers.papers.sparsity._firing import calibration_error
from workingpapers.papers.sparsity._prompting import VisualPrompt, decayed, fit_prompt
from workingpapers.papers.sparsity._tickets import Ticket, imp
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, cnn, fit, initialise

__all__ = ["Ticket", "VisualPrompt", "fit_prompt", "imp", "linear_probe", "reprogram_lt"]


@dataclass(frozen=True)
class Source:
    """What the classifier was trained on: images of side `size` amid a black canvas, then normalised."""

    size: int = 28
    canvas: int = 40
    mean: float | Tensor = 0.0
    std: float | Tensor = 1.0

    def prompt(self, channels: int, squash: str = "sigmoid") -> VisualPrompt:
        """Return a fresh prompt of these sizes."""
        return VisualPrompt(self.size, self.canvas, channels, squash, mean=self.mean, std=self.std)

    @torch.no_grad()
    def framed(self, x: Tensor) -> Tensor:
        """Return images (N, C, h, w) in [0, 1] as the classifier takes them."""
        framed: Tensor = self.prompt(x.shape[1], "clamp").to(x.device)(x)
        return framed


def few_shot(split: Split, shots: int | None, seed: int = 0) -> Split:
    """Return the split with at most so many training examples of each class; None keeps all."""
    if shots is None:
        return split
    order = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([order[split.y_train[order] == c][:shots] for c in range(split.num_classes)])
    return replace(split, x_train=split.x_train[kept], y_train=split.y_train[kept])


def head_of(model: nn.Module) -> str:
    """Return the name of the model's last linear layer."""
    found: list[str] = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no linear layer whose input could be probed")
    return found[-1]


def linear_probe(
    model: nn.Module, split: Split, epochs: int = 100, lr: float = 1e-3, seed: int = 0
) -> nn.Module:
    """Return a copy of the classifier with a new head for the split's classes, trained on frozen features.

    Args:
        model: a classifier whose last linear layer is its head.
        split: images as the classifier takes them.
        epochs: of Adam, its rate decayed at 50 % and 72 %.
        lr: learning rate.
        seed: of the head and the order.
    """
    found, name = copy.deepcopy(model).eval().requires_grad_(False), head_of(model)
    old: Any = found.get_submodule(name)
    parts = [collect(found, x, [name], side="input")[name] for x in (split.x_train, split.x_test)]
    features = replace(split, x_train=parts[0], x_test=parts[1])
    head = initialise(partial(nn.Linear, old.in_features, split.num_classes), seed).to(old.weight)
    fit(head, features, epochs=epochs, lr=lr, batch=128, schedule=decayed, every=10**9, seed=seed)
    if not name:
        return head
    found.set_submodule(name, head)
    return found.eval()


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Return which answers are right (n,) and the calibration error of a classifier; shifted inputs do as well."""
    with torch.no_grad():
        chances = torch.cat([F.softmax(model(part), 1) for part in x.split(500)])
    return chances.argmax(1) == y, calibration_error(chances, y)


def reliability(chances: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Return a row (confidence, accuracy, share of examples) for each bin of confidence; empty bins are 0."""
    sure, answer = chances.double().max(1)
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    sums.index_add_(0, place, torch.stack([sure, (answer == labels).double(), torch.ones_like(sure)], 1))
    return torch.cat([sums[:, :2] / sums[:, 2:].clamp_min(1), sums[:, 2:] / len(labels)], 1)


def interval(differences: Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Return (mean, low, high): the 95 % bootstrap interval of paired differences (n,) over examples."""
    values = differences.double().numpy()
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    ticket = copy.deepcopy(model)
    with torch.no_grad():
        next(ticket.parameters())[::2] = 0.0
    x, y = torch.rand(18, 1, 5, 5, generator=generator), torch.arange(18) % 3
    return model, {0.5: ticket}, {"example": Split(x, y, x, y, 3, "example")}, Source(4, 6), (2, None), 2


@paper("reprogram_lt", example=_example)
def reprogram_lt(
    dense: nn.Module,
    tickets: Mapping[float, nn.Module],
    targets: Mapping[str, Split],
    source: Source | None = None,
    shots: tuple[int | None, ...] = (None,),
    epochs: int = 100,
    mapping: str = "greedy",
    seed: int = 0,
) -> Finding:
    """Carry a dense classifier and its tickets to other tasks by linear probing and by prompting.

    Args:
        dense: the classifier.
        tickets: sparse ones of the same task by density, see `imp`.
        targets: data by name, images in [0, 1].
        source: how the classifier's own images were framed.
        shots: training examples of each class, such as (1, 10, 50, None); None takes all.
        epochs: of each head and each prompt.
        mapping: "greedy" or "assignment".
        seed: of all draws.

    The numbers: "accuracy lp digits 0.41 10" and so on, "ece ..." alike, with "all" for None; the dense one has the
    density 1.  `details["differences"]` has, by the same names without the measure, dense less ticket in accuracy
    as (mean, low, high) by the bootstrap over test examples.
    """
    source = source or Source()
    numbers: dict[str, float] = {}
    right: dict[tuple[str, str, str, float], Tensor] = {}
    for name, whole in targets.items():
        for shot in shots:
            split, count = few_shot(whole, shot, seed), "all" if shot is None else str(shot)
            for density, model in {1.0: dense, **tickets}.items():
                for way in ("lp", "vp"):
                    found = carried(model, split, source, way, epochs, mapping, seed)
                    x = source.framed(split.x_test) if way == "lp" else split.x_test
                    correct, error = measured(found, x, split.y_test)
                    key = f"{way} {name} {density:.2g} {count}"
                    numbers[f"accuracy {key}"], numbers[f"ece {key}"] = float(correct.double().mean()), error
                    right[way, name, count, density] = correct
    differences = {
        f"{way} {name} {density:.2g} {count}": interval(
            right[way, name, count, 1.0].double() - right[way, name, count, density].double(), seed=seed
        )
        for way, name, count, density in right
        if density in tickets
    }
    worst = max(differences, key=lambda key: differences[key][0], default="")
    reading = (
        f"A ticket loses at most {differences[worst][0]:.1%} of the answers to the dense network, at {worst}."
        if worst
        else f"{len(numbers) // 2} transfers of the dense network were measured."
    )
    return Finding(numbers, reading, partial(_draw, numbers), {"differences": differences})


def carried(
    model: nn.Module, split: Split, source: Source, way: str, epochs: int, mapping: str, seed: int
) -> nn.Module:
    """Return the classifier carried to a split by "lp" (takes framed images) or "vp" (takes raw ones)."""
    if way == "lp":
        framed = replace(split, x_train=source.framed(split.x_train), x_test=source.framed(split.x_test))
        return linear_probe(model, framed, epochs, seed=seed)
    prompt = source.prompt(split.x_train.shape[1])
    x, y = split.x_train, split.y_train
    return fit_prompt(model, prompt, x, y, split.num_classes, epochs, mapping=mapping, seed=seed)


def _draw(numbers: dict[str, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.15 * len(numbers)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure in zip(axes, ("accuracy", "ece"), strict=True):
        own = {k.removeprefix(measure + " "): v for k, v in numbers.items() if k.startswith(measure)}
        axis.barh(list(own), list(own.values()))
        axis.set(xlabel=measure)
    axes[0].invert_yaxis()
    return figure


DENSITIES = (0.8**4, 0.8**8)


def transfers(budget: Budget, seed: int) -> dict[str, float]:
    """Return the study's numbers for MNIST's CNN and two tickets on Fashion-MNIST and digits, with "gap" of source.

    "gap 0.41" is how much less of MNIST's test images the ticket of that density gets right than the dense network.
    Full: 8 rounds of 20 %; quick: 2 rounds to the same densities.
    """
    size, canvas, train, epochs = budget.pick(quick=(16, 24, 1500, 8), full=(28, 40, 10_000, 100))
    split = images("mnist", train=train, test=1000, size=size, seed=seed, normalise=False)
    source = Source(size, canvas, 0.13, 0.31)
    split = replace(split, x_train=source.framed(split.x_train), x_test=source.framed(split.x_test))
    rounds, rate = budget.pick(quick=(2, 1 - 0.8**4), full=(8, 0.2))
    build = partial(cnn, 1, 10, budget.pick(quick=(8, 16), full=(16, 32)), size=canvas)
    steps = budget.pick(quick=20, full=100)
    found = imp(build, split, rounds, rate, steps, budget.pick(quick=6, full=10), 3e-3, seed)
    chosen = [found[rounds // 2], found[rounds]]
    few = budget.pick(quick=600, full=2000)
    targets = {
        "fashion": images("fashion_mnist", train=few, test=1000, size=size, seed=seed, normalise=False),
        "digits": images("digits", train=few if few < 1438 else None, seed=seed, normalise=False),
    }
    tickets = {d: t.model for d, t in zip(DENSITIES, chosen, strict=True)}
    numbers = dict(reprogram_lt(found[0].model, tickets, targets, source, epochs=epochs, seed=seed).numbers)
    for density, ticket in zip(DENSITIES, chosen, strict=True):
        numbers[f"gap {density:.2g}"] = found[0].accuracy - ticket.accuracy
    return numbers


@claim(
    "reprogram_lt",
    "Sparse tickets are not universal reprogrammers: with similar source accuracy, prompted accuracy falls on some "
    "targets.",
    seeds=5,
    holds=any_of(
        *(
            all_of(at_least(0.02, of=f"{target}_{density}"), at_most(0.01, of=f"gap_{density}"))
            for target in ("fashion", "digits")
            for density in (41, 17)
        )
    ),
)
def not_universal(budget: Budget, seed: int) -> Evidence:
    """Prompted accuracy of the dense network less a ticket's, by target and density in percent; gaps on MNIST."""
    numbers, figures = transfers(budget, seed), {}
    for density in DENSITIES:
        label = round(100 * density)
        figures[f"gap_{label}"] = numbers[f"gap {density:.2g}"]
        for target in ("fashion", "digits"):
            own = [numbers[f"accuracy vp {target} {d:.2g} all"] for d in (1.0, density)]
            figures[f"{target}_{label}"] = own[0] - own[1]
    return Evidence(**figures)


@claim(
    "reprogram_lt",
    "Dense models are better calibrated than their tickets under both linear probing and visual prompting.",
    seeds=5,
    holds=all_of(at_least(0.0, of="lp"), at_least(0.0, of="vp")),
)
def dense_calibrated(budget: Budget, seed: int) -> Evidence:
    """Calibration error of the sparsest ticket less the dense one's, mean over targets; `share` of pairs above."""
    numbers, gaps = transfers(budget, seed), {}
    for way in ("lp", "vp"):
        for target in ("fashion", "digits"):
            own = [numbers[f"ece {way} {target} {d:.2g} all"] for d in (1.0, DENSITIES[1])]
            gaps[way, target] = own[1] - own[0]
    means = {way: (gaps[way, "fashion"] + gaps[way, "digits"]) / 2 for way in ("lp", "vp")}
    return Evidence(**means, share=sum(g >= 0 for g in gaps.values()) / len(gaps))

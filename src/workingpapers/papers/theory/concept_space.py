"""Concept space: in which order a generative model learns concepts, and abilities that prompts do not show yet.

    signal_k = | change of x when only concept k moves |,      speed_k = 1 / (first step with accuracy above 0.8)

A conditional flow model sees discs of three classes, red large, red small and blue large, and is asked for blue and
small.  Its samples are read in concept space at checkpoints; prompting more strongly, moving the latent vector of
the prompt, or borrowing a later embedding asks whether it could already do what a plain prompt does not elicit.

Paper: "Emergence of Hidden Capabilities: Exploring Learning Dynamics in Concept Space" (2024), arXiv 2406.19370.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_most, below
from workingpapers.papers.theory._discs import CONCEPTS, CORNERS, SHOWN, Discs
from workingpapers.papers.theory._elicit import SETTINGS, Setting, accuracies, curves, prompts
from workingpapers.papers.theory._flows import Velocity, logarithmic, sample, trained
from workingpapers.tasks import Budget


@dataclass(frozen=True)
class Track:
    """What a training came to: at each of `steps` (C,) the accuracies (C, corners, 3) of colour, size and both, and
    the class means (C, corners, 2) of colour (blue less red) and radius (over the middle one's) in concept space.
    """

    steps: list[int]
    accuracy: Tensor
    means: Tensor

    def learnt(self, concept: str, threshold: float = 0.8) -> float:
        """Return the first step with a mean accuracy over the shown corners above the threshold; inf if none."""
        curve = self.accuracy[:, : len(SHOWN), CONCEPTS.index(concept)].mean(1)
        return next((float(s) for s, a in zip(self.steps, curve, strict=True) if a > threshold), float("inf"))


def track(world: Discs, checkpoints: Mapping[int, Velocity], count: int = 100, seed: int = 0) -> Track:
    """Follow checkpoints through concept space, with `count` samples a corner from the same noise."""
    accuracy, means = [], []
    for model in checkpoints.values():
        images = [sample(model, prompts(world, c, count), world.side, seed) for c in CORNERS]
        accuracy.append([accuracies(world, x, c) for x, c in zip(images, CORNERS, strict=True)])
        read = [world.read(x) for x in images]
        radii = [(a.clamp_min(0) / torch.pi).sqrt().mean() / world.radius for _, a in read]
        means.append(
            [[float((c[:, 2] - c[:, 0]).mean()), float(r)] for (c, _), r in zip(read, radii, strict=True)]
        )
    return Track(list(checkpoints), torch.tensor(accuracy), torch.tensor(means))


def turn(steps: Sequence[int], path: Tensor) -> int:
    """Return the step at which a path (C, 2) changes its direction most; what does not move has no direction."""
    if len(path) < 3 or len(path) != len(steps):
        raise WorkingPapersError(f"a turn needs at least 3 points and a step for each; got {len(path)}")
    moves = path.diff(dim=0)
    angles = torch.cosine_similarity(moves[:-1], moves[1:], dim=1, eps=1e-12)
    still = moves.norm(dim=1) < 1e-9
    angles = torch.where(still[:-1] | still[1:], torch.ones_like(angles), angles)
    return steps[1 + int(angles.argmin())]


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    return Discs(side=6), 12, 4, 8, 4, 8


@paper("concept_space", example=_example)
def concept_space(
    world: Discs | None = None,
    steps: int = 2500,
    checkpoints: int = 20,
    width: int = 512,
    count: int = 100,
    batch: int = 128,
    unet: bool = False,
    seed: int = 0,
) -> Finding:
    """Train a conditional flow model on discs, follow it through concept space, and look for hidden abilities.

    Args:
        world: the discs; `Discs(colour_gap=0.6)` makes colour the stronger concept, `side=32` larger images.
        steps: of Adam, batches of `batch`.
        checkpoints: how many, log-spaced.
        width: of the three hidden layers, or channels of a U-Net with `unet`.
        count: samples a corner.
        seed: decides everything random.

    The numbers: for each concept its `signal_` and `speed_`, 1 / the first step with accuracy above 0.8 (0 if there
    is none); at the held-out corner the final joint accuracies of the plain prompt, `naive`, and of the best
    stronger prompt and latent intervention; the checkpoint `turn` of the sharpest turn there.  `details`: the
    `track`, and `curves` of all settings.
    """
    world = world or Discs()
    saved = dict(trained(world, logarithmic(steps, checkpoints), seed, batch, width=width, unet=unet))
    path = track(world, saved, count, seed)
    found = curves(world, saved, SETTINGS, count, seed)
    learnt = {concept: path.learnt(concept) for concept in CONCEPTS}
    numbers = {f"signal_{c}": world.signal(c) for c in CONCEPTS}
    numbers |= {f"speed_{c}": 1 / learnt[c] if learnt[c] > 0 else 1.0 for c in CONCEPTS}
    numbers["naive"] = float(path.accuracy[-1, -1, 2])
    for how in ("prompt", "latent"):
        numbers[how] = max(curve[-1] for setting, curve in found.items() if setting[0] == how)
    numbers["turn"] = float(turn(path.steps, path.means[:, -1]))
    best = max(numbers["prompt"], numbers["latent"])
    return Finding(
        numbers,
        f"Plain prompts give the unseen combination in {numbers['naive']:.0%} of samples, stronger ones or latent "
        f"interventions in up to {best:.0%}; the signals of colour and size are {numbers['signal_colour']:.2f} and "
        f"{numbers['signal_size']:.2f}.",
        lambda: _draw(path),
        {"track": path, "curves": found},
    )


def _draw(path: Track) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for place, (colour, size) in enumerate(CORNERS):
        name = f"{('red', 'blue')[colour]} {('large', 'small')[size]}"
        axes.plot(*path.means[:, place].T.numpy(), "o-", label=name + (" (unseen)" if place == 3 else ""))
    axes.set(xlabel="blue less red", ylabel="radius over the middle one")
    axes.legend()
    return figure


def _run(world: Discs, budget: Budget, seed: int) -> dict[int, Velocity]:
    steps, batch, width, lr = budget.pick(quick=(1000, 64, 256, 3e-3), full=(2500, 128, 512, 1e-3))
    count = budget.pick(quick=14, full=24)
    return dict(trained(world, logarithmic(steps, count), seed, batch, lr, width))


@claim(
    "concept_space",
    "How fast a generative model learns a concept, and so the order of learning, is set by a data property called "
    "concept signal.",
    seeds=3,
    holds=all_of(
        at_most(-0.7, of="colour_spearman"),
        at_most(-0.7, of="size_spearman"),
        above(0, of="stronger_first", by="every"),
    ),
    calibrated="After seed 1000 quick runs have 1,000 steps at 3e-3, for at 1e-3 no size was learnt within 800; "
    "colour and area are read from sums over pixels, which noise in samples does not bias.",
)
def signal_sets_the_speed(budget: Budget, seed: int) -> Evidence:
    """Colour gaps 0.15, 0.3 and 0.6 at a size gap of 0.3, and size gaps alike: the step at which each is learnt.

    `stronger_first` is the least logarithm of the steps' ratio, weaker over stronger concept, where signals differ
    twofold; a concept that is never learnt counts with twice the steps.
    """
    from math import log

    from scipy.stats import spearmanr

    gaps, middle = (0.15, 0.3, 0.6), Discs()
    worlds = {("colour", g): replace(middle, colour_gap=g) for g in gaps}
    worlds |= {("size", g): replace(middle, size_gap=g) for g in gaps}
    runs: dict[Discs, dict[str, float]] = {}
    for world in worlds.values():
        if world not in runs:
            saved = _run(world, budget, seed)
            path = track(world, saved, budget.pick(quick=40, full=100), seed)
            runs[world] = {c: min(path.learnt(c), 2.0 * max(saved)) for c in CONCEPTS}
    figures = {}
    for concept in CONCEPTS:
        signals = [worlds[concept, g].signal(concept) for g in gaps]
        steps_to = [runs[worlds[concept, g]][concept] for g in gaps]
        moved = len(set(steps_to)) > 1
        figures[f"{concept}_spearman"] = float(spearmanr(signals, steps_to).statistic) if moved else 0.0
    leads = []
    for world, learnt in runs.items():
        weak, strong = sorted(CONCEPTS, key=world.signal)
        if world.signal(strong) >= 2 * world.signal(weak):
            leads.append(log(max(learnt[weak], 1) / max(learnt[strong], 1)))
    steps = {f"{c}_step_at_{g:g}": runs[worlds[c, g]][c] for c, g in worlds}
    return Evidence(stronger_first=min(leads), pairs=len(leads), **figures, **steps)


@claim(
    "concept_space",
    "The ability to manipulate a concept emerges suddenly and latent interventions reveal it before ordinary "
    "prompts can elicit it.",
    seeds=8,
    holds=all_of(above(0, of="lead", by="median"), below(0.7, of="untrained", by="every")),
)
def hidden_before_prompted(budget: Budget, seed: int) -> Evidence:
    """The held-out corner: first checkpoint with a joint accuracy of 0.7, by plain prompts and by an intervention.

    `lead` is the logarithm of the steps' ratio, plain over intervened (never counts as twice the steps); the
    setting is the best one, over all checkpoints, of a run with another seed.
    """
    from math import log

    world, count = Discs(), budget.pick(quick=40, full=100)
    other = curves(world, _run(world, budget, seed + 5000), SETTINGS, count, seed)
    best = max(other, key=lambda setting: sum(other[setting]))
    saved = _run(world, budget, seed)
    plain: Setting = ("prompt", "colour", 1.0)
    found = curves(world, saved, (plain, best), count, seed)

    def first(setting: Setting) -> float:
        reached = [s for s, a in zip(saved, found[setting], strict=True) if a >= 0.7]
        return float(max(reached[0], 1)) if reached else 2.0 * max(saved)

    return Evidence(
        lead=log(first(plain) / first(best)),
        untrained=found[best][0],
        naive_step=first(plain),
        elicited_step=first(best),
        naive_final=found[plain][-1],
        elicited_final=found[best][-1],
        latent=float(best[0] == "latent"),
        strength=best[2],
    )

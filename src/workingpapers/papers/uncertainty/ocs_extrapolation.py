"""Predictions off the data drift to the optimal constant solution: the best answer that ignores the input.

    OCS = argmin_c (1/n) sum_i loss(c, y_i),      f(x) -> OCS   as x moves away from the training distribution

Cross-entropy: the class frequencies; squared error: the mean target; Gaussian likelihood: (mean, variance).
Shifted inputs give smaller features outside the training features' subspace, so that biases decide.  Where the
constant of a reward is to abstain, the drift makes decisions cautious.

Paper: "Deep Neural Networks Tend To Extrapolate Predictably" (2023), arXiv 2310.00873.  Shifts' strengths are ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.uncertainty import _constants
from workingpapers.papers.uncertainty._drift import draw, drift
from workingpapers.papers.uncertainty._features import (
    LayerShift,
    accumulated_constant,
    last_linear,
    layer_report,
)
from workingpapers.papers.uncertainty._shifts import LEVELS, shifted
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise

Shifted = Mapping[str, Sequence[Tensor]]
DEFAULT = ("blur", "contrast", "fog", "patch_shuffle")


def _shifted_sets(x: Tensor, shifts: Sequence[str] | Shifted, seed: int) -> dict[str, list[Tensor]]:
    if isinstance(shifts, Mapping):
        return {name: list(levels) for name, levels in shifts.items()}
    return {name: [shifted(x, name, k, seed) for k in range(1, LEVELS + 1)] for name in shifts}


def _small(width: int, classes: int, hidden: int = 8) -> Callable[[], nn.Sequential]:
    """Return the builder of a small convolutional network with batch normalisation for 28 x 28 images."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for width_in, width_out in ((1, width), (width, 2 * width)):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        flat = 2 * width * 49
        return nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(flat, hidden * width),
            nn.ReLU(),
            nn.Linear(hidden * width, classes),
        )

    return build


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    x = torch.rand(40, 1, 8, 8, generator=generator)
    return model, x[:20], torch.arange(20) % 3, x[20:]


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper("ocs_extrapolation", example=_example, invariances={"training mode": _in_training})
def ocs_extrapolation(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    loss: str = "cross_entropy",
    shifts: Sequence[str] | Shifted = DEFAULT,
    seed: int = 0,
) -> Finding:
    """Ask whether a model's outputs drift to the best constant as its inputs are shifted, and why.

    Args:
        model: (N, ...) -> logits for "cross_entropy", predictions for "mse", (mean, log-variance) for
            "gaussian_nll"; its last linear layer's inputs are its features.
        x_train, y_train: the training data, which the constant and the features' subspaces come from.
        x_test: inputs of the same kind, to be shifted.
        shifts: names of image shifts ("blur", "contrast", "fog", "patch_shuffle", "noise", "rotation"), or by name
            lists of shifted inputs, weakest first, for inputs of any kind.
        seed: decides what is random in a shift.

    The numbers, for each shift: `spearman_` of level and distance to the constant, `ratio_` of the distance at the
    strongest level to that without a shift, `auc_` of a linear classifier that tells the strongest from no shift,
    `norm_` and `inside_`, the size of the features there and the share of their energy in the training features'
    subspace.  `constant`: distance of the output without input-dependent features to the best constant.
    `details`: the `Drift` and the `layers` of each shift, and the constant.
    """
    if loss not in _constants.LOSSES:
        raise unknown("loss with a constant in closed form", loss, _constants.LOSSES)
    sets = _shifted_sets(x_test, shifts, seed)
    if not sets or not all(sets.values()):
        raise WorkingPapersError("give at least one shift, each with at least one level")
    last = last_linear(model, x_test)
    without = accumulated_constant(model, x_test[:1], last)
    constant = _constants.optimal_constant(y_train, loss, without.shape[1])
    found = {name: drift(model, x_test, levels, constant, loss) for name, levels in sets.items()}
    layers = {name: layer_report(model, x_train, x_test, levels[-1:]) for name, levels in sets.items()}
    numbers: dict[str, float] = {}
    for name, seen in found.items():
        strongest: LayerShift = layers[name][last][0]
        numbers |= {
            f"spearman_{name}": seen.spearman,
            f"ratio_{name}": seen.ratio,
            f"auc_{name}": seen.scores[-1],
        }
        numbers |= {f"norm_{name}": seen.norms[-1], f"inside_{name}": strongest.inside}
    numbers["constant"] = float(_constants.distances(without, constant, loss)[0])
    drifting = [name for name, seen in found.items() if seen.spearman <= -0.8]
    return Finding(
        numbers,
        f"Under {len(drifting)} of {len(found)} shifts predictions drift to the constant that ignores the input; "
        f"at the strongest level their distance to it is {min(s.ratio for s in found.values()):.2f} to "
        f"{max(s.ratio for s in found.values()):.2f} of that without a shift.",
        lambda: draw(found),
        {"drift": found, "layers": layers, "constant": constant},
    )


def skewed(budget: Budget, seed: int) -> Split:
    """Return MNIST of which class k is kept with weight 1 / (k + 1), in both parts; pixels standardised."""
    split = images("mnist", *budget.pick(quick=(5000, 2000), full=(60000, 10000)), seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def kept(y: Tensor) -> Tensor:
        return torch.rand(len(y), generator=generator) < 1 / (y + 1)

    train, test = kept(split.y_train), kept(split.y_test)
    return replace(
        split, x_train=split.x_train[train], y_train=split.y_train[train], x_test=split.x_test[test],
        y_test=split.y_test[test],
    )  # fmt: skip


def _trained(split: Split, loss: _constants.Loss, outputs: int, budget: Budget, seed: int) -> nn.Module:
    """Train the small network by a loss; all losses have the same schedule."""
    model = initialise(_small(budget.pick(quick=8, full=16), outputs), seed)
    epochs = budget.pick(quick=15, full=30)
    fit(model, split, epochs=epochs, lr=3e-3, loss=loss, schedule="cosine", seed=seed, every=10**6)
    return model


def _both(split: Split, budget: Budget, seed: int) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Give each loss's name, a network trained by it, and its best constant."""
    onehot = torch.eye(split.num_classes)

    def squared(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - onehot[y]).square().sum(1).mean()

    losses: dict[str, tuple[_constants.Loss, Tensor]] = {
        "cross_entropy": (F.cross_entropy, split.y_train),
        "mse": (squared, onehot[split.y_train]),
    }
    for name, (loss, targets) in losses.items():
        constant = _constants.optimal_constant(targets, name, split.num_classes)
        yield name, _trained(split, loss, split.num_classes, budget, seed), constant


def _third(values: Sequence[float]) -> float:
    """Return the third smallest: at most a limit where three of the values are."""
    return sorted(values)[2]


@claim(
    "ocs_extrapolation",
    "As inputs become more out-of-distribution, predictions drift to a constant close to the best input-blind "
    "answer, whatever the loss or architecture.",
    figure="8 data sets, 3 losses, CNNs and transformers",
    seeds=5,
    holds=all_of(
        *[at_most(-0.8, of=f"{loss}_spearman") for loss in ("cross_entropy", "mse")],
        *[at_most(0.5, of=f"{loss}_ratio") for loss in ("cross_entropy", "mse")],
    ),
)
def drifts_to_the_constant(budget: Budget, seed: int) -> Evidence:
    """Skewed MNIST, a CNN with batch normalisation, blur, contrast, fog and shuffled patches in five levels.

    `spearman` and `ratio` are the third best of the four shifts; each shift's own are given without a rule.
    """
    split, figures = skewed(budget, seed), {}
    for loss, model, constant in _both(split, budget, seed):
        sets = _shifted_sets(split.x_test, DEFAULT, seed)
        found = {k: drift(model, split.x_test, levels, constant, loss, False) for k, levels in sets.items()}
        figures[f"{loss}_spearman"] = _third([f.spearman for f in found.values()])
        figures[f"{loss}_ratio"] = _third([f.ratio for f in found.values()])
        figures |= {f"{loss}_{name}_ratio": f.ratio for name, f in found.items()}
    return Evidence(**figures)


@claim(
    "ocs_extrapolation",
    "This happens because shifted inputs give smaller features, leaving the accumulated constant part of the "
    "network to decide the output.",
    seeds=5,
    holds=all_of(*[at_most(0.8, of=f"{loss}_norm") for loss in ("cross_entropy", "mse")]),
)
def features_shrink(budget: Budget, seed: int) -> Evidence:
    """The same runs: penultimate features at the strongest level against none, the third smallest of four shifts.

    `constant` is the distance of the accumulated constant to the best one over that of predictions without a shift.
    """
    split, figures = skewed(budget, seed), {}
    for loss, model, constant in _both(split, budget, seed):
        strongest = {name: [shifted(split.x_test, name, LEVELS, seed)] for name in DEFAULT}
        found = {k: drift(model, split.x_test, x, constant, loss, False) for k, x in strongest.items()}
        without = accumulated_constant(model, split.x_test[:1], last_linear(model, split.x_test))
        start = found["blur"].distances[0]
        figures[f"{loss}_norm"] = _third([f.norms[-1] for f in found.values()])
        figures[f"{loss}_constant"] = float(_constants.distances(without, constant, loss)[0]) / start
        figures |= {f"{loss}_{name}_norm": f.norms[-1] for name, f in found.items()}
    return Evidence(**figures)


@claim(
    "ocs_extrapolation",
    "A suitable training reward turns the drift into cautious decisions when inputs look unfamiliar.",
    seeds=5,
    holds=all_of(at_least(0.5, of="gain"), at_least(-0.2, of="reward"), at_least(0.3, of="none_reward")),
    calibrated="After seed 1000 the rule asks also for a reward of 0.3 without a shift, for a network that always "
    "abstains would have passed, and networks are trained 15 epochs at 3e-3, for 8 at 1e-3 left one that "
    "abstained from three quarters of the unshifted images.",
)
def cautious_decisions(budget: Budget, seed: int) -> Evidence:
    """Reward 1 right, -4 wrong, 0 abstaining; the network that predicts rewards against softmax's largest class.

    Skewed MNIST; `gain` and `reward` are the lesser of the strongest blur and the strongest shuffling of patches.
    """
    split = skewed(budget, seed)
    classes = split.num_classes
    table = _constants.reward_table(classes)
    softmax = _trained(split, F.cross_entropy, classes, budget, seed)
    cautious = _trained(split, _constants.reward_loss(table), classes + 1, budget, seed)
    figures: dict[str, float] = {}
    gains, rewards = [], []
    for name in ("blur", "patch_shuffle", "none"):
        x = shifted(split.x_test, "blur" if name == "none" else name, 0 if name == "none" else LEVELS, seed)
        said, acted = (collect(m, x, [""])[""] for m in (softmax, cautious))
        plain = _constants.mean_reward(said.argmax(1), split.y_test, table)
        own = _constants.mean_reward(acted.argmax(1), split.y_test, table)
        figures |= {f"{name}_reward": own, f"{name}_softmax": plain}
        figures[f"{name}_oracle"] = _constants.oracle_threshold(said, split.y_test, table)
        figures[f"{name}_abstains"] = float((acted.argmax(1) == classes).double().mean())
        if name != "none":
            gains.append(own - plain)
            rewards.append(own)
    return Evidence(gain=min(gains), reward=min(rewards), **figures)

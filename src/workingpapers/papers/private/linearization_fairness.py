"""Linearisation and groups: with fewer ReLUs minorities lose more accuracy, and a fair fine-tuning gives it
back.

    loss = J + sum over groups of lambda_g (J_g - J),    lambda_g <- clip(lambda_g + eta (J_g - J), 0, 5)

J is the mean loss (cross-entropy and distillation from the dense network), J_g that of a group.  The study
linearises a trained network at several budgets, measures each group before and after, and looks at the
decision boundary.

Paper: "Disparate Impact on Group Accuracy of Linearization for Private Inference" (2024); the Lagrangian form
and its constants are as recalled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.papers.private._boundary import deepfool, geometry
from workingpapers.papers.private._learning import check_split, logits, train
from workingpapers.papers.private._linearize import fine_tune, linearize
from workingpapers.tasks import Budget, initialise, residual_cnn


@dataclass(frozen=True)
class Groups:
    """The group of each training and each test example, from 0; the smallest in training is the minority."""

    train: Tensor
    test: Tensor

    @property
    def names(self) -> list[int]:
        """The groups that there are."""
        return sorted({*self.train.tolist(), *self.test.tolist()})

    @property
    def minority(self) -> int:
        """The group with the fewest training examples."""
        return int(min(self.names, key=lambda g: int((self.train == g).sum())))


def check_groups(groups: Groups, split: Split) -> Groups:
    """Return the groups, which must fit the split.

    Raises:
        WorkingPapersError: where they do not, there are less than two, or one has no test example.
    """
    if (len(groups.train), len(groups.test)) != (len(split.y_train), len(split.y_test)):
        raise WorkingPapersError(
            f"each example has a group: {len(split.y_train)} to train and {len(split.y_test)} to test; got "
            f"{len(groups.train)} and {len(groups.test)} groups"
        )
    empty = [g for g in groups.names if not (groups.test == g).any() or not (groups.train == g).any()]
    if len(groups.names) < 2 or empty or groups.names[0] < 0:
        raise WorkingPapersError(
            "there are two groups or more, numbered from 0, each with examples to train and to test"
        )
    return groups


def accuracy_by_group(model: nn.Module, split: Split, groups: Groups) -> dict[int, float]:
    """Return the test accuracy of each group."""
    right = (logits(model, split.x_test).argmax(1) == split.y_test).double()
    return {g: float(right[groups.test == g].mean()) for g in groups.names}


@dataclass(frozen=True)
class Report:
    """What each group loses against the dense network, the spread of that, and the accuracy over all
    examples."""

    drops: Mapping[int, float]
    accuracy: float

    @property
    def gap(self) -> float:
        """Largest less smallest loss of a group."""
        return max(self.drops.values()) - min(self.drops.values())


def report(dense: nn.Module, model: nn.Module, split: Split, groups: Groups) -> Report:
    """Return what `model` costs each group against `dense`."""
    before, after = (accuracy_by_group(m, split, groups) for m in (dense, model))
    right = logits(model, split.x_test).argmax(1) == split.y_test
    return Report({g: before[g] - after[g] for g in before}, float(right.double().mean()))


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(40) % 3
    x = torch.randn(40, 1, 6, 6, generator=generator) + y[:, None, None, None]
    model = initialise(partial(residual_cnn, 1, 3, (4, 6)), 0)
    groups = Groups((y == 2).long() * (torch.arange(40) % 2), (y == 2).long())
    return model, Split(x, y, x, y, 3, "example"), groups, (0.3,), "snl", 1, 1


def _reordered(model: nn.Module, split: Split, groups: Groups, *rest: Any) -> tuple[Any, ...]:
    back = torch.arange(len(split.y_test)).flip(0)
    turned = replace(split, x_test=split.x_test[back], y_test=split.y_test[back])
    return model, turned, Groups(groups.train, groups.test[back]), *rest


@paper("linearization_fairness", example=_example, invariances={"order of the test part": _reordered})
def linearization_fairness(
    model: nn.Module,
    split: Split,
    groups: Groups,
    budgets: Sequence[float] = (0.5, 0.08, 0.03),
    method: str = "snl",
    epochs: int = 10,
    tune: int = 10,
    eta: float = 1e-2,
    seed: int = 0,
) -> Finding:
    """Linearise a trained network at several budgets and report each group's loss, plain and with fair
    fine-tuning.

    Args:
        model: trained, with ReLUs.
        split: classes; its test part measures.
        groups: of its examples.
        budgets: shares of the ReLUs that stay.
        method: "snl", "deepreduce" or "random".
        epochs, tune: of choosing the ReLUs, and of fine-tuning afterwards.
        eta: step of the multipliers; their cap is 5.
        seed: of choices and of the order of the data.

    The numbers: by budget the drop of each group, "gap" and accuracy, and the same after "fair" fine-tuning;
    of the dense network each group's accuracy, margin and distance to the boundary.  `details["geometry"]`
    has the whole geometry of groups, dense and at the smallest budget; `details["models"]` the networks.

    Raises:
        WorkingPapersError: where groups and split do not fit, or the method does not reach a budget.
    """
    groups = check_groups(groups, check_split(split))
    if not budgets:
        raise WorkingPapersError("no budget is given")
    numbers = {f"accuracy of group {g}": v for g, v in accuracy_by_group(model, split, groups).items()}
    models: dict[tuple[float, str], nn.Module] = {}
    for budget in budgets:
        bare = linearize(model, split, budget, method, epochs, seed=seed)
        for name, who in (("plain", None), ("fair", groups.train)):
            tuned = fine_tune(bare, model, split, tune if budget < 1 else 0, who, eta, seed=seed)
            found = report(model, tuned, split, groups)
            models[budget, name] = tuned
            numbers |= {f"{budget:g} {name}: drop of group {g}": v for g, v in found.drops.items()}
            numbers |= {f"{budget:g} {name}: gap": found.gap, f"{budget:g} {name}: accuracy": found.accuracy}
    shapes: dict[str, Any] = {}
    for name, net in (("dense", model), ("linearised", models[min(budgets), "plain"])):
        for g in groups.names:
            mine = (groups.test == g).nonzero()[:, 0][:100]
            shapes[f"{name} {g}"] = geometry(net, split.x_test[mine], split.y_test[mine])
    for g in groups.names:
        seen = shapes[f"dense {g}"]
        numbers |= {f"margin of group {g}": seen.margin, f"distance of group {g}": seen.distance}
    low = min(budgets)
    lost = {g: numbers[f"{low:g} plain: drop of group {g}"] for g in groups.names}
    worst = max(lost, key=lambda g: lost[g])
    reading = (
        f"With {low:.0%} of the ReLUs group {worst} loses most, {lost[worst]:.1%}, "
        f"and the gap between groups is {numbers[f'{low:g} plain: gap']:.1%}, "
        f"{numbers[f'{low:g} fair: gap']:.1%} with fair fine-tuning."
    )
    return Finding(numbers, reading, partial(_draw, numbers, budgets), {"geometry": shapes, "models": models})


def _draw(numbers: Mapping[str, float], budgets: Sequence[float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5))
    axes = figure.add_subplot()
    for name in ("plain", "fair"):
        axes.plot(budgets, [numbers[f"{b:g} {name}: gap"] for b in budgets], marker="o", label=name)
    axes.set(xlabel="share of ReLUs kept", ylabel="gap of accuracy losses between groups", xscale="log")
    axes.legend()
    return figure


def uneven(budget: Budget, seed: int) -> tuple[Split, Groups]:
    """Return Fashion-MNIST (14x14) with a tenth of the shirts and pullovers to train on, which are the
    minority."""
    count, test = budget.pick(quick=(6000, 2000), full=(20_000, 5000))
    split = images("fashion_mnist", train=count, test=test, size=14, seed=seed)
    rare = torch.isin(split.y_train, torch.tensor([2, 6]))
    drawn = torch.rand(len(rare), generator=torch.Generator().manual_seed(seed))
    kept = ~rare | (drawn < 0.1)
    split = replace(split, x_train=split.x_train[kept], y_train=split.y_train[kept])
    sides = [torch.isin(y, torch.tensor([2, 6])).long() for y in (split.y_train, split.y_test)]
    return split, Groups(*sides)


def dense_net(budget: Budget, split: Split, seed: int) -> nn.Module:
    """Return the claims' residual network, trained."""
    widths = budget.pick(quick=(8, 16, 32), full=(16, 32, 64))
    model = initialise(partial(residual_cnn, 1, 10, widths), seed)
    train(model, split, None, budget.pick(quick=8, full=30), lr=2e-3, seed=seed)
    return model


@claim(
    "linearization_fairness",
    "Reducing ReLUs costs minority groups more accuracy than majority groups.",
    holds=all_of(
        at_least(0.0, of="over_majority"),
        at_least(0.03, of="minority_drop"),
        above(0.0, of="gap_growth", by="every"),
    ),
)
def minorities_lose_more(budget: Budget, seed: int) -> Evidence:
    """Loss of test accuracy on the rare classes of Fashion-MNIST with 3 % of the ReLUs, chosen by SNL.

    `over_majority` is that less 1.5 times the others' loss; `gap_growth` the gap at 3 % less that at 50 %.
    """
    split, groups = uneven(budget, seed)
    model, (epochs, tune) = dense_net(budget, split, seed), budget.pick(quick=(2, 3), full=(15, 15))
    found = {}
    for share in (0.5, 0.03):
        bare = linearize(model, split, share, "snl", epochs, seed=seed)
        found[share] = report(model, fine_tune(bare, model, split, tune, seed=seed), split, groups)
    minority, majority = found[0.03].drops[1], found[0.03].drops[0]
    gaps = [found[share].drops[1] - found[share].drops[0] for share in (0.03, 0.5)]
    return Evidence(
        over_majority=minority - 1.5 * majority,
        minority_drop=minority,
        gap_growth=gaps[0] - gaps[1],
        majority_drop=majority,
    )


@claim(
    "linearization_fairness",
    "A simple change to the fine-tuning step of linearised models mitigates the unfairness.",
    holds=all_of(at_most(0.0, of="over_four_fifths"), at_most(0.02, of="accuracy_lost")),
)
def fair_fine_tuning(budget: Budget, seed: int) -> Evidence:
    """The minority's loss with 3 % of the ReLUs after fair fine-tuning, less 0.8 of that after plain
    fine-tuning."""
    split, groups = uneven(budget, seed)
    model, (epochs, tune) = dense_net(budget, split, seed), budget.pick(quick=(2, 3), full=(15, 15))
    bare = linearize(model, split, 0.03, "snl", epochs, seed=seed)
    plain = report(model, fine_tune(bare, model, split, tune, seed=seed), split, groups)
    fair = report(model, fine_tune(bare, model, split, tune, groups.train, seed=seed), split, groups)
    return Evidence(
        over_four_fifths=fair.drops[1] - 0.8 * plain.drops[1],
        accuracy_lost=plain.accuracy - fair.accuracy,
        plain_drop=plain.drops[1],
        fair_drop=fair.drops[1],
    )


@claim(
    "linearization_fairness",
    "The effect is explained mathematically through the decision boundary under restricted assumptions.",
    holds=at_most(0.9, of="distance_ratio"),
    calibrated="the mean over points that the network gets right in place of all: on seed 1000 missed points, "
    "whose distance is 0, decided the ratio (0.04)",
)
def nearer_the_boundary(budget: Budget, seed: int) -> Evidence:
    """DeepFool's distance of the minority's test points from the dense network's boundary, over the
    majority's."""
    split, groups = uneven(budget, seed)
    model, most = dense_net(budget, split, seed), budget.pick(quick=200, full=1000)
    mean, every = {}, {}
    for g in (0, 1):
        mine = (groups.test == g).nonzero()[:, 0][:most]
        found = deepfool(model, split.x_test[mine], split.y_test[mine])
        mean[g], every[g] = float(found[found > 0].mean()), float(found.mean())
    return Evidence(distance_ratio=mean[1] / mean[0], with_missed=every[1] / every[0], majority=mean[0])

"""SAFS: activation functions and a training recipe found for a network after it was pruned.

    y = p1 * op(p2 * x)         op, p1 and p2 for each layer

First the operator of each layer is chosen by late acceptance hill climbing, each candidate fine-tuned from the
pruned weights; then, with the operators fixed, the scales and the training hyperparameters of the sparse network
are tuned by a surrogate model, and the scales are learned with the weights.

Paper: "Learning Activation Functions for Sparse Neural Networks" (2023), Section 4; operators, pruning, the length
of the history and stage 2 follow the authors' code, a random forest of our own standing for SMAC.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.masks import apply_masks, keep_by_score, weights_of
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.search._operators import OPERATORS
from workingpapers.papers.search._sparse_search import (
    Point,
    Trial,
    bayesian,
    lahc,
    peaks,
    random_search,
)
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit, initialise

search = paper("safs", example=peaks, budget=160)(lahc)
paper("safs", part="stage2", kind="search", example=peaks, budget=60)(bayesian)


@paper(
    "safs",
    part="activation",
    kind="activation",
    variants=[{"operator": name} for name in ("acon", "srs", "symlog")],
)
class LearnedAct(nn.Module):
    """Apply p1 * op(p2 * x) to a tensor of any shape.

    Args:
        operator: name in OPERATORS.
        p1, p2: scales outside and inside; 1 in stage 1.
        trainable: learn both, starting from these values, as in stage 2.
    """

    p1: float | Tensor
    p2: float | Tensor

    def __init__(
        self, operator: str = "swish", p1: float = 1.0, p2: float = 1.0, trainable: bool = True
    ) -> None:
        super().__init__()
        if operator not in OPERATORS:
            raise unknown("operator", operator, OPERATORS)
        self.operator = operator
        for name, value in (("p1", p1), ("p2", p2)):
            setattr(self, name, nn.Parameter(torch.tensor(float(value))) if trainable else float(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.p1 * OPERATORS[self.operator](self.p2 * x)

    def extra_repr(self) -> str:
        learned = isinstance(self.p1, nn.Parameter)
        return f"{self.operator!r}, p1={float(self.p1):g}, p2={float(self.p2):g}, trainable={learned}"


DENSE_RECIPE: Point = {"lr": 0.05, "optimizer": "sgd", "schedule": "constant", "momentum": 0.9, "decay": 5e-4}


def pruned(model: nn.Module, prune_rate: float = 0.99, way: str = "uniform") -> nn.Module:
    """Return a copy of which the largest weights are kept: in each layer ("uniform"), or of all ("global")."""
    if not 0 <= prune_rate < 1:
        raise WorkingPapersError(f"the share to prune lies in [0, 1); got {prune_rate}")
    sparse = copy.deepcopy(model)
    sizes = {name: weight.abs() for name, weight in weights_of(sparse).items()}
    return apply_masks(sparse, keep_by_score(sizes, 1 - prune_rate, way))


def with_activations(model: nn.Module, acts: Sequence[Callable[[], nn.Module]]) -> nn.Module:
    """Return a copy whose ReLUs are, in the order of the modules, what `acts` make."""
    rest = iter(acts)
    return replace_modules(model, nn.ReLU, lambda old: next(rest)())


def finetuned(
    sparse: nn.Module, point: Mapping[str, Any], split: Split, epochs: int, seed: int
) -> tuple[nn.Module, float]:
    """Fine-tune a copy of a pruned network; return it and its test accuracy, 0 if it diverged.

    `point` may name the operators ("act0", ...; default relu), their scales ("p1_0", "p2_0", ..., which are then
    learned), and the recipe ("lr", "optimizer", "schedule", "momentum", "decay"; default the dense one).
    """
    how = {**DENSE_RECIPE, **point}
    places = sum(isinstance(m, nn.ReLU) for m in sparse.modules())
    acts = [
        partial(
            LearnedAct,
            how.get(f"act{i}", "relu"),
            how.get(f"p1_{i}", 1.0),
            how.get(f"p2_{i}", 1.0),
            trainable=f"p1_{i}" in how,
        )
        for i in range(places)
    ]
    model = with_activations(sparse, acts)

    def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
        if how["optimizer"] == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=how["momentum"], weight_decay=how["decay"])
        kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        if how["optimizer"] not in kinds:
            raise unknown("optimizer", how["optimizer"], ("sgd", *kinds))
        made: torch.optim.Optimizer = kinds[how["optimizer"]](parameters, 0.1 * lr, weight_decay=how["decay"])
        return made

    options: dict[str, Any] = {"optimizer": optimizer, "schedule": how["schedule"], "every": 10**9}
    done = fit(model, split, epochs=epochs, lr=how["lr"], seed=seed, **options)
    return model, 0.0 if done.diverged else done.metrics["accuracy"]


def operator_space(layers: int) -> dict[str, list[str]]:
    """Return the space of stage 1: an operator for each layer."""
    return {f"act{i}": list(OPERATORS) for i in range(layers)}


def recipe_space(layers: int) -> dict[str, Any]:
    """Return the space of stage 2: the scales of each layer and the recipe; Adam takes a tenth of the rate."""
    scales = {f"{p}_{i}": (0.25, 4.0) for i in range(layers) for p in ("p1", "p2")}
    recipe = {"lr": (0.002, 0.2), "optimizer": ["sgd", "adam", "adamw"], "momentum": (0.1, 0.99)}
    return {**scales, **recipe, "schedule": ["constant", "cosine", "linear"], "decay": (0.0, 1e-3)}


@dataclass(frozen=True)
class Found:
    """What the two stages found: a point for `finetuned` after each, and all trials."""

    stage1: Point
    stage2: Point
    log: list[Trial] = field(repr=False)


def safs(
    sparse: nn.Module,
    split: Split,
    budgets: tuple[int, int] = (25, 20),
    epochs: int = 1,
    seed: int = 0,
    searcher: Callable[..., list[Trial]] = lahc,
) -> Found:
    """Search activations and recipe for a pruned network with ReLUs.

    Args:
        sparse: the network, see `pruned`; its masks stay as they are.
        split: data to fine-tune on; its test part is what candidates are judged by, so give a validation part.
        budgets: evaluations of stage 1 and of stage 2.
        epochs: of fine-tuning a candidate.
        seed: decides search and training.
        searcher: of stage 1, such as `random_search`.
    """
    layers = sum(isinstance(m, nn.ReLU) for m in sparse.modules())
    if not layers:
        raise WorkingPapersError(f"{type(sparse).__name__} has no ReLU whose place could be searched")
    first = searcher(
        operator_space(layers), lambda p: finetuned(sparse, p, split, epochs, seed)[1], budgets[0], seed
    )
    best = max(first, key=lambda t: t.value).point
    ones = {f"{p}_{i}": 1.0 for i in range(layers) for p in ("p1", "p2")}
    second = bayesian(
        recipe_space(layers),
        lambda p: finetuned(sparse, {**best, **p}, split, epochs, seed)[1],
        budgets[1],
        seed,
        start={**ones, **DENSE_RECIPE},
    )
    return Found(best, {**best, **max(second, key=lambda t: t.value).point}, first + second)


def lenet5(classes: int = 10) -> nn.Module:
    """Build LeNet-5 with ReLUs, (B, 1, 28, 28) -> (B, classes)."""
    parts: list[nn.Module] = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    parts += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)]
    return nn.Sequential(*parts)


def _sparse_lenet(budget: Budget, seed: int) -> tuple[nn.Module, Split, Split]:
    """Return a LeNet-5 pruned by 99 % after training on MNIST, the data, and a split for validation."""
    train, test = budget.pick(quick=(2000, 1000), full=(10000, 10000))
    split = images("mnist", train=train, test=test, seed=seed)
    x, y, cut = split.x_train, split.y_train, train * 3 // 4
    inner = replace(split, x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:])
    dense = initialise(lenet5, seed)
    fit(dense, split, epochs=budget.pick(quick=4, full=20), optimizer="sgd", lr=0.05, every=10**9, seed=seed)
    return pruned(dense, 0.99), split, inner


@claim(
    "safs",
    "Choosing activations per layer and tuning hyperparameters for the pruned net recovers accuracy lost to heavy "
    "pruning.",
    figure="up to +15.53% LeNet-5, +8.88% VGG-16, +6.33% ResNet-18 absolute",
    seeds=5,
    holds=all_of(
        at_least(0.03, of="gain"), at_least(0.0, of="stage1_gain"), at_least(0.0, of="stage2_over_stage1")
    ),
)
def recovered(budget: Budget, seed: int) -> Evidence:
    """Test accuracy of a LeNet-5 without 99 % of its weights, on MNIST, over ReLU and the dense recipe."""
    sparse, split, inner = _sparse_lenet(budget, seed)
    found = safs(sparse, inner, budget.pick(quick=(12, 10), full=(25, 20)), seed=seed)
    points: dict[str, Point] = {"baseline": {}, "stage1": found.stage1, "stage2": found.stage2}
    epochs = budget.pick(quick=3, full=20)
    accuracy = {name: finetuned(sparse, p, split, epochs, seed)[1] for name, p in points.items()}
    return Evidence(
        gain=accuracy["stage2"] - accuracy["baseline"],
        stage1_gain=accuracy["stage1"] - accuracy["baseline"],
        stage2_over_stage1=accuracy["stage2"] - accuracy["stage1"],
        **accuracy,
    )


@claim(
    "safs",
    "Part of the accuracy drop comes from default ReLU and reused dense hyperparameters, which a two-stage search "
    "can fix efficiently.",
    seeds=5,
    holds=at_least(-0.005, of="lahc_over_random"),
)
def efficient(budget: Budget, seed: int) -> Evidence:
    """Best validation accuracy of stage 1 by late acceptance, over that of random search at equal cost."""
    sparse, _, inner = _sparse_lenet(budget, seed)
    objective = partial(_accuracy, sparse, inner, seed)
    evaluations = budget.pick(quick=18, full=25)
    best = {
        way.__name__: max(t.value for t in way(operator_space(4), objective, evaluations, seed))
        for way in (lahc, random_search)
    }
    return Evidence(lahc_over_random=best["lahc"] - best["random_search"], **best, relu=objective({}))


def _accuracy(sparse: nn.Module, split: Split, seed: int, point: Point) -> float:
    return finetuned(sparse, point, split, 1, seed)[1]

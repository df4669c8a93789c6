"""Dynamic Perceiver: early exits in a branch of latent tokens of their own, beside the feature extractor.

    Z <- Z + Attn(q = Z, kv = X),  Z <- Z + MLP(Z)       the tokens read the features
    X <- X + Attn(q = X, kv = Z),  X <- X + MLP(X)       the features read the tokens, before the next stage
    exits: mean(Z) that has seen stage 2; mean(Z) that has seen stage 3; features of stage 4; all of it

So low-level features need not separate the classes for an early exit to be good.  Between stages the tokens get
fewer and wider.  Each exit but the last learns from the last one.

Paper: "Dynamic Perceiver for Efficient Visual Recognition" (2023); arrangement, exits, shortcuts between them,
losses and thresholds follow the authors' code.  That features are unchanged at initialisation is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.sparsity._dual_branch import DualBranch
from workingpapers.papers.sparsity._early_exits import (
    Staged,
    exit_costs,
    exits_loss,
    mean_cost,
    predict,
    solve_thresholds,
)
from workingpapers.papers.sparsity._wrapped_backbones import wrap
from workingpapers.tasks import Budget, Classification, examples, fit, initialise
from workingpapers.tasks.examples import Example
from workingpapers.tasks.models import ResidualBlock

__all__ = ["DualBranch", "DynPerceiver", "Staged", "exits_loss", "predict", "solve_thresholds", "wrap"]


def mini_resnet(
    in_channels: int, widths: Sequence[int], blocks: int = 1, stride: int = 1
) -> tuple[nn.Module, list[nn.Module]]:
    """Return stem and four stages of a small residual network; the first of `widths` is the stem's too."""
    stem = nn.Sequential(
        nn.Conv2d(in_channels, widths[0], 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    )
    stages: list[nn.Module] = []
    before = widths[0]
    for i, width in enumerate(widths):
        parts = []
        for j in range(blocks):
            parts.append(ResidualBlock(before, width, 2 if i and not j else 1, nn.ReLU, True))
            before = width
        stages.append(nn.Sequential(*parts))
    return stem, stages


def _example(batch: int, generator: torch.Generator) -> Example:
    found = examples.images(2, 12, 3)(batch, generator)
    return Example(found.inputs, found.targets, exits_loss)  # type: ignore[arg-type]


@paper(
    "dyn_perceiver",
    example=_example,
    known_failures={
        "dtypes": "at initialisation the latent tokens differ by 0.02, which bfloat16 rounds away before the norm "
        "over tokens magnifies it"
    },
)
class DynPerceiver(DualBranch):
    """A small residual network with the branch of latent tokens: (B, C, H, W) -> four times (B, num_classes).

    See `wrap` for the backbones of torchvision and timm, with the paper's sizes.

    Args:
        in_channels: C.
        num_classes: number of outputs.
        widths: channels of the four stages.
        blocks: residual blocks of each.
        num_latents: tokens at first, 128 in the paper.
        dim: their width at first; default that of the first stage.
        depth: self-attention blocks of each stage.
        pool: side to which maps are pooled for the tokens to read.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"in_channels": 3, "num_classes": 10},
        "tiny": {"in_channels": 2, "num_classes": 3, "widths": (8, 8, 8, 8), "num_latents": 32, "pool": 3},
    }

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64, 96),
        blocks: int = 1,
        num_latents: int = 16,
        dim: int | None = None,
        depth: int = 1,
        pool: int = 7,
    ) -> None:
        stem, stages = mini_resnet(in_channels, widths, blocks)
        every = (widths[0], *widths)
        super().__init__(stem, stages, every, num_classes, num_latents, dim, (depth,) * 4, pool=pool)


class _Exits(Classification):
    """Classification by a network with exits, judged by the last."""

    def scores(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Return which samples the last exit gets right."""
        return super().scores(outputs[-1], targets)


@cache
def contenders(budget: Budget, seed: int, name: str) -> tuple[dict[str, Any], Split, Tensor]:
    """Return trained networks, "dynamic", "linear" and "static", their data, and images to choose thresholds by.

    The two to compare with have wider stages, so that all three cost about as much.
    """
    train, test, epochs = budget.pick(quick=(1500, 1000, 10), full=(8000, 2000, 6))
    split = images(name, train=train + 500, test=test, size=budget.pick(quick=14, full=28), seed=seed)
    held, x, y = split.x_train[train:], split.x_train[:train], split.y_train[:train]
    split = replace(split, x_train=x, y_train=y)
    channels, widths = x.shape[1], budget.pick(quick=(8, 16, 32, 48), full=(16, 32, 64, 96))
    wider = budget.pick(quick=(10, 20, 40, 60), full=(18, 36, 72, 108))
    builders: dict[str, Callable[[], Any]] = {
        "dynamic": partial(DynPerceiver, channels, 10, widths, pool=budget.pick(quick=4, full=7)),
        "linear": partial(_staged, channels, wider, True),
        "static": partial(_staged, channels, wider, False),
    }
    weights = {"dynamic": (0.5, 0.5, 1.0, 1.0), "linear": (0.5, 0.5, 1.0), "static": (1.0,)}
    found: dict[str, Any] = {}
    for kind, build in builders.items():
        found[kind] = initialise(build, seed)
        problem = _Exits(split, partial(exits_loss, weights=weights[kind]))
        fit(found[kind], problem, epochs=epochs, lr=2e-3, schedule="cosine", every=10**9, seed=seed)
    return found, split, held


def _staged(channels: int, widths: Sequence[int], early: bool) -> Staged:
    stem, stages = mini_resnet(channels, widths)
    return Staged(stem, stages, widths, 10, early)


@torch.no_grad()
def accuracies(model: Any, split: Split) -> list[float]:
    """Return the test accuracy of each exit."""
    outputs = [model.eval()(x) for x in split.x_test.split(500)]
    guesses = [torch.cat([o[i].argmax(1) for o in outputs]) for i in range(model.exits)]
    return [float((g == split.y_test).double().mean()) for g in guesses]


def names(budget: Budget) -> tuple[str, ...]:
    """Return the data sets of the claims."""
    return budget.pick(quick=("fashion_mnist",), full=("fashion_mnist", "cifar10"))


def over_data(budget: Budget, seed: int, measure: Any) -> Evidence:
    """Return the means over the data sets of what `measure` finds of the contenders."""
    rows = [measure(*contenders(budget, seed, name)) for name in names(budget)]
    return Evidence(**{key: sum(row[key] for row in rows) / len(rows) for key in rows[0]})


def _last_exits(found: dict[str, Any], split: Split, held: Tensor) -> dict[str, float]:
    last = {kind: accuracies(model, split)[-1] for kind, model in found.items()}
    costs = {kind: exit_costs(model, held)[-1] for kind, model in found.items()}
    return {
        "over_linear": last["dynamic"] - last["linear"],
        "over_static": last["dynamic"] - last["static"],
        "cost_to_linear": costs["dynamic"] / costs["linear"],
        "accuracy": last["dynamic"],
    }


@claim(
    "dyn_perceiver",
    "With exits outside the feature branch, low-level features need not be linearly separable, so later exits do "
    "not suffer.",
    seeds=5,
    holds=all_of(at_least(0.005, of="over_linear"), at_least(-0.005, of="over_static")),
)
def last_exit(budget: Budget, seed: int) -> Evidence:
    """Accuracy of the last exit over those of a network with linear exits on its features and of one without.

    Small residual networks at about equal cost, on Fashion-MNIST, and CIFAR-10 at the full budget.
    """
    return over_data(budget, seed, _last_exits)


def _curves(found: dict[str, Any], split: Split, held: Tensor) -> dict[str, float]:
    costs = {kind: exit_costs(found[kind], held) for kind in ("dynamic", "linear")}
    low, high = max(c[0] for c in costs.values()), min(c[-1] for c in costs.values())
    static, own = accuracies(found["static"], split)[-1], costs["dynamic"]
    areas, reached = {}, 1.0
    for kind, cost in costs.items():
        curve = []
        for i in range(8):
            thresholds, _ = solve_thresholds(found[kind], held, low + (high - low) * i / 7, cost)
            answers = predict(found[kind], split.x_test, thresholds)
            right = float((answers.logits.argmax(1) == split.y_test).double().mean())
            curve.append(right)
            if kind == "dynamic" and right >= static:
                reached = min(reached, mean_cost(answers.fractions, own) / own[-1])
        areas[kind] = sum(curve) / len(curve)
    return {"cost_at_static": reached, "area_over_linear": areas["dynamic"] - areas["linear"]}


@claim(
    "dyn_perceiver",
    "Inference efficiency improves for different backbones over a broad range of budgets, on CPU and GPU.",
    seeds=5,
    holds=all_of(at_most(0.8, of="cost_at_static"), at_least(0.0, of="area_over_linear")),
)
def budgets(budget: Budget, seed: int) -> Evidence:
    """Least share of its full cost at which it is as accurate as the network without exits, of 8 budgets.

    1 where it never is.  `area_over_linear` is the mean accuracy over the budgets, less that of linear exits.
    """
    return over_data(budget, seed, _curves)


def _first_exits(found: dict[str, Any], split: Split, held: Tensor) -> dict[str, float]:
    first = {kind: accuracies(found[kind], split)[0] for kind in ("dynamic", "linear")}
    return {"over_linear": first["dynamic"] - first["linear"], "accuracy": first["dynamic"]}


@claim(
    "dyn_perceiver",
    "Easy samples leave at early exits of the latent branch, which are strong classifiers, and so skip the deeper "
    "layers.",
    seeds=5,
    holds=at_least(0.03, of="over_linear"),
)
def first_exit(budget: Budget, seed: int) -> Evidence:
    """Accuracy of the exit that has seen two stages, over that of a linear exit on the second stage's features."""
    return over_data(budget, seed, _first_exits)

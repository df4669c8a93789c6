"""Trains the same networks with standard weights, weight norm, batch norm, and one more parameterisation."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from workingpapers.data import images, table
from workingpapers.data.split import Split
from workingpapers.tasks import Budget, Result, fit

L = TypeVar("L", nn.Linear, nn.Conv2d)
Hidden = Callable[
    [nn.Linear | nn.Conv2d], nn.Module
]  # a linear or convolution layer -> it and its relu, in some form

RATES = (1e-3, 1e-2, 1e-1)


def _with_batch_norm(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    return nn.Sequential(layer, norm(layer.weight.shape[0]), nn.ReLU())


BASELINES: dict[str, Hidden] = {
    "sp": lambda layer: nn.Sequential(layer, nn.ReLU()),
    "wn": lambda layer: nn.Sequential(weight_norm(layer), nn.ReLU()),
    "bn": _with_batch_norm,
}


def glorot(layer: L) -> L:
    """Give `layer` Glorot-uniform weights, counting inputs and units, and zero biases."""
    bound = math.sqrt(6 / (layer.weight[0].numel() + len(layer.weight)))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def perceptron(features: int, hidden: Hidden, seed: int) -> nn.Module:
    """Build a perceptron with 100 hidden units in the form `hidden`; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = glorot(nn.Linear(features, 100)), glorot(nn.Linear(100, 1))
    return nn.Sequential(hidden(first), last)


def convolutional(channels: int, hidden: Hidden, seed: int, widths: tuple[int, ...] = (16, 32)) -> nn.Module:
    """Build a network of 3x3 convolutions in the form `hidden`, each before a 2x2 pooling, for 16x16 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convs = [glorot(nn.Conv2d(a, b, 3, padding=1)) for a, b in pairwise([channels, *widths])]
        last = glorot(nn.Linear(widths[-1] * (16 >> len(widths)) ** 2, 10))
    stages = [part for conv in convs for part in (hidden(conv), nn.MaxPool2d(2))]
    return nn.Sequential(*stages, nn.Flatten(), last)


def levy(x: Tensor) -> Tensor:
    """Return the Levy function, sin^2(pi w) + (w - 1)^2 (1 + sin^2(2 pi w)) with w = 1 + (x - 1) / 4."""
    w = 1 + (x - 1) / 4
    return (math.pi * w).sin() ** 2 + (w - 1) ** 2 * (1 + (2 * math.pi * w).sin() ** 2)


def levy_split(seed: int, train: int = 120) -> Split:
    """Draw `train` points from [-10, 10] with noise of deviation 0.1, to be tested on a noiseless grid."""
    generator = torch.Generator().manual_seed(seed)
    x, grid = 20 * torch.rand(train, 1, generator=generator) - 10, torch.linspace(-10, 10, 201)[:, None]
    y = levy(x) + 0.1 * torch.randn(train, 1, generator=generator)
    mean, std = float(y.mean()), float(y.std())
    return Split(x, (y - mean) / std, grid, (levy(grid) - mean) / std, 0, "levy", mean, std)


def _held_out(split: Split, share: float = 1 / 6) -> Split:
    """Return the training part cut in two: its last sixth is the test part now."""
    cut = len(split.x_train) - round(share * len(split.x_train))
    return replace(
        split,
        x_train=split.x_train[:cut],
        y_train=split.y_train[:cut],
        x_test=split.x_train[cut:],
        y_test=split.y_train[cut:],
    )


@torch.no_grad()
def _test_error(model: nn.Module, split: Split) -> float:
    """Return the root mean squared error, or the share of wrong labels."""
    outputs = model.eval()(split.x_test)
    if split.num_classes:
        return float((outputs.argmax(1) != split.y_test).float().mean())
    return float((outputs - split.y_test).square().mean().sqrt())


def _tasks(budget: Budget, seed: int) -> dict[str, tuple[Split, Callable[..., nn.Module], int, int]]:
    """Return for each task its split, its network, the steps, and the batch."""
    cifar = images("cifar10", train=4000, test=budget.pick(quick=2000, full=5000), size=16, seed=seed)
    return {
        "levy": (levy_split(seed), perceptron, budget.pick(quick=1000, full=10000), 100),
        "diabetes": (table("diabetes", split=seed % 20), perceptron, budget.pick(quick=300, full=3000), 64),
        "concrete": (table("concrete", split=seed % 20), perceptron, budget.pick(quick=600, full=6000), 64),
        "cifar10": (cifar, convolutional, budget.pick(quick=208, full=4160), 64),
    }


def compare(hidden: Hidden, budget: Budget, seed: int) -> dict[str, float]:
    """Train every method at every rate on every task and return the figures of the claim, ours being `hidden`."""
    figures: dict[str, float] = {"tasks_among_best_two": 0.0, "diverged_alone": 0.0}
    speed = []
    for task, (split, network, steps, batch) in _tasks(budget, seed).items():
        best: dict[str, tuple[float, float]] = {}
        diverged: dict[str, bool] = {}
        for method, form in {**BASELINES, "ours": hidden}.items():
            runs = []
            for rate in RATES:
                model = network(split.x_train.shape[1], form, seed)
                result = fit(
                    model, _held_out(split), steps=steps, batch=batch, lr=rate, schedule="cosine", seed=seed
                )
                runs.append((_validation(result), _test_error(model, split), _mean_loss(result)))
                diverged[method] = result.diverged
            best[method] = min(runs, key=lambda run: run[0])[1:]
        error = {method: found[0] for method, found in best.items()}
        figures["tasks_among_best_two"] += error["ours"] <= sorted(error[b] for b in BASELINES)[1]
        figures["diverged_alone"] += diverged["ours"] and not diverged["sp"]
        figures[f"{task}_error_over_sp"] = error["ours"] / error["sp"]
        speed.append(math.log(best["ours"][1] / best["sp"][1]))
    return {**figures, "training_loss_over_sp": math.exp(sum(speed) / len(speed))}


def _validation(result: Result) -> float:
    loss = result.metrics["loss"]
    return math.inf if math.isnan(loss) else loss


def _mean_loss(result: Result) -> float:
    return sum(point["train_loss"] for point in result.curve) / len(result.curve)

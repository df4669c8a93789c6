"""One image classifier in two layouts, deep and broad, trained side by side from the same weights."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from workingpapers.data import images
from workingpapers.tasks import Budget, fit, initialise

Layout = Callable[[Sequence[nn.Module]], nn.Module]
Activation = Callable[[], nn.Module]


def conv_layer(
    channels: int, kernel: int, activation: Activation, norm: bool = False, scale: float = 1.0
) -> nn.Sequential:
    """Build a convolution that keeps width and size, batch normalisation where asked for, and an activation.

    `scale` multiplies the initial weights, such as 1 / sqrt(layers).
    """
    conv = nn.Conv2d(channels, channels, kernel, padding="same")
    with torch.no_grad():
        conv.weight.mul_(scale)
    return nn.Sequential(conv, *([nn.BatchNorm2d(channels)] if norm else []), activation())


def determination(samples: int, outputs: int, parameters: int) -> float:
    """Return Q = K M / P, how many equations there are to a parameter: K samples of M outputs."""
    return samples * outputs / parameters


def grid(budget: Budget) -> Iterator[dict[str, Any]]:
    """Give the settings of the pairs: data, layers, filters, activation and learning rate."""
    filters, kernels = budget.pick(quick=((8,), (3,)), full=((8, 16), (3,)))
    rates = budget.pick(quick=(3e-3, 1e-2), full=(1e-3, 3e-3))  # few steps want larger ones
    for data, layers, channels, kernel, activation, lr in product(
        ("mnist", "cifar10"), (2, 4, 8), filters, kernels, (nn.Tanh, nn.ReLU), rates
    ):
        setting = {"data": data, "layers": layers, "channels": channels, "kernel": kernel}
        yield {**setting, "activation": activation, "lr": lr}


def compare_layouts(
    budget: Budget,
    seed: int,
    sequential: Layout,
    parallel: Layout,
    *,
    data: str,
    layers: int,
    channels: int,
    kernel: int,
    activation: Activation,
    lr: float,
) -> dict[str, dict[str, float]]:
    """Return the metrics of both layouts of a classifier, trained alike: stem, layers, 4x4 means, linear map.

    Beside the metrics of `fit` there are `steps_to_converge`, the first measured step with a validation loss
    within 5 % of the run's best, and `determination`.
    """
    full = {"mnist": (8000, 28), "cifar10": (6000, 32)}[data]
    train, size = budget.pick(quick=(960, 8 if data == "cifar10" else 7), full=full)
    split = images(data, train, budget.pick(quick=500, full=2000), size, seed)

    def build(layout: Layout) -> nn.Module:
        stem = nn.Conv2d(split.x_train.shape[1], channels, 3, padding=1)
        stack = [conv_layer(channels, kernel, activation, scale=layers**-0.5) for _ in range(layers)]
        return nn.Sequential(
            stem, layout(stack), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 10)
        )

    found = {}
    for name, layout in (("sequential", sequential), ("parallel", parallel)):
        model = initialise(lambda layout=layout: build(layout), seed)  # type: ignore[misc]
        run = fit(model, split, epochs=4, lr=lr, batch=64, seed=seed)
        best = min(point["loss"] for point in run.curve)
        reached = next((p["step"] for p in run.curve if p["loss"] <= 1.05 * best), float("nan"))
        parameters = sum(p.numel() for p in model.parameters())
        found[name] = run.metrics | {
            "steps_to_converge": reached,
            "determination": determination(train, 10, parameters),
        }
    return found

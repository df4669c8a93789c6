"""How each task is set up under a budget: its data, its model, and how long it trains.

A setup takes (data set, budget, seed, variables).  A variable that is None is decided by the budget.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workingpapers import data
from workingpapers.tasks.budget import Budget
from workingpapers.tasks.forecasters import MLPForecaster
from workingpapers.tasks.forecasting import Forecasting
from workingpapers.tasks.graphs import GCN, NodeClassification
from workingpapers.tasks.language import LanguageModelling
from workingpapers.tasks.models import cnn, mlp, residual_cnn
from workingpapers.tasks.problems import Problem, supervised
from workingpapers.tasks.transformers import char_gpt

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """A problem, a function that builds the model for it, and the length of training in epochs or steps."""

    problem: Problem
    build: Callable[[], nn.Module]
    epochs: int | None = None
    steps: int | None = None


def _images(name: str, budget: Budget) -> data.Split:
    """Load what a budget affords: all of the set, or 4,000 images (cifar10 pooled to 16x16)."""
    if name == "digits" or budget.name == "full":
        return data.images(name)
    if name == "cifar10":
        return data.images(name, train=4000, test=2000, size=16)
    return data.images(name, train=4000, test=2000)


def image_mlp(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a perceptron on images."""
    split = _images(name, budget)
    small = name == "digits"
    width = values["width"] or (64 if small else budget.pick(quick=128, full=512))
    sizes = [split.x_train[0].numel(), *[width] * values["depth"], split.num_classes]
    epochs = values["epochs"] or budget.pick(quick=20 if small else 8, full=100 if small else 30)
    return Setup(
        supervised(split),
        lambda: mlp(sizes, values["activation"], values["norm"], values["dropout"]),
        epochs=epochs,
    )


def image_cnn(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a plain convolutional network on images."""
    split = _images(name, budget)
    small = name == "digits"
    width = values["width"] or budget.pick(quick=16, full=16 if small else 32)
    widths = [width * 2**i for i in range(values["depth"])]
    channels, size = split.x_train.shape[1:3]
    epochs = values["epochs"] or budget.pick(quick=10 if small else 3, full=60 if small else 30)
    return Setup(
        supervised(split),
        lambda: cnn(channels, split.num_classes, widths, values["activation"], size),
        epochs=epochs,
    )


def image_resnet(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a residual network with three stages on images."""
    split = _images(name, budget)
    width = values["width"] or budget.pick(quick=16, full=64)
    blocks = values["depth"] or budget.pick(quick=1, full=2)
    channels = split.x_train.shape[1]
    return Setup(
        supervised(split),
        lambda: residual_cnn(
            channels,
            split.num_classes,
            (width, 2 * width, 4 * width),
            blocks,
            values["activation"],
            values["norm"],
        ),
        epochs=values["epochs"] or budget.pick(quick=4, full=60),
    )


def table_mlp(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a perceptron on a table; where `split` is None the seed picks it, so seeds differ in it too."""
    split = data.table(name, seed % 20 if values["split"] is None else values["split"])
    outputs = split.num_classes or 1
    sizes = [split.x_train.shape[1], *[values["width"]] * values["depth"], outputs]
    return Setup(
        supervised(split),
        lambda: mlp(sizes, values["activation"], values["norm"], values["dropout"]),
        steps=values["steps"] or budget.pick(quick=1000, full=20_000),
    )


def sine_mlp(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a perceptron that fits sin(frequency pi x) on [-1, 1] from 512 points, held out between them."""
    grid = torch.linspace(-1, 1, 1023).unsqueeze(1)
    wave = torch.sin(values["frequency"] * math.pi * grid)
    split = data.Split(grid[::2], wave[::2], grid[1::2], wave[1::2], 0, name)
    sizes = [1, *[values["width"]] * values["depth"], 1]
    return Setup(
        supervised(split),
        lambda: mlp(sizes, values["activation"]),
        steps=values["steps"] or budget.pick(quick=1000, full=20_000),
    )


def language_gpt(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a small GPT on a text; wikitext2 keeps 1,000 words under the quick budget."""
    by_words = name == "wikitext2"
    text = data.text(name, budget.pick(quick=1000, full=None) if by_words else None)
    steps = budget.pick(quick=400 if by_words else 600, full=1000 if by_words else 4000)
    width = values["width"] or budget.pick(quick=64, full=256)
    depth = values["depth"] or budget.pick(quick=2, full=4)
    context = values["context"] or budget.pick(quick=64, full=256)
    return Setup(
        LanguageModelling(text, context, budget.pick(quick=10_000, full=100_000)),
        lambda: char_gpt(
            len(text.vocabulary),
            width,
            depth,
            values["heads"],
            context,
            values["activation"],
            values["mixer"],
        ),
        steps=values["steps"] or steps,
    )


def graph_gcn(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a graph convolutional network on a citation graph."""
    graph = data.graph(name)
    features = graph.x.shape[1]
    return Setup(
        NodeClassification(graph, sparse=True),
        lambda: GCN(
            features,
            graph.num_classes,
            values["width"],
            values["depth"],
            values["activation"],
            values["dropout"],
        ),
        steps=values["steps"] or budget.pick(quick=60, full=200),
    )


def series_mlp(name: str, budget: Budget, seed: int, values: Values) -> Setup:
    """Set up a forecaster of each channel from its own past."""
    length = values["length"] or budget.pick(quick=96, full=336)
    horizon = values["horizon"] or budget.pick(quick=24, full=96)
    return Setup(
        Forecasting(data.series(name), length, horizon, stride=budget.pick(quick=8, full=1)),
        lambda: MLPForecaster(length, horizon, values["width"], values["depth"], values["activation"]),
        steps=values["steps"] or budget.pick(quick=400, full=5000),
    )

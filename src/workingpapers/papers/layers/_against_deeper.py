"""What a changed residual sum brings, against a whole further layer: losses, accuracies and times of a step."""

import statistics
import timeit
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from workingpapers.data import images, text
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise, residual_cnn
from workingpapers.tasks.models import ResidualBlock

Variants = Mapping[str, Callable[[nn.Module], nn.Module]]  # each gives the changed model


def parameters(model: nn.Module) -> int:
    """Return how many trainable numbers the model has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def step_times(
    models: dict[str, nn.Module], loss: Callable[[nn.Module], Tensor], rounds: int
) -> dict[str, float]:
    """Return the median seconds of a forward and backward pass of each model, the models taking turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            times[name].append(timeit.timeit(lambda m=model: loss(m).backward(), number=1))  # type: ignore[misc]
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def language_losses(
    budget: Budget, seed: int, variants: Variants, *, deeper: bool
) -> tuple[dict[str, float], dict[str, int]]:
    """Return validation losses and sizes on tinyshakespeare of a 4-layer GPT, of 5 layers, and of variants."""
    corpus, dim = text("tinyshakespeare"), budget.pick(quick=48, full=96)
    context, steps = budget.pick(quick=32, full=64), budget.pick(quick=200, full=600)

    def gpt(depth: int) -> nn.Module:
        return initialise(lambda: char_gpt(len(corpus.vocabulary), dim, depth, 4, context), seed)

    every = {"baseline": gpt(4), **({"deeper": gpt(5)} if deeper else {})}
    every |= {name: change(gpt(4)) for name, change in variants.items()}
    problem = LanguageModelling(corpus, context, budget.pick(quick=20_000, full=100_000))
    how: dict[str, Any] = {
        "lr": 3e-3,
        "batch": 16,
        "schedule": "warmup_cosine",
        "steps": steps,
        "every": steps,
    }
    losses = {name: fit(m, problem, seed=seed, **how).metrics["loss"] for name, m in every.items()}
    return losses, {name: parameters(model) for name, model in every.items()}


def image_accuracies(budget: Budget, seed: int, variants: Variants) -> dict[str, float]:
    """Return test accuracies on Fashion-MNIST of a ResNet of 6 blocks, of 7 blocks, and of variants."""
    train, test, size = budget.pick(quick=(1000, 2000, 14), full=(20000, 10000, 28))
    split = images("fashion_mnist", train, test, size, seed)

    def resnet(extra: bool = False) -> nn.Module:
        layers = list(residual_cnn(1, 10, (8, 16, 32), 2))
        return nn.Sequential(*layers[:-3], *[ResidualBlock(32, 32, 1, nn.ReLU, True)] * extra, *layers[-3:])

    every = {"baseline": initialise(resnet, seed), "deeper": initialise(lambda: resnet(True), seed)}
    every |= {name: change(initialise(resnet, seed)) for name, change in variants.items()}
    epochs = budget.pick(quick=3, full=10)
    return {
        name: fit(m, split, epochs=epochs, lr=2e-3, seed=seed).metrics["accuracy"]
        for name, m in every.items()
    }

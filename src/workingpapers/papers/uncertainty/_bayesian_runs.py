"""Bayesian regression networks in training, against Monte Carlo, and against the clock."""

import math
import statistics
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.data import Split, table
from workingpapers.kernels import fusing
from workingpapers.papers.uncertainty._moments import MODES, Moments, gate, moments
from workingpapers.tasks import Budget, fit, initialise
from workingpapers.tasks.problems import Regression

Scores = tuple[float, float]  # negative log likelihood of a test target, root mean squared error


def wave(seed: int, train: int = 400, test: int = 400) -> Split:
    """Return y = sin 3x + x noise, x uniform in [-1, 1] and noise standard normal, standardised by its scale."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(train + test, 1, generator=generator) - 1
    y = torch.sin(3 * x) + x * torch.randn(x.shape, generator=generator)
    mean, std = float(y[:train].mean()), float(y[:train].std())
    y = (y - mean) / std
    return Split(x[:train], y[:train], x[train:], y[train:], 0, "wave", mean, std)


class Bound(Regression):
    """Training by the evidence bound; measured is the Gaussian likelihood of the predicted mean and variance."""

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the model's negative evidence bound per sample."""
        bound: Tensor = model.loss(*batch, len(self.split.x_train))
        return bound

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the mean negative log likelihood and the error, of standardised targets."""
        with torch.no_grad():
            mean, var = model.predict(self.split.x_test)
        gap = self.split.y_test - mean
        nll = 0.5 * (math.log(2 * math.pi) + var.log() + gap.square() / var)
        mse = float(gap.square().mean())
        return {"loss": float(nll.mean()), "mse": mse, "rmse": math.sqrt(mse)}


def regression(
    build: Callable[[int, str], nn.Module], budget: Budget, seed: int, modes: Sequence[str]
) -> dict[str, dict[str, Scores]]:
    """Train `build(inputs, mode)` on three sets in every mode; return the test scores, in standardised units.

    Adam at 5e-3 with a cosine schedule, the same batches and initial weights for all modes.
    """
    epochs = budget.pick(quick=1, full=10)
    sets = {
        "diabetes": (table("diabetes", seed % 20), 40),
        "concrete": (table("concrete", seed % 20), 40),
        "wave": (wave(seed), 60),
    }
    found: dict[str, dict[str, Scores]] = {}
    for name, (split, times) in sets.items():
        found[name] = {}
        for mode in modes:
            model = initialise(partial(build, split.x_train.shape[1], mode), seed)
            run = fit(
                model, Bound(split, None), epochs=epochs * times, lr=5e-3, batch=32, seed=seed, schedule="cosine",
                every=10**6,
            )  # fmt: skip
            found[name][mode] = run.metrics["loss"], run.metrics["rmse"]
    return found


def activation_times(modes: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of an activation call by mode, the modes taking turns.

    "diagonal" is on 2^20 means and variances, "covariance" on 16 examples of 256 units; all operation by
    operation, since only the gate's formulas could be fused.
    """
    generator = torch.Generator().manual_seed(0)
    mean, root = torch.randn(16, 256, generator=generator), torch.randn(16, 256, 256, generator=generator)
    wide = torch.randn(2, 2**10, 2**10, generator=generator)
    inputs = {
        "diagonal": Moments(wide[0], wide[1].square()),
        "covariance": Moments(mean, root @ root.mT / 256),
    }
    found = {}
    with torch.no_grad(), fusing("never"):
        for name, x in inputs.items():
            calls = [partial(MODES[mode], x) for mode in modes]
            rows = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)][1:]
            found[name] = dict(zip(modes, map(statistics.median, zip(*rows, strict=True)), strict=True))
    return found


@torch.no_grad()
def monte_carlo(net: Any, full: bool, draws: int, seed: int, batch: int = 20_000) -> tuple[float, float]:
    """Return the largest errors of a network's propagated mean and variance for a patient of the diabetes set.

    Drawn are the weights of all layers and, in mode "mask", masks of the propagated probabilities; the errors
    are in units of the outputs' root mean square and of their mean variance.
    """
    x = table("diabetes").x_test[seed % 20].double()
    layers = list(net.double().layers)
    stages = [moments(x, full)]
    for layer in layers:
        stages.append(layer(stages[-1]))
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for _ in range(draws // batch):
        z = x.expand(batch, -1)
        for layer, stage in zip(layers, stages, strict=False):
            if hasattr(layer, "weight_log_std"):
                z = affine_draws(layer, z, generator)
            else:
                p = gate(stage.mean, stage.diagonal)
                z = z * (torch.rand(z.shape, generator=generator, dtype=z.dtype) < p)
        outputs.append(z)
    drawn, found = torch.cat(outputs), stages[-1]
    scale = drawn.square().mean().sqrt()
    mean = float(((drawn.mean(0) - found.mean).abs() / scale).max())
    return mean, float((drawn.var(0) - found.diagonal).abs().max() / drawn.var(0).mean())


def affine_draws(layer: Any, z: Tensor, generator: torch.Generator) -> Tensor:
    """Return W z + b for rows z (N, in), each with its own draw of W and b.

    Given z, the outputs are independent Gaussians of mean m z and variance s^2 z^2 + s_b^2, which are drawn.
    """
    mean = z @ layer.weight.T + layer.bias
    var = z.square() @ (2 * layer.weight_log_std).exp().T + (2 * layer.bias_log_std).exp()
    drawn: Tensor = mean + var.sqrt() * torch.randn(mean.shape, generator=generator, dtype=z.dtype)
    return drawn

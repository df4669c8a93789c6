"""How many samples a network can fit: training to a minimum, the search for the largest number, labels to fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.engines.spectra import hessian, smallest
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.tasks import cnn, initialise, mlp, vit
from workingpapers.tasks.training import Training, points

Build = Callable[[], nn.Module]
LABELLINGS = ("correct", "random", "random_inputs", "shuffled_pixels")
KINDS = ("mlp", "cnn", "vit")
LEAST = 1000  # updates
GRADIENT, CHANGE, WINDOW, CURVATURE = (
    1e-3,
    1e-4,
    10,
    -1e-3,
)  # gradient norm, loss over epochs, least eigenvalue


def labelled(x: Tensor, y: Tensor, classes: int, labelling: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs (N, ...) and labels (N,) under a labelling.

    "correct" as they are; "random" labels, all classes alike; "random_inputs", standard normal; "shuffled_pixels",
    one random order of the inputs' entries for all.
    """
    generator = torch.Generator().manual_seed(seed)
    if labelling == "correct":
        return x, y
    if labelling == "random":
        return x, torch.randint(classes, (len(y),), generator=generator)
    if labelling == "random_inputs":
        return torch.randn(x.shape, generator=generator).to(x), y
    if labelling == "shuffled_pixels":
        order = torch.randperm(x[0].numel(), generator=generator)
        return x.flatten(1)[:, order].reshape(x.shape), y
    raise unknown("labelling", labelling, LABELLINGS)


def matched(
    kind: str, parameters: int, size: int, classes: int = 10, activation: Callable[[], nn.Module] = nn.ReLU
) -> Build:
    """Return the builder of a network for size x size grey images whose count of parameters is nearest to a number.

    "mlp" with one hidden layer, "cnn" with two convolutions of w and 2 w channels, "vit" with one block, two heads
    and patches of half the side.
    """

    def built(width: int) -> nn.Module:
        if kind == "mlp":
            return mlp([size * size, width, classes], activation)
        if kind == "cnn":
            return cnn(1, classes, (width, 2 * width), activation, size=size)
        return vit(1, size, size // 2, classes, 2 * width, 1, 2, activation=activation)

    if kind not in KINDS:
        raise unknown("sort of network", kind, KINDS)
    best, last = 1, float("inf")
    for width in range(1, 10_000):
        count = sum(p.numel() for p in initialise(lambda w=width: built(w), 0).parameters())  # type: ignore[misc]
        if abs(count - parameters) > last:
            break
        best, last = width, abs(count - parameters)
    return lambda: built(best)


@dataclass(frozen=True)
class Recipe:
    """How to train: optimizer by `tasks.fit`'s names or a function of (parameters, lr), and for how long.

    "gd" is full-batch gradient descent with sgd's momentum of 0.9.  Learning rates `lrs` are tried in turn until
    one fits.  `steps` limits the updates, else `epochs` do, of which small sets have more to make 1,000 updates.
    `loss` is "cross_entropy" or "mse" (on one-hot targets).
    """

    optimizer: Any = "sgd"
    lrs: tuple[float, ...] = (0.1,)
    batch: int = 64
    epochs: int = 300
    steps: int | None = None
    loss: str = "cross_entropy"

    def criterion(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of outputs (N, classes) and labels (N,)."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(outputs, y)
        if self.loss == "mse":
            return F.mse_loss(outputs, F.one_hot(y, outputs.shape[1]).to(outputs))
        raise unknown("loss", self.loss, ("cross_entropy", "mse"))


@dataclass(frozen=True)
class Trial:
    """One training from scratch on `samples`: whether it fitted all and ended in a minimum, and how far it came.

    `curvature` is the smallest eigenvalue of the Hessian, nan where the training never came to be checked.
    """

    samples: int
    fits: bool
    accuracy: float
    steps: int
    curvature: float = float("nan")


def converged(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, losses: Sequence[float]
) -> float | None:
    """Return the Hessian's smallest eigenvalue where the model is at a stationary point, else None.

    Stationary: the gradient's norm is below 1e-3, or the loss changed by less than 1e-4 over `losses`, the values
    of the last ten epochs or more.
    """
    slope = float(hessian(model, recipe.criterion, [(x, y)]).gradient().norm())
    still = len(losses) > 1 and max(losses) - min(losses) < CHANGE
    if slope >= GRADIENT and not still:
        return None
    return smallest(model, recipe.criterion, [(x, y)], tolerance=1e-2, most=60)


def trial(build: Build, x: Tensor, y: Tensor, recipe: Recipe, seed: int = 0) -> Trial:
    """Train from scratch until every sample is right at a minimum, or the recipe's length is over.

    A minimum is a stationary point whose Hessian has no eigenvalue below -1e-3.
    """
    best = Trial(len(x), False, 0.0, 0)
    for lr in recipe.lrs:
        found = _trained(build, x, y, recipe, lr, seed)
        if found.fits:
            return found
        best = max(best, found, key=lambda t: t.accuracy)
    return best


def _trained(build: Build, x: Tensor, y: Tensor, recipe: Recipe, lr: float, seed: int) -> Trial:
    whole = recipe.optimizer == "gd"
    batch = len(x) if whole else min(recipe.batch, len(x))
    epoch = max(len(x) // batch, 1)
    total = max(recipe.epochs * epoch, LEAST) if recipe.steps is None else recipe.steps
    every = max(epoch, -(-total // 50))
    model = initialise(build, seed)
    how = Training(
        steps=total, lr=lr, optimizer="sgd" if whole else recipe.optimizer, batch=batch, seed=seed,
        loss=recipe.criterion, every=every,
    )  # fmt: skip
    classes = int(y.max()) + 1
    losses: list[float] = []
    accuracy, step, rest = 0.0, 0, 0
    length = wait = max(1, -(-WINDOW * epoch // every))  # measurements in ten epochs
    for point in points(model, Split(x, y, x, y, classes, "samples"), how):
        accuracy, step = point["accuracy"], int(point["step"])
        if not accuracy >= 0:  # diverged
            return Trial(len(x), False, 0.0, step)
        losses.append(point["loss"])
        rest -= 1
        if accuracy == 1.0 and rest <= 0:
            curvature = converged(model, x, y, recipe, losses[-length - 1 :] if len(losses) > length else [])
            if curvature is not None and curvature >= CURVATURE:
                return Trial(len(x), True, 1.0, step, curvature)
            if curvature is not None:
                rest = wait = 2 * wait  # a saddle is not left at once, and eigenvalues are dear
    return Trial(len(x), False, accuracy, step)


def largest(
    succeeds: Callable[[int], bool], start: int, most: int, tolerance: float = 0.05, growth: float = 1.5
) -> int:
    """Return the largest number up to `most` that succeeds, 0 where none does: growing first, then halving.

    From `start`, success multiplies by `growth`, failure halves the bracket, until it is within `tolerance`.
    """
    if not 1 <= start <= most or growth <= 1 or tolerance < 0:
        raise WorkingPapersError(
            f"a search needs 1 <= start <= most, growth above 1 and tolerance >= 0; got {start}, {most}, {growth}, "
            f"{tolerance}"
        )
    low, high, n = 0, most + 1, start
    while True:
        if succeeds(n):
            low = n
        else:
            high = n
        if low == most or (high <= most and high - low <= max(1, tolerance * low)):
            return low
        n = min(max(int(low * growth), low + 1), most) if high > most else (low + high) // 2


@dataclass(frozen=True)
class Capacity:
    """The effective model complexity: the most `samples` fitted, against `parameters`, and all trials by number."""

    samples: int
    parameters: int
    trials: dict[int, Trial]

    @property
    def ratio(self) -> float:
        """Samples a parameter."""
        return self.samples / self.parameters


def emc(
    build: Build,
    x: Tensor,
    y: Tensor,
    recipe: Recipe | None = None,
    start: int = 50,
    tolerance: float = 0.05,
    seed: int = 0,
) -> Capacity:
    """Return how many of the samples `x` (N, ...), `y` (N,), the first so many, a network can be trained to fit.

    Args:
        build: makes the network with random weights, (n, ...) -> (n, classes).
        recipe: the training; by default SGD at 0.1, batches of 64, 300 epochs.
        start: samples of the first trial.
        tolerance: the bracket's width, relative, at which to stop.
        seed: decides weights and order; the same in every trial.
    """
    recipe, trials = recipe or Recipe(), {}

    def succeeds(n: int) -> bool:
        trials[n] = trial(build, x[:n], y[:n], recipe, seed)
        return trials[n].fits

    samples = largest(succeeds, min(start, len(x)), len(x), tolerance)
    parameters = sum(p.numel() for p in initialise(build, seed).parameters())
    return Capacity(samples, parameters, dict(sorted(trials.items())))

"""The training loop, written once: every task and every claim trains by it."""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.tasks.problems import Batch, Loss, Problem, supervised
from workingpapers.tasks.randomness import OwnRandomness, stream

Point = dict[str, float]
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], Optimizer]
Schedule = Callable[[float], float]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params, lr, weight_decay: torch.optim.SGD(
        params, lr, momentum=0.9, weight_decay=weight_decay
    ),
    "adam": lambda params, lr, weight_decay: torch.optim.Adam(params, lr, weight_decay=weight_decay),
    "adamw": lambda params, lr, weight_decay: torch.optim.AdamW(params, lr, weight_decay=weight_decay),
}


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _warmup_cosine(done: float, warmup: float = 0.05) -> float:
    return (
        (done + 0.1 * warmup) / (1.1 * warmup) if done < warmup else _cosine((done - warmup) / (1 - warmup))
    )


SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "cosine": _cosine,
    "linear": lambda done: 1.0 - done,
    "warmup_cosine": _warmup_cosine,
}


@dataclass(frozen=True)
class Result:
    """What a training run came to: the last point's numbers, all points, and the seconds it took."""

    metrics: dict[str, float]
    curve: list[Point]
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the loss became NaN or infinite, which ended the run."""
        return any(math.isnan(value) for value in self.metrics.values())


def fit(
    model: nn.Module,
    split: Split | Problem,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 1e-3,
    optimizer: str | MakeOptimizer = "adam",
    batch: int = 64,
    seed: int = 0,
    loss: Loss | None = None,
    device: str | torch.device = "cpu",
    schedule: str | Schedule | None = None,
    every: int | None = None,
    weight_decay: float = 0.0,
) -> Result:
    """Train `model` in place on `split` and measure it on the test part; the same seed gives the same bits.

    Give `epochs` or `steps`.  `split` is a `Split` (classification, or regression where it has no classes)
    or a problem of `workingpapers.tasks.problems` (language modelling, forecasting, graphs).  `optimizer` is
    "sgd" (momentum 0.9), "adam", "adamw", or a function (parameters, lr) -> Optimizer; one whose `step`
    demands a closure gets one.  `loss` maps (outputs, targets) to a scalar; default cross-entropy or mean
    squared error.  `schedule` is "cosine", "linear", "warmup_cosine" or a function from the fraction done to
    a factor of the learning rate.  The test part is measured `every` so many steps (default: each epoch, or
    ten times).  `seed` decides the order of the data and the draws of dropout, never torch's global state.

    The model moves to `device` and is left in evaluation mode.  A loss that is NaN or infinite ends the run
    and makes every metric NaN.  Classification measures loss and accuracy; regression loss, mse and rmse (of
    the targets' own units); each point has also `train_loss`, the mean over the steps since the last point.
    """
    start = time.perf_counter()
    training = Training(
        epochs, steps, lr, optimizer, batch, seed, loss, device, schedule, every, weight_decay
    )
    curve = list(points(model, split, training))
    metrics = {name: value for name, value in curve[-1].items() if name != "step"}
    return Result(metrics, curve, time.perf_counter() - start)


@dataclass(frozen=True)
class Training:
    """How to train: the options of `fit` in one piece."""

    epochs: int | None = None
    steps: int | None = None
    lr: float = 1e-3
    optimizer: str | MakeOptimizer = "adam"
    batch: int = 64
    seed: int = 0
    loss: Loss | None = None
    device: str | torch.device = "cpu"
    schedule: str | Schedule | None = None
    every: int | None = None
    weight_decay: float = 0.0


def points(model: nn.Module, split: Split | Problem, how: Training) -> Iterator[Point]:
    """Train as `fit` does, giving each point of the learning curve as it is reached."""
    device = torch.device(how.device)
    _check(how)
    problem = _problem(split, how.loss).to(device)
    total, every = _lengths(how, problem.steps_per_epoch(how.batch))
    model.to(device)
    optimizer = _optimizer(how, model)
    factor = _schedule(how.schedule)
    rates = [group["lr"] for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(stream(how.seed, "order"))
    batches = chain.from_iterable(problem.batches(how.batch, order) for _ in repeat(None))
    own = OwnRandomness(stream(how.seed, "training"), device)
    step, last = 0, 0.0
    while step < total and math.isfinite(last):
        losses: list[float] = []
        end = min(step + every, total)
        with own.stretch():
            model.train()
            while step < end and math.isfinite(last):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor(step / total)
                last = _update(model, problem, next(batches), optimizer)
                losses.append(last)
                step += 1
            model.eval()
            measured = _measure(model, problem, losses)
        yield {"step": step, **measured}


def _update(model: nn.Module, problem: Problem, batch: Batch, optimizer: Optimizer) -> float:
    """Take one step and return the loss before it."""

    def closure() -> Any:
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    if _demands_closure(optimizer):
        return float(torch.as_tensor(optimizer.step(closure)).detach())
    loss = float(closure().detach())
    if math.isfinite(loss):
        optimizer.step()
    return loss


def _measure(model: nn.Module, problem: Problem, losses: list[float]) -> dict[str, float]:
    if not math.isfinite(losses[-1]):
        return dict.fromkeys((*problem.metrics, "train_loss"), math.nan)
    with torch.no_grad():
        return {**problem.evaluate(model), "train_loss": sum(losses) / len(losses)}


def _problem(split: Split | Problem, loss: Loss | None) -> Problem:
    if isinstance(split, Split):
        return supervised(split, loss)
    if not isinstance(split, Problem):
        raise WorkingPapersError(
            f"a model is fitted to a Split, such as images('digits'), or to a problem; got {type(split).__name__}"
        )
    if loss is not None:
        raise WorkingPapersError(f"`loss` goes with a Split; give it to {type(split).__name__}(...) instead")
    return split


def _check(how: Training) -> None:
    """Raise one sentence if the length of training does not make sense."""
    if (how.epochs is None) == (how.steps is None):
        raise WorkingPapersError("give either `epochs` or `steps` to say how long to train")
    for name in ("epochs", "steps", "batch", "every"):
        value = getattr(how, name)
        if value is not None and value < 1:
            raise WorkingPapersError(f"`{name}` is a count of at least 1; got {value}")


def _lengths(how: Training, per_epoch: int) -> tuple[int, int]:
    """Return how many steps to take, and how many between two measurements."""
    if how.epochs is not None:
        return how.epochs * per_epoch, how.every or per_epoch
    total = how.steps or 0
    return total, how.every or math.ceil(total / 10)


def _optimizer(how: Training, model: nn.Module) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise WorkingPapersError(f"{type(model).__name__} has no parameters to train")
    if callable(how.optimizer):
        return how.optimizer(parameters, how.lr)
    if how.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", how.optimizer, OPTIMIZERS)
    return OPTIMIZERS[how.optimizer](parameters, how.lr, how.weight_decay)


def _schedule(schedule: str | Schedule | None) -> Schedule:
    if callable(schedule):
        return schedule
    name = schedule or "constant"
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name]


def _demands_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty

"""Training with large batches: learning rates and warm-up that follow the batch, and accumulated gradients."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.tasks import fit, initialise

RULES = {"sqrt": 0.5, "linear": 1.0, "constant": 0.0}


def scaled_lr(lr: float, batch: int, base_batch: int, rule: str = "sqrt") -> float:
    """Return `lr`, tuned at `base_batch`, for `batch`: times the ratio's root ('sqrt') or the ratio ('linear')."""
    if rule not in RULES:
        raise unknown("rule for the learning rate", rule, RULES)
    return lr * float((batch / base_batch) ** RULES[rule])


def warmup_share(share: float, batch: int, base_batch: int) -> float:
    """Return which share of training warms up at `batch`: in proportion to the batch, but at most half."""
    return min(share * batch / base_batch, 0.5)


def warmup_then_decay(warmup: float, power: float = 1.0) -> Callable[[float], float]:
    """Return a schedule, a function of the share of training done: linear up, then polynomial down to 0."""

    def factor(done: float) -> float:
        return done / warmup if done < warmup else ((1 - done) / (1 - warmup)) ** power

    return factor


class Accumulated(Optimizer):
    """An optimizer that steps once in `count` calls, by the mean of the gradients of those calls.

    So small batches emulate one that memory could not hold; a rest smaller than `count` is never used.
    """

    def __init__(self, inner: Optimizer, count: int) -> None:
        if count < 1:
            raise WorkingPapersError(f"gradients are accumulated over at least 1 batch; got {count}")
        super().__init__(
            inner.param_groups, {}
        )  # the same dictionaries, so that schedules reach the inner ones
        self.inner, self.count, self.calls = inner, count, 0
        self.sums: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Add the gradients up, and every `count` calls take a step with their mean."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in parameters:
            self.sums[p] = p.grad / self.count + self.sums.get(p, 0.0)
        self.calls += 1
        if self.calls % self.count == 0:
            for p, total in self.sums.items():
                p.grad = total
            self.inner.step()
            self.sums.clear()
        return loss


@dataclass(frozen=True)
class Recipe:
    """An optimizer as `make` (parameters, lr), the rates to try at the base batch, and the rule beyond it."""

    make: Callable[[Iterable[nn.Parameter], float], Optimizer]
    rates: Sequence[float]
    rule: str = "sqrt"


def train_at(
    build: Callable[[], nn.Module],
    split: Split,
    recipe: Recipe,
    lr: float,
    batch: int,
    *,
    epochs: int,
    base_batch: int = 128,
    warmup: float = 0.02,
    micro: int = 512,
    seed: int = 0,
) -> float:
    """Train a model from `build` with batches of `batch` for `epochs`, and return its accuracy (0 if it diverged).

    `lr` and `warmup`, a share of training, are those of `base_batch`.  More than `micro` examples are gone
    through in parts of that size, whose gradients accumulate.
    """
    parts = max(batch // micro, 1)
    steps = max(epochs * len(split.x_train) // batch, 1) * parts
    rate = scaled_lr(lr, batch, base_batch, recipe.rule)
    trained = fit(
        initialise(build, seed),
        split,
        steps=steps,
        lr=rate,
        optimizer=lambda parameters, lr: Accumulated(recipe.make(parameters, lr), parts),
        batch=min(batch, micro),
        schedule=warmup_then_decay(warmup_share(warmup, batch, base_batch)),
        seed=seed,
        every=steps,
    )
    return 0.0 if trained.diverged else trained.metrics["accuracy"]


def sweep(
    build: Callable[[], nn.Module],
    split: Split,
    recipes: Mapping[str, Recipe],
    batches: Sequence[int],
    *,
    epochs: int,
    warmup: float = 0.02,
    micro: int = 512,
    seed: int = 0,
) -> dict[str, dict[int, float]]:
    """Return the accuracy of every recipe at every batch size, for the same number of epochs.

    The first of `batches` is the base: there each recipe tries its rates, and keeps the best for the others.
    """
    found: dict[str, dict[int, float]] = {}
    for name, recipe in recipes.items():

        def accuracy(lr: float, batch: int, recipe: Recipe = recipe) -> float:
            return train_at(
                build,
                split,
                recipe,
                lr,
                batch,
                epochs=epochs,
                base_batch=batches[0],
                warmup=warmup,
                micro=micro,
                seed=seed,
            )

        at_base = {lr: accuracy(lr, batches[0]) for lr in recipe.rates}
        best = max(at_base, key=lambda lr: at_base[lr])
        found[name] = {batches[0]: at_base[best], **{b: accuracy(best, b) for b in batches[1:]}}
    return found

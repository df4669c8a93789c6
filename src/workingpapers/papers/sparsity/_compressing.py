"""Schemes of pruning, one-shot or in rounds with retraining, and growth while training."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.data import Split
from workingpapers.engines.masks import (
    apply_masks,
    density,
    keep_by_score,
    prunable,
    random_masks,
    remove_masks,
    weights_of,
)
from workingpapers.engines.masks.scores import top
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.sparsity._trainers import SparseFit
from workingpapers.surgery import note_changes
from workingpapers.tasks import fit

SCHEMES = ("class-blind", "class-uniform", "class-distribution", "random", "obd")
Scores = dict[str, Tensor]


def hessian_diagonal(model: nn.Module, x: Tensor, y: Tensor, draws: int = 8, seed: int = 0) -> Scores:
    """Estimate the diagonal of the loss's Hessian by layer: the mean of z * (H z) over random signs z (Hutchinson).

    Args:
        model: a classifier with layers that can be masked.
        x, y: one batch.
        draws: how many vectors of signs.
        seed: of them.
    """
    layers = prunable(model)
    weights = [layer.weight for layer in layers.values()]
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
    found = {name: torch.zeros_like(w) for name, w in zip(layers, weights, strict=True)}
    for _ in range(draws):
        signs = [(2 * torch.randint(2, w.shape, generator=generator) - 1).to(w) for w in weights]
        product = sum((g * z).sum() for g, z in zip(slopes, signs, strict=True))
        curved = torch.autograd.grad(
            torch.as_tensor(product), weights, retain_graph=True, materialize_grads=True
        )
        for name, z, hz in zip(layers, signs, curved, strict=True):
            found[name] += z * hz / draws
    return found


def saliencies(weights: Scores, diagonal: Scores) -> Scores:
    """Return 0.5 h w^2, what removing a weight alone adds to the loss (optimal brain damage)."""
    return {name: 0.5 * diagonal[name] * w**2 for name, w in weights.items()}


def masks_by(
    model: nn.Module,
    percent: float,
    scheme: str,
    batch: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Scores:
    """Return the masks that a scheme gives a model, see `prune`."""
    if scheme not in SCHEMES:
        raise unknown("scheme of pruning", scheme, SCHEMES)
    if not 0 <= percent < 100:
        raise WorkingPapersError(f"0 to 100 percent of the weights can go, not all; got {percent}")
    weights = weights_of(model)
    if scheme == "obd":
        if batch is None:
            raise WorkingPapersError("obd weighs weights by the loss's curvature; give a batch (x, y)")
        scores = saliencies(weights, hessian_diagonal(model, *batch, seed=seed))
    elif scheme == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = {n: torch.rand(w.shape, generator=generator).to(w) for n, w in weights.items()}
    elif scheme == "class-distribution":
        scores = {n: w.abs() / w.std().clamp_min(1e-12) for n, w in weights.items()}
    else:
        scores = {n: w.abs() for n, w in weights.items()}
    return keep_by_score(scores, 1 - percent / 100, "uniform" if scheme == "class-uniform" else "global")


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    x = torch.randn(9, 6, generator=generator)
    return model, x, 50.0, "obd", (x, torch.arange(9) % 3)


@paper("hidden_structure_sparse", part="prune", kind="transform", example=_example, preserves=None)
def prune(
    model: nn.Module,
    percent: float = 80.0,
    scheme: str = "class-blind",
    batch: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy without so many percent of the weights of its Linear and Conv2d layers, which masks hold at 0.

    Args:
        model: any model.
        percent: of all weights.
        scheme: "class-blind" takes the smallest of all layers (one threshold), "class-uniform" as many percent of
            each layer, "class-distribution" those below a number of standard deviations of their layer, the same
            number for all, "random" any, "obd" those of the least saliency 0.5 h w^2.
        batch: examples and labels for "obd".
        seed: of "random", and of the estimate of "obd".
    """
    result = remove_masks(copy.deepcopy(model))
    apply_masks(result, masks_by(result, percent, scheme, batch, seed))
    note = f"{scheme} pruning leaves {density(result):.2%} of the weights."
    return note_changes(result, [note])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Compressed:
    """A pruned network: percent gone, test accuracy before and after retraining, and the network."""

    percent: float
    before: float
    after: float
    model: nn.Module


def run_pruning(
    model: nn.Module,
    split: Split,
    percents: Sequence[float],
    scheme: str = "class-blind",
    rounds: int = 1,
    epochs: int = 2,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[Compressed]:
    """Prune a trained classifier to several degrees and retrain each; the model stays as it is.

    Args:
        model: the trained network.
        split: data to retrain and test on.
        percents: each is reached from the dense network.
        scheme: see `prune`.
        rounds: 1 prunes in one shot; more go there by equal factors of density, retraining after each.
        epochs: of retraining, in each round.
        lr: learning rate of Adam.
        seed: of the data's order and of random scores.
    """
    if rounds < 1:
        raise WorkingPapersError(f"pruning takes at least one round; got {rounds}")
    batch, found = (split.x_train[:256], split.y_train[:256]), []
    train = partial(fit, split=split, epochs=epochs, lr=lr, seed=seed, every=10**9)
    for percent in percents:
        work, before = model, 0.0
        for number in range(1, rounds + 1):
            part = 100 * (1 - (1 - percent / 100) ** (number / rounds))
            work = prune(work, part, scheme, batch, seed)
            before = accuracy(work, split)
            train(work)
        found.append(Compressed(percent, before, accuracy(work, split), work))
    return found


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    model.eval()
    return float((model(split.x_test).argmax(1) == split.y_test).double().mean())


def _small(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(60) % 3
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    return model, torch.randn(60, 8, generator=generator) + y[:, None], y


@paper(
    "hidden_structure_sparse",
    part="grow",
    kind="trainer",
    trains="fit",
    example=_small,
    options={"density": 0.5, "total": 20},
)
class Grow(SparseFit):
    """Train from a quarter of the density on, and add random weights of each layer until 3/4 of the steps.

    The options are those of the trainers of `sparseland`; its "set" exchanges weights instead.
    """

    def start(self, model: nn.Module) -> Scores:
        """Return random masks of a quarter of the density."""
        generator = torch.Generator().manual_seed(self.seed)
        return random_masks(weights_of(model), self.density / 4, generator, self.way)

    def update(self, layers: dict[str, Any]) -> bool:
        """Add weights; those that come in are 0 at first."""
        done = min(1.0, self.done / (0.75 * self.total))
        if self.done % max(1, self.total // 20) == 0:
            generator = torch.Generator().manual_seed(self.seed * 7919 + self.done)
            goal = self.density * (0.25 + 0.75 * done)
            shares = random_masks(self.masks, goal, generator, self.way)
            for name, mask in self.masks.items():
                chance = torch.rand(mask.shape, generator=generator).to(mask)
                count = max(int(shares[name].count_nonzero()), int(mask.count_nonzero()))
                self.masks[name] = top(chance + 2 * mask, count)
        return False

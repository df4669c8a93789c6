"""Linearising a network: most ReLUs become the identity, chosen by SNL, by stages, or at random."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.private._learning import Objective, frozen, softened, train
from workingpapers.papers.private._removal import active, criticality, held_out, keeping
from workingpapers.papers.private._sites import with_sites
from workingpapers.papers.private._units import (
    Masked,
    Partial,
    budget_count,
    largest,
    random_scores,
    units_of_kind,
)

METHODS = ("snl", "deepreduce", "random")


def linearize(
    model: nn.Module,
    split: Split,
    budget: float,
    method: str = "snl",
    epochs: int = 10,
    lam: float = 1e-5,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of `model` that keeps at most `budget` of its ReLUs, the others identities; not
    fine-tuned yet.

    "snl" learns a share alpha of each ReLU under an L1 penalty, together with the weights and by
    distillation, and keeps the largest (Cho et al., "Selective Network Linearization for Efficient Private
    Inference", 2022; the penalty and its growth by 1.1 an epoch are those of the authors' code).
    "deepreduce" keeps whole stages, the most critical ones that fit.  "random" keeps entries at random.

    Args:
        model: trained; it is the teacher.
        split: to learn from.
        budget: share (a float) or number (an int); all of them give a copy of the model, none a network
            without ReLUs. method: one of the three. epochs: of choosing. lam: the penalty on each alpha.
            seed: of random choices and of the order of the data.

    Raises:
        WorkingPapersError: for an unknown method, a budget out of range or too small for a stage, a model
        without ReLUs.
    """
    if method not in METHODS:
        raise unknown("method of linearisation", method, METHODS)
    x = split.x_train
    found = active(model, x)
    total = sum(n.kept for n in found)
    count = budget_count(budget, total)
    if count == total:
        return keeping(model, x, None)
    if count == 0:
        return keeping(model, x, ())
    if method == "deepreduce":
        return keeping(model, x, _stages_within(model, split, count, epochs, seed))
    names = {n.name for n in found}
    student = with_sites(model, x[:2], lambda name, shape: Partial(shape) if name in names else nn.Identity())
    units: dict[str, Any] = units_of_kind(student, Partial)
    if method == "snl":
        how: dict[str, Any] = {"objective": snl_objective(list(units.values()), count, lam, split)}
        train(student, split, frozen(model), epochs, seed=seed, **how)
        scores = {name: unit.share() for name, unit in units.items()}
    else:
        scores = random_scores({n: tuple(u.alpha.shape) for n, u in units.items()}, seed)
    masks = largest(scores, count)
    return with_sites(
        student, x[:2], lambda name, shape: Masked(masks[name]) if name in masks else nn.Identity()
    )


def _stages_within(model: nn.Module, split: Split, count: int, epochs: int, seed: int) -> list[str]:
    """Return the sites of the most critical stages that fit into the count together."""
    kept: list[str] = []
    found = criticality(model, held_out(split, seed=seed), epochs, seed=seed)
    for stage in sorted(found, key=lambda s: -s.criticality):
        if stage.relus <= count:
            kept += stage.names
            count -= stage.relus
    if not kept:
        raise WorkingPapersError(
            f"no stage has so few ReLUs as the budget leaves ({count}); take another method"
        )
    return kept


def snl_objective(
    units: list[Partial], count: int, lam: float, split: Split, growth: float = 1.1, batch: int = 64
) -> Objective:
    """Return cross-entropy + T^2 KL + lam * sum of alphas; lam grows with each epoch that ends above the
    count."""
    steps, weight, done = max(len(split.x_train) // batch, 1), lam, 0

    def loss(model: nn.Module, outputs: Tensor, y: Tensor, taught: Tensor, rows: Tensor) -> Tensor:
        nonlocal weight, done
        done += 1
        if done % steps == 0 and sum(unit.kept() for unit in units) > count:
            weight *= growth
        shares = torch.stack([unit.share().sum() for unit in units]).sum()
        total: Tensor = F.cross_entropy(outputs, y) + softened(outputs, taught) + weight * shares
        return total

    return loss


def each_loss(outputs: Tensor, y: Tensor, taught: Tensor, temperature: float = 4.0) -> Tensor:
    """Return cross-entropy + T^2 KL from the teacher for each example (N,)."""
    student, teacher = ((z / temperature).log_softmax(1) for z in (outputs, taught))
    divergence = (teacher.exp() * (teacher - student)).sum(1) * temperature**2
    return F.cross_entropy(outputs, y, reduction="none") + divergence


class DualAscent:
    """The loss J + sum over groups of lambda_g (J_g - J), whose multipliers rise where a group's loss is
    above J.

        lambda_g <- clip(lambda_g + eta (J_g - J), 0, cap)   after each batch, for the groups that are in it

    Args:
        groups: the group of each training example (N,), from 0.
        eta: step of the ascent; 0 leaves all multipliers at 0, which is plain fine-tuning.
        cap: largest multiplier.
    """

    def __init__(self, groups: Tensor, eta: float = 1e-2, cap: float = 5.0) -> None:
        if eta < 0 or cap < 0:
            raise WorkingPapersError(f"step and cap of the multipliers are at least 0; got {eta} and {cap}")
        self.groups, self.eta, self.cap = groups, eta, cap
        self.multipliers = torch.zeros(int(groups.max()) + 1)

    def __call__(self, model: nn.Module, outputs: Tensor, y: Tensor, taught: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of a batch, and move the multipliers."""
        each = each_loss(outputs, y, taught)
        groups = self.groups.to(rows.device)[rows]
        mean: Tensor = each.mean()
        gaps = {int(g): each[groups == g].mean() - mean for g in groups.unique()}
        loss = mean
        for g, gap in gaps.items():
            loss = loss + float(self.multipliers[g]) * gap
        for g, gap in gaps.items():
            moved = float(self.multipliers[g]) + self.eta * float(gap.detach())
            self.multipliers[g] = min(max(moved, 0.0), self.cap)
        return loss


def fine_tune(
    student: nn.Module,
    model: nn.Module,
    split: Split,
    epochs: int,
    groups: Tensor | None = None,
    eta: float = 1e-2,
    cap: float = 5.0,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a linearised network, fine-tuned by distillation from `model`.

    With the group of each training example, by dual ascent; without, by the mean loss.
    """
    tuned = copy.deepcopy(student)
    rows = torch.zeros(len(split.x_train), dtype=torch.long) if groups is None else groups
    ascent: Callable[..., Tensor] = DualAscent(rows, eta if groups is not None else 0.0, cap)
    train(tuned, split, frozen(model), epochs, seed=seed, objective=ascent)
    return tuned

"""DeepReShape: widths by stage such that the ReLUs lie where they matter, which saves multiply-adds as well.

    stages of depths phi, widths m, m alpha, m alpha beta, m alpha beta gamma, each at half the resolution:
    ReLUs of the stages  ~  phi_1,  phi_2 alpha / 4,  phi_3 alpha beta / 16,  phi_4 alpha beta gamma / 64

"ReLU equalization" chooses the smallest integers for which these counts follow the stages' criticality.  For
the usual order 3 > 2 > 4 > 1 and equal depths that means beta > 4, beta gamma < 16, alpha beta gamma > 64,
solved by 5-5-3, 5-7-2, 6-6-2 and 7-5-2: the HybReNets.  A standard ResNet has 2-2-2, and most ReLUs in its
first stage.

Paper: "DeepReShape: Redesigning Neural Networks for Efficient Private Inference" (2023), Section 3; the
criticality is DeepReDuce's, and the rotation of the groups in ReLU-reuse is as recalled.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise, product
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.papers.private._costs import private_cost
from workingpapers.papers.private._counts import (
    Nonlinearity,
    multiply_adds,
    nonlinearities,
    relu_count,
    stages,
)
from workingpapers.papers.private._learning import accuracy, check_split, cifar, frozen, train
from workingpapers.papers.private._removal import alternate, criticality, held_out
from workingpapers.papers.private._resizing import resized
from workingpapers.papers.private._sites import Shape, with_sites
from workingpapers.papers.private._units import Reused
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, initialise, residual_cnn
from workingpapers.tasks.models import ResidualBlock

HYBRENETS = ((5, 5, 3), (5, 7, 2), (6, 6, 2), (7, 5, 2))


def widths(m: int, factors: Sequence[int]) -> list[int]:
    """Return m and its products with the factors, one after the other."""
    return list(accumulate(factors, mul, initial=m))


def relu_shares(factors: Sequence[int], depths: Sequence[int] | None = None) -> list[float]:
    """Return the ReLUs of each stage over those of one layer of the first; `depths` are 1 by default."""
    depths = depths or [1] * (len(factors) + 1)
    if len(depths) != len(factors) + 1:
        raise WorkingPapersError(
            f"{len(factors)} factors join {len(factors) + 1} stages; got {len(depths)} depths"
        )
    return [
        phi * width / 4**stage
        for stage, (phi, width) in enumerate(zip(depths, widths(1, factors), strict=True))
    ]


def relu_equalize(
    order: Sequence[int] = (3, 2, 4, 1), depths: Sequence[int] | None = None, least: int = 2, most: int = 16
) -> list[tuple[int, ...]]:
    """Return the factors for which the stages' ReLU counts fall strictly in the given order.

    For each choice of the factors after the first one, the smallest first one.

    Args:
        order: numbers of the stages, from 1, the most critical first.
        depths: of the stages; only their ratios matter.
        least, most: limits of each factor.

    Raises:
        WorkingPapersError: where `order` does not hold each stage once, or nothing within the limits does.
    """
    if sorted(order) != list(range(1, len(order) + 1)) or len(order) < 2:
        raise WorkingPapersError(f"an order holds the stages 1 to their number once each; got {tuple(order)}")
    found = []
    for rest in product(range(least, most + 1), repeat=len(order) - 2):
        for first in range(least, most + 1):
            shares = relu_shares((first, *rest), depths)
            if all(shares[a - 1] > shares[b - 1] for a, b in pairwise(order)):
                found.append((first, *rest))
                break
    if not found:
        raise WorkingPapersError(
            f"no factors from {least} to {most} put the ReLUs into the order {tuple(order)}"
        )
    return sorted(found)


def hybrenet(
    in_channels: int,
    num_classes: int,
    m: int = 16,
    factors: Sequence[int] = (5, 5, 3),
    depths: Sequence[int] = (2, 2, 2, 2),
) -> nn.Sequential:
    """Build a residual network of the given widths, (B, in_channels, H, W) -> (B, num_classes)."""
    if len(depths) != len(factors) + 1 or min(depths) < 1:
        raise WorkingPapersError(
            f"{len(factors)} factors join {len(factors) + 1} stages of 1 block or more each"
        )
    every = widths(m, factors)
    net = residual_cnn(in_channels, num_classes, every, 1)
    layers = list(net)
    for stage in reversed(range(len(every))):
        more = [ResidualBlock(every[stage], every[stage], 1, nn.ReLU, True) for _ in range(depths[stage] - 1)]
        layers[3 + stage + 1 : 3 + stage + 1] = more
    return nn.Sequential(*layers)


def reshaped(model: nn.Module, x: Tensor, factors: Sequence[int], m: int, seed: int = 0) -> nn.Module:
    """Return a copy of a staged network with the widths m, m alpha, ...; what grows starts afresh by `seed`.

    Raises:
        WorkingPapersError: where the stages are not one more than the factors, or do not each have a width of
        its own.
    """
    groups = stages(nonlinearities(model, x[:1]))
    old = [sorted({n.shape[0] for n in group}) for group in groups]
    plain = [group[0] for group in old if len(group) == 1]
    if len(old) != len(factors) + 1 or len(set(plain)) != len(old):
        raise WorkingPapersError(
            f"{len(factors)} factors reshape {len(factors) + 1} stages with a width of their own each; this "
            f"{type(model).__name__} has stages of the widths {', '.join(str(g)[1:-1] for g in old)}"
        )
    new = dict(zip(plain, widths(m, factors), strict=True))
    return resized(model, x, lambda channels: new.get(channels, channels), seed)


def _unit(name: str, shape: Shape, found: Sequence[Nonlinearity], dropped: set[str], reuse: int) -> nn.Module:
    if name in dropped:
        return nn.Identity()
    turn = [n.name for n in found].index(name) if reuse > 1 else 0
    return Reused(shape, reuse, turn) if reuse > 1 else nn.ReLU()


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(24) % 3
    x = torch.randn(24, 1, 8, 8, generator=generator) + y[:, None, None, None]
    model = initialise(partial(residual_cnn, 1, 3, (4, 6)), 0)
    return model, x[:4], Split(x, y, x, y, 3, "example"), (3,), 3, 1


@paper("deepreshape", example=_example, preserves=None)
def deepreshape(
    model: nn.Module,
    split: Split,
    factors: Sequence[int] = (5, 5, 3),
    m: int = 16,
    epochs: int = 100,
    reuse: int = 1,
    thin: bool = False,
    lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Return a staged network like `model` with other widths, trained by distillation from it.

    Args:
        model: trained, with a width of its own at each resolution, such as a ResNet; it is the teacher.
        split: to train on.
        factors: alpha, beta, gamma: by how much each stage is wider than the one before (`relu_equalize`).
        m: width of the first stage.
        epochs: of training; 0 leaves the new widths untrained.
        reuse: r of ReLU-reuse; 1 applies ReLU to all channels.
        thin: drop the ReLUs of alternate layers in the first, least critical stage.
        lr, seed: of Adam; of what starts afresh and of the data's order.

    Raises:
        WorkingPapersError: where model and factors do not fit.
    """
    split = check_split(split)
    x = split.x_train
    student = reshaped(model, x, factors, m, seed)
    found = nonlinearities(with_sites(student, x[:2], lambda name, shape: nn.ReLU()), x[:1])
    first = [n.name for n in stages(found)[0]]
    dropped = set(first) - set(alternate(first)) if thin else set()
    if dropped or reuse > 1:
        student = with_sites(student, x[:2], lambda name, shape: _unit(name, shape, found, dropped, reuse))
    train(student, split, frozen(model), epochs, lr=lr, seed=seed)
    before, after = private_cost(model, x[:1]), private_cost(student, x[:1])
    said = (
        f"The stages have the widths {', '.join(map(str, widths(m, factors)))} now: {after}, before {before}."
    )
    return note_changes(student, [said])  # type: ignore[no-any-return]


def relus_needed(counts: Sequence[int], accuracies: Sequence[float], wanted: float) -> float:
    """Return the ReLUs at which a family reaches an accuracy, on straight lines between its members.

    The accuracy of a member is the best up to its size; beyond the largest member it is infinite.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, dtype=float))
    if wanted > best[-1]:
        return float("inf")
    at = int(np.argmax(best >= wanted))
    if at == 0:
        return float(counts[0])
    part = (wanted - best[at - 1]) / (best[at] - best[at - 1])
    return float(counts[at - 1] + part * (counts[at] - counts[at - 1]))


def _trained(split: Split, m: int, factors: Sequence[int], epochs: int, seed: int) -> tuple[int, int, float]:
    """Return ReLUs, multiply-adds and test accuracy of a network of one block a stage."""
    model = initialise(partial(hybrenet, 3, 10, m, factors, (1,) * 4), seed)
    train(model, split, None, epochs, lr=2e-3, seed=seed)
    x = split.x_train[:1]
    return relu_count(model, x), sum(multiply_adds(model, x).values()), accuracy(model, split)


@claim(
    "deepreshape",
    "Reallocating channels so that ReLUs fall where they matter saves both ReLUs and FLOPs against earlier "
    "private-inference networks.",
    figure="CIFAR-100 +2.1% with 5.2 times less runtime at equal ReLUs; TinyImageNet 8.7 times less "
    "at equal accuracy",
    holds=all_of(
        at_least(-0.01, of="over_resnet"), at_least(0.38, of="accuracy"), at_most(1.0, of="relus_needed")
    ),
    calibrated="the family is m = 2, 3, 4 in place of 1, 2, 3, whose largest member on seed 1000 was just below "
    "the ResNet, so that nothing could be interpolated",
)
def equal_relus(budget: Budget, seed: int) -> Evidence:
    """Test accuracy on CIFAR-10 (16x16) of HybReNets over ResNets with as many ReLUs, within 3 %.

    The better of 5-5-3 (m = 3 against 7) and 5-7-2 (2 against 5); `relus_needed` is the share of the ResNet's
    ReLUs at which 5-5-3 with m = 2, 3, 4 reaches its accuracy, 10 where it does not; `flops` are the 5-5-3's
    over the ResNet's.
    """
    split, epochs = cifar(budget, seed), budget.pick(quick=4, full=40)
    pairs = {(5, 5, 3): (3, 7), (5, 7, 2): (2, 5)}
    found = {
        factors: (_trained(split, m, factors, epochs, seed), _trained(split, base, (2, 2, 2), epochs, seed))
        for factors, (m, base) in pairs.items()
    }
    ours, resnet = found[5, 5, 3]
    family = [_trained(split, 2, (5, 5, 3), epochs, seed), ours, _trained(split, 4, (5, 5, 3), epochs, seed)]
    needed = relus_needed([f[0] for f in family], [f[2] for f in family], resnet[2]) / resnet[0]
    return Evidence(
        over_resnet=max(mine[2] - base[2] for mine, base in found.values()),
        accuracy=max(mine[2] for mine, _ in found.values()),
        relus_needed=min(needed, 10.0),
        flops=ours[1] / resnet[1],
        unequal=max(abs(mine[0] / base[0] - 1) for mine, base in found.values()),
    )


@claim(
    "deepreshape",
    "Stages differ in how critical their ReLUs are to accuracy, the last but one being usually most and the first "
    "least so.",
    holds=all_of(
        above(0.0, of="third_over_first", by="every"), above(0.0, of="second_over_first", by="every")
    ),
)
def critical_stages(budget: Budget, seed: int) -> Evidence:
    """Differences of the stages' criticality on CIFAR-10 (16x16), each stage's ReLUs alone, in a ResNet of
    2-2-2."""
    split, m = cifar(budget, seed), budget.pick(quick=8, full=16)
    model = initialise(partial(hybrenet, 3, 10, m, (2, 2, 2), (1,) * 4), seed)
    train(model, split, None, budget.pick(quick=6, full=40), lr=2e-3, seed=seed)
    found = criticality(model, held_out(split, 0.25, seed), budget.pick(quick=3, full=15), seed=seed)
    first, second, third, fourth = (stage.criticality for stage in found)
    return Evidence(
        third_over_first=third - first, second_over_first=second - first, third_over_fourth=third - fourth
    )

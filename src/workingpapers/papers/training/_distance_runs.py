"""The runs behind LAFTR's claims: networks about a network, tasks one after the other, and flipped labels."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.papers.training._distance_rivals import Penalty, diagonal_fisher, penalised
from workingpapers.papers.training._function_distance import Summary, fsd
from workingpapers.tasks import fit, initialise, mlp

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of a penalty by distances of outputs, tried on the first two tasks


def perturbed(model: nn.Module, split: Split, seed: int, each: int = 5) -> list[nn.Module]:
    """Return networks near `model`: in random directions at 5 sizes, and tuned on 7 kinds of shifted images.

    `each` of every size, 0.01 to 1 of the length of each weight; after 1, 4, 16, 64 and 128 steps of Adam.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in np.geomspace(0.01, 1, 5):
        for _ in range(each):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for p in other.parameters():
                    step = torch.randn(p.shape, generator=generator)
                    p.add_(float(size) * p.norm() * step / step.norm())
            found.append(other)
    x = split.x_train
    noise = torch.randn(x.shape, generator=generator)
    shifts = [x.roll(2, 3), x.roll(-4, 2), x.flip(3), x.transpose(2, 3), -x, x + noise]
    shifts.append(torch.where(x > 0, x.min(), x))
    for i, moved in enumerate(shifts):
        other, done = copy.deepcopy(model), 0
        for steps in (1, 4, 16, 64, 128):
            fit(other, replace(split, x_train=moved), steps=steps - done, every=10**6, seed=seed + i)
            found.append(copy.deepcopy(other))
            done = steps
    return found


def closeness(estimates: Sequence[float], truth: Sequence[float]) -> tuple[float, float]:
    """Return the correlation of the logarithms, and the median relative error."""
    guess, right = np.array(estimates), np.array(truth)
    logs = [np.log(np.maximum(v, 1e-30)) for v in (guess, right)]
    return float(np.corrcoef(*logs)[0, 1]), float(np.median(np.abs(guess / right - 1)))


def permuted_tasks(split: Split, count: int, seed: int) -> list[Split]:
    """Return the same images with their pixels in `count` orders, the first as they are; inputs (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for i in range(count):
        width = split.x_train[0].numel()
        order = torch.randperm(width, generator=generator) if i else torch.arange(width)
        tasks.append(
            replace(
                split, x_train=split.x_train.flatten(1)[:, order], x_test=split.x_test.flatten(1)[:, order]
            )
        )
    return tasks


def keep_laftr(model: nn.Module, task: Split, seed: int) -> Penalty:
    """Return LAFTR's penalty for a task that was just learnt."""
    summary = Summary.from_data(model, task.x_train, full=True)
    return lambda other: fsd(summary, other)


def keep_fisher(model: nn.Module, task: Split, seed: int) -> Penalty:
    """Return EWC's penalty, by the same distance."""
    return diagonal_fisher(model, task.x_train)


def keep_likelihood(model: nn.Module, task: Split, seed: int) -> Penalty:
    """Return EWC's penalty as it is mostly used, by the Fisher information of the class probabilities."""
    return diagonal_fisher(model, task.x_train, "softmax")


def keep_examples(model: nn.Module, task: Split, seed: int, count: int = 200) -> Penalty:
    """Return the distance itself over `count` stored examples, and the outputs for them."""
    generator = torch.Generator().manual_seed(seed)
    x = task.x_train[torch.randperm(len(task.x_train), generator=generator)[:count]]
    with torch.no_grad():
        y = model(x)
    return lambda other: (other(x) - y).square().sum(1).mean() / 2


Keep = Callable[[nn.Module, Split, int], Penalty]
KEEPERS: dict[str, tuple[Keep | None, Sequence[float]]] = {
    "laftr": (keep_laftr, WEIGHTS),
    "fisher": (keep_fisher, WEIGHTS),
    # probabilities change far less than outputs
    "likelihood": (keep_likelihood, [100 * w for w in WEIGHTS]),
    "examples": (keep_examples, WEIGHTS),
    "nothing": (None, [0.0]),
}


def learn_in_turn(
    tasks: Sequence[Split], keep: Keep | None, weight: float, epochs: int, seed: int
) -> tuple[nn.Module, float]:
    """Train an MLP on one task after the other, with a penalty for each one before; return its mean accuracy."""
    model = initialise(lambda: mlp([tasks[0].x_train.shape[1], 100, 100, tasks[0].num_classes]), seed)
    penalties: list[Penalty] = []
    for i, task in enumerate(tasks):
        loss = penalised(F.cross_entropy, model, list(penalties), weight)
        fit(model, task, epochs=epochs, loss=loss, every=10**6, seed=seed + i)
        if keep is not None:
            penalties.append(keep(model, task, seed + i))
    with torch.no_grad():
        right = [(model(task.x_test).argmax(1) == task.y_test).float().mean() for task in tasks]
    return model, float(torch.stack(right).mean())


def continual(split: Split, epochs: int, seed: int, count: int = 5) -> dict[str, float]:
    """Return the mean accuracy over permuted tasks of every way to keep, its weight chosen on the first two."""
    tasks, found = permuted_tasks(split, count, seed), dict[str, float]()
    for name, (keep, weights) in KEEPERS.items():
        tried = {w: learn_in_turn(tasks[:2], keep, w, epochs, seed)[1] for w in weights}
        weight = max(tried, key=lambda w: tried[w])
        found[name] = learn_in_turn(tasks, keep, weight, epochs, seed)[1]
        found[f"{name}_weight"] = weight
    return found


@dataclass(frozen=True)
class Flipped:
    """A split whose training labels were flipped in part, and where: bool (N,)."""

    split: Split
    wrong: Tensor


def with_flipped_labels(split: Split, share: float, seed: int) -> Flipped:
    """Give a random `share` of the training labels another class."""
    generator = torch.Generator().manual_seed(seed)
    count = len(split.y_train)
    wrong = torch.zeros(count, dtype=torch.bool)
    wrong[torch.randperm(count, generator=generator)[: round(share * count)]] = True
    shift = torch.randint(1, split.num_classes, (count,), generator=generator)
    y = torch.where(wrong, (split.y_train + shift) % split.num_classes, split.y_train)
    return Flipped(
        replace(split, x_train=split.x_train.flatten(1), x_test=split.x_test.flatten(1), y_train=y), wrong
    )

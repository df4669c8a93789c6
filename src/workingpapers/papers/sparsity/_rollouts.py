"""Rewards of students: built, trained from their teacher's logits, and held against it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.papers.sparsity._compression_policies import KEEP, SHARES, Decisions, Point
from workingpapers.papers.sparsity._students import (
    FIELDS,
    Part,
    described,
    fields_of,
    parameters,
    parts_of,
    student,
    weighted,
)
from workingpapers.tasks import Classification, fit


def reward(count: int, teacher_count: int, accuracy: float, teacher_accuracy: float) -> float:
    """Return C (2 - C) accuracy / teacher_accuracy of a student with `count` parameters; -1 for a larger one."""
    c = 1 - count / teacher_count
    return -1.0 if c < 0 else c * (2 - c) * accuracy / teacher_accuracy


class Distilling(Classification):
    """Learning from a teacher: (1 - weight) * mean squared error of logits + weight * cross-entropy.

    split: of the images; its labels come with the teacher's logits beside them.
    """

    def __init__(self, split: Split, loss: Any = None, weight: float = 0.3) -> None:
        super().__init__(split, loss or partial(distillation_loss, weight=weight))

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return which samples have their largest output at the label."""
        return {"accuracy": outputs.argmax(1) == targets[:, 0].long()}


def distillation_loss(outputs: Tensor, targets: Tensor, weight: float = 0.3) -> Tensor:
    """Return the loss of logits (B, K) for targets (B, 1 + K): the label, and the teacher's logits."""
    taught = F.mse_loss(outputs, targets[:, 1:])
    return (1 - weight) * taught + weight * F.cross_entropy(outputs, targets[:, 0].long())


@torch.no_grad()
def with_logits(split: Split, teacher: nn.Module) -> Split:
    """Return the split with targets (N, 1 + K): labels, then the teacher's logits."""
    was, parts = teacher.training, []
    teacher.eval()
    for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test)):
        logits = torch.cat([teacher(piece) for piece in x.split(500)])
        parts.append(torch.cat([y[:, None].to(logits), logits], 1))
    teacher.train(was)
    return replace(split, y_train=parts[0], y_test=parts[1])


@dataclass(frozen=True)
class Student:
    """A student: its accuracy on the data that rewards are measured on, its parameters, its reward."""

    model: nn.Module | None = field(repr=False)
    accuracy: float
    parameters: int
    reward: float


class Rollouts:
    """The reward of a student: built from the parts chosen, trained for `epochs`, held against its teacher."""

    def __init__(
        self,
        teacher: nn.Module,
        split: Split,
        epochs: int = 1,
        seed: int = 0,
        weight: float = 0.3,
        lr: float = 2e-3,
    ) -> None:
        self.parts = parts_of(teacher)
        self.problem = Distilling(with_logits(split, teacher), weight=weight)
        self.count, self.epochs, self.seed, self.lr = parameters(teacher), epochs, seed, lr
        was = teacher.training
        with torch.no_grad():
            self.accuracy = self.problem.evaluate(teacher.eval())["accuracy"]
        teacher.train(was)
        self.known: dict[tuple[Any, ...], Student] = {}

    def space(self, stage: str) -> Decisions:
        """Return what a stage decides about the parts as they are."""
        places = weighted(self.parts)
        features = torch.tensor([described(self.parts[i]) for i in places])
        if stage == "remove":
            return Decisions(features, tuple((k, 0) for k in range(1, len(places) - 1)), KEEP)
        steps = [(k, FIELDS.index(f)) for k, i in enumerate(places[:-1]) for f in fields_of(self.parts[i])]
        return Decisions(features, tuple(steps), SHARES)

    def chosen(self, stage: str, point: Point) -> list[Part]:
        """Return the parts that a point leaves."""
        places = weighted(self.parts)
        if stage == "remove":
            gone = {places[k + 1] for k, keep in enumerate(point) if not keep}
            return [part for i, part in enumerate(self.parts) if i not in gone]
        scales: dict[int, dict[str, float]] = {}
        for (k, field_), share in zip(self.space(stage).steps, point, strict=True):
            scales.setdefault(places[k], {})[FIELDS[field_]] = share
        return [replace(part, scales=scales.get(i)) for i, part in enumerate(self.parts)]

    def student(self, stage: str, point: Point, epochs: int | None = None) -> Student:
        """Return the trained student of a point; the same point is trained once."""
        parts = self.chosen(stage, point)
        key = (stage, point, len(self.parts), epochs)
        if key in self.known:
            return self.known[key]
        model = student(parts, self.problem.split.x_train.shape[1:], self.seed)
        if model is None or parameters(model) > self.count:
            found = Student(None, 0.0, 0 if model is None else parameters(model), -1.0)
        else:
            done = fit(
                model, self.problem, epochs=epochs or self.epochs, lr=self.lr, every=10**9, seed=self.seed
            )
            accuracy = 0.0 if done.diverged else done.metrics["accuracy"]
            value = reward(parameters(model), self.count, accuracy, self.accuracy)
            found = Student(model, accuracy, parameters(model), value)
        self.known[key] = found if epochs else replace(found, model=None)
        return found


def pareto(students: Sequence[Student]) -> list[Student]:
    """Return those that no other beats in parameters without losing accuracy, or the reverse; rising."""
    best: list[Student] = []
    for one in sorted(students, key=lambda s: (s.parameters, -s.accuracy)):
        if one.reward > -1 and (not best or one.accuracy > best[-1].accuracy):
            best.append(one)
    return best

"""Checks of optimizers: a convex quadratic, saved state, parameter groups, gradients of zero or none."""

import io
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, ContractFailure, expect
from workingpapers.contracts._tensors import (
    expect_finite,
)
from workingpapers.contracts._trainer import TrainerSubject, trains

RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)

contract = Contract(TrainerSubject)


class _Quadratic:
    """Two parameters, a matrix and a vector, and the convex loss of their distance from fixed goals."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(size, generator=generator)) for size in ((4, 3), (5,))]
        self.goals = [torch.randn(p.shape, generator=generator) for p in self.parameters]
        self.curvatures = [torch.linspace(1, 5, p.numel()).reshape(p.shape) for p in self.parameters]

    def loss(self) -> Tensor:
        """Return half the weighted squared distance."""
        triples = zip(self.parameters, self.goals, self.curvatures, strict=True)
        return sum(((c * (p - g).square()).sum() / 2 for p, g, c in triples), torch.zeros(()))

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """Take one step with a closure, as torch's optimizers allow, and return the loss before it."""

        def closure() -> float:
            with torch.enable_grad():
                optimizer.zero_grad()
                loss = self.loss()
                torch.autograd.backward(loss)
            return float(loss)

        before = closure()
        optimizer.step(closure)
        return before

    def values(self) -> list[Tensor]:
        """Return copies of the parameters' values."""
        return [p.detach().clone() for p in self.parameters]


def _rates(subject: TrainerSubject) -> list[dict[str, Any]]:
    """Return the options to try: the declared or default ones, then other learning rates where there is one."""
    usual = [dict(subject.options)]
    return usual + [{**subject.options, "lr": r} for r in RATES] if "lr" in subject.parameters() else usual


def _optimizer(subject: TrainerSubject, parameters: Any, **changed: Any) -> torch.optim.Optimizer:
    options = {**subject.options, **changed}
    if "lr" in subject.parameters():
        options.setdefault("lr", 0.01)
    optimizer: torch.optim.Optimizer = subject.target(parameters, **options)
    return optimizer


@contract.check(
    "lowers a convex loss",
    "a convex quadratic falls to a hundredth within the steps, at the default "
    "learning rate or at one between 1 and 0.003",
    trains("optimizer"),
)
def _lowers_a_convex_loss(subject: TrainerSubject) -> None:
    reached = {}
    for options in _rates(subject):
        problem = _Quadratic()
        optimizer = subject.target(problem.parameters, **options)
        first = float(problem.loss())
        for _ in range(subject.steps):
            problem.step(optimizer)
            last = float(problem.loss())
            if last <= first / 100:
                return
        reached[options.get("lr", "its default")] = last
    tried = ", ".join(f"{value:.3g} at lr {rate}" for rate, value in reached.items())
    raise ContractFailure(f"after {subject.steps} steps the loss of {first:.3g} was {tried}")


@contract.check(
    "resumes",
    "five steps, saving, loading and five more give what ten give, bit for bit",
    trains("optimizer"),
)
def _resumes(subject: TrainerSubject) -> None:
    whole, part = _Quadratic(), _Quadratic()
    optimizer, first = _optimizer(subject, whole.parameters), _optimizer(subject, part.parameters)
    for _ in range(10):
        whole.step(optimizer)
    for _ in range(5):
        part.step(first)
    rest = _Quadratic()
    for parameter, value in zip(rest.parameters, part.values(), strict=True):
        parameter.data.copy_(value)
    second = _optimizer(subject, rest.parameters)
    second.load_state_dict(_saved(first.state_dict()))
    for _ in range(5):
        rest.step(second)
    for found, wanted in zip(rest.values(), whole.values(), strict=True):
        gap = float((found - wanted).abs().max())
        expect(torch.equal(found, wanted), f"a parameter is {gap:.3g} off after resuming")


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@contract.check(
    "parameter groups",
    "a group with lr=0 stays where it is and the other moves",
    trains("optimizer"),
)
def _parameter_groups(subject: TrainerSubject) -> None:
    if "lr" not in subject.parameters():
        return
    problem = _Quadratic()
    kept, moved = problem.parameters
    optimizer = _optimizer(subject, [{"params": [kept], "lr": 0.0}, {"params": [moved]}])
    before = problem.values()
    for _ in range(3):
        problem.step(optimizer)
    drift = float((kept - before[0]).abs().max())
    expect(drift == 0.0, f"the group with lr=0 moved by {drift:.3g} in three steps")
    expect(not torch.equal(moved, before[1]), "the other group did not move in three steps")


@contract.check("missing gradients", "a parameter without a gradient is left as it is", trains("optimizer"))
def _missing_gradients(subject: TrainerSubject) -> None:
    problem = _Quadratic()
    idle = nn.Parameter(torch.ones(3))
    optimizer = _optimizer(subject, [idle, *problem.parameters])
    for _ in range(3):
        problem.step(optimizer)
    expect(
        bool((idle == 1).all()),
        f"a parameter of ones without a gradient is {idle.tolist()} after three steps",
    )


@contract.check(
    "zero gradients",
    "steps with gradients of zero, the first among them, keep everything finite",
    trains("optimizer"),
)
def _zero_gradients(subject: TrainerSubject) -> None:
    problem = _Quadratic()
    optimizer = _optimizer(subject, problem.parameters)

    def closure() -> float:
        for parameter in problem.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return 0.0

    for _ in range(3):
        closure()
        optimizer.step(closure)
    expect_finite(problem.values(), "the parameters after three steps with gradients of zero")
    problem.step(optimizer)
    expect_finite(problem.values(), "the parameters after the next step with a gradient")

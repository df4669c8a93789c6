"""The contract of initializers: the promised statistics, by seed, with nothing but parameters changed."""

from typing import Any

import torch
from torch import nn

from workingpapers.contracts._check import Contract, expect, expect_none
from workingpapers.contracts._function import FunctionSubject
from workingpapers.contracts._snapshot import changes, snapshot
from workingpapers.contracts._tensors import expect_finite


class InitializerSubject(FunctionSubject):
    """An initializer; its example gives the model, then the initializer's further arguments."""

    required = ("example", "promise")

    def initialized(self, seed: int = 0) -> nn.Module:
        """Return the example model after initialization under the global seed."""
        arguments = self.arguments()
        self.run(arguments, seed)
        model: nn.Module = arguments[0]
        return model


contract = Contract(InitializerSubject)


@contract.check("promise", "every promised statistic lies within its bounds after initialization")
def _promise(subject: InitializerSubject) -> None:
    for seed in (0, 1, 2):
        arguments = subject.arguments()
        subject.run(arguments, seed)
        promised = subject.properties["promise"](*arguments)
        expect(bool(promised), "no statistic is promised")
        for name, (value, low, high) in promised.items():
            expect(
                low <= value <= high,
                f"{name} is {value:.6g}, not within {low:g} and {high:g}, at seed {seed}",
            )


@contract.check("same seed", "the same global seed gives the same weights")
def _same_seed(subject: InitializerSubject) -> None:
    one, other = (dict(subject.initialized().named_parameters()) for _ in range(2))
    for name in one:
        expect(torch.equal(one[name], other[name]), f"{name} differs between two runs with the same seed")


@contract.check("returns the model", "it initializes the model in place and returns it")
def _returns_the_model(subject: InitializerSubject) -> None:
    arguments = subject.arguments()
    found = subject.run(arguments)
    expect(found is arguments[0], f"it returns {_described(found)} instead of the model it was given")


def _described(found: Any) -> str:
    return "another model" if isinstance(found, nn.Module) else repr(found)[:60]


@contract.check("changes weights", "parameters change, to finite numbers of the same shape and dtype")
def _changes_weights(subject: InitializerSubject) -> None:
    before = dict(subject.arguments()[0].named_parameters())
    after = dict(subject.initialized().named_parameters())
    expect(any(not torch.equal(after[name], before[name]) for name in after), "no parameter changed")
    for name, parameter in after.items():
        expect_finite(parameter.detach(), name)
        was = before[name]
        expect(
            parameter.shape == was.shape and parameter.dtype == was.dtype,
            f"{name} was {tuple(was.shape)} {was.dtype} and is {tuple(parameter.shape)} {parameter.dtype}",
        )


@contract.check(
    "only weights",
    "nothing but the values of parameters changes: structure, buffers, hooks, modes "
    "and further arguments stay",
)
def _only_weights(subject: InitializerSubject) -> None:
    for training in (True, False):
        arguments = subject.arguments()
        arguments[0].train(training)
        values = {f"the value of argument 0.{name}" for name, _ in arguments[0].named_parameters()}
        before = snapshot(arguments)
        subject.run(arguments)
        touched = [what for what in changes(before, snapshot(arguments)) if what not in values]
        expect_none(touched, "it changed {}")

"""The contract of transforms: a new model, its input untouched, and in words what was changed."""

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, ContractFailure, declares, expect, expect_none
from workingpapers.contracts._function import FunctionSubject
from workingpapers.contracts._module import call, evaluate
from workingpapers.contracts._snapshot import changes, snapshot
from workingpapers.contracts._tensors import expect_close, expect_finite

CHANGES = "workingpapers_changes"  # the attribute in which `surgery` leaves the list of sentences


class TransformSubject(FunctionSubject):
    """A transform; its example gives the model, the model's inputs, and the transform's further arguments."""

    def inputs(self) -> tuple[Any, ...]:
        """Return inputs of the example model, which the transformed one takes as well."""
        inputs = self.arguments()[1]
        return inputs if isinstance(inputs, tuple) else (inputs,)

    def apply(self, arguments: tuple[Any, ...] | None = None, seed: int = 0) -> nn.Module:
        """Return the transformed model; `arguments` as the example gives them (the default)."""
        model, _, *further = arguments or self.arguments()
        found = self.run((model, *further), seed)
        if not isinstance(found, nn.Module):
            raise ContractFailure(f"the result is a {type(found).__name__}, which is no nn.Module")
        return found

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """Return what a model gives for the example's inputs in evaluation mode."""
        return evaluate(model, self.inputs())


contract = Contract(TransformSubject)


@contract.check(
    "input untouched",
    "the model it is given keeps weights, structure, hooks, modes and gradients, "
    "and further arguments keep their values",
)
def _input_untouched(subject: TransformSubject) -> None:
    for training in (True, False):
        arguments = subject.arguments()
        arguments[0].train(training)
        before = snapshot(arguments)
        subject.apply(arguments)
        touched = changes(before, snapshot(arguments))
        expect_none(touched, "it changed {}")


@contract.check("another model", "it returns another model, which shares no weight with its input")
def _another_model(subject: TransformSubject) -> None:
    arguments = subject.arguments()
    model = arguments[0]
    before = snapshot(model)
    found = subject.apply(arguments)
    expect(found is not model, "the result is the input itself")
    with torch.no_grad():
        for tensor in [*found.parameters(), *found.buffers()]:
            tensor.zero_()
    shared = changes(before, snapshot(model))
    expect_none(shared, "setting the result's weights to zero changed {}")


@contract.check(
    "says what it changed",
    f"the result lists in sentences what was changed, as {CHANGES}, "
    "and lists nothing if and only if nothing was",
)
def _says_what_it_changed(subject: TransformSubject) -> None:
    arguments = subject.arguments()
    before = snapshot(arguments[0], identity=False)
    found = subject.apply(arguments)
    said = getattr(found, CHANGES, None)
    expect(isinstance(said, list), f"the result's attribute {CHANGES} is {said!r}, not a list")
    sentences = all(isinstance(one, str) and " " in one.strip() for one in said or [])
    expect(sentences, f"{CHANGES} holds something other than sentences: {said!r}")
    different = changes(before, snapshot(found, identity=False))
    if not said:
        expect_none(different, "it lists no change, but there is one in {}")
    expect(bool(different) or not said, f"it lists {said!r}, but the result looks like its input")


@contract.check(
    "function preserved",
    "in evaluation mode the outputs stay within the declared `preserves`",
    declares("preserves"),
)
def _function_preserved(subject: TransformSubject) -> None:
    allowed = subject.properties["preserves"]
    wanted, found = subject.outputs(subject.arguments()[0]), subject.outputs(subject.apply())
    expect(len(wanted) == len(found), f"there are {len(found)} outputs instead of {len(wanted)}")
    for one, other in zip(found, wanted, strict=True):
        expect(
            one.shape == other.shape,
            f"the output has shape {tuple(one.shape)} instead of {tuple(other.shape)}",
        )
        gap = float((one.double() - other.double()).abs().max())
        expect(gap <= allowed, f"an output moved by {gap:.3g}, and {allowed:g} is declared")


@contract.check(
    "runs", "the result gives finite outputs in both modes, and is in the mode that its input was in"
)
def _runs(subject: TransformSubject) -> None:
    for training in (False, True):
        arguments = subject.arguments()
        arguments[0].train(training)
        found = subject.apply(arguments)
        expect(
            found.training == training, f"an input with training={training} gave training={found.training}"
        )
        expect_finite(call(found, subject.inputs()), f"the outputs with training={training}")


@contract.check("repeats", "it can be applied to its own result")
def _repeats(subject: TransformSubject) -> None:
    _, *further = subject.arguments()
    twice = subject.apply((subject.apply(), *further))
    expect_finite(subject.outputs(twice), "the outputs after two applications")


@contract.check(
    "determinism",
    "the same model and arguments give the same result, whatever the global seed "
    "unless deterministic=False is declared",
)
def _determinism(subject: TransformSubject) -> None:
    one, other = (subject.outputs(subject.apply(seed=seed)) for seed in subject.seeds())
    expect_close(one, other, 0.0, "two results give different outputs")


@contract.check(
    "state_dict",
    "its state_dict, loaded into the result for a model with other weights, gives the same outputs",
)
def _state_dict(subject: TransformSubject) -> None:
    arguments = subject.arguments()
    with torch.no_grad():
        for parameter in arguments[0].parameters():
            parameter.mul_(1.01)  # so little that a transform that looks at weights decides as before
    found, other = subject.apply(), subject.apply(arguments)
    other.load_state_dict(found.state_dict())
    expect_close(subject.outputs(other), subject.outputs(found), 0.0, "outputs after loading differ")


@contract.check("deepcopy", "a deep copy of the result gives the same outputs")
def _deepcopy(subject: TransformSubject) -> None:
    found = subject.apply()
    expect_close(
        subject.outputs(copy.deepcopy(found)), subject.outputs(found), 0.0, "the copy's outputs differ"
    )


@contract.check("pickle", "the result can be pickled and loaded, and gives the same outputs")
def _pickle(subject: TransformSubject) -> None:
    found = subject.apply()
    loaded = pickle.loads(pickle.dumps(found))
    expect_close(subject.outputs(loaded), subject.outputs(found), 0.0, "the loaded result's outputs differ")

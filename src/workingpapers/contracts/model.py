"""The contract of models: a tiny preset that learns eight samples."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workingpapers.contracts._check import Contract, ContractFailure, expect
from workingpapers.contracts._module import ModuleSubject
from workingpapers.contracts._shared import MODULE_CHECKS
from workingpapers.errors import WorkingPapersError

STEPS = 300
RATES = (1e-2, 3e-3, 1e-3)


class ModelSubject(ModuleSubject):
    """A model, built from its tiny preset; inputs come from the declared example."""

    required = ("example",)
    odd_batches = (63,)

    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the options of the model by preset, among them 'tiny'."""
        presets = getattr(self.target, "presets", None)
        if not isinstance(presets, Mapping) or "tiny" not in presets:
            raise ContractFailure("it has no mapping `presets` with the options of a 'tiny' model")
        return presets

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {**self.presets()["tiny"], **self.options}

    def example(self, batch: int, generator: torch.Generator) -> Any:
        return self.example_with_loss(batch, generator).inputs

    def example_with_loss(self, batch: int, generator: torch.Generator) -> Any:
        """Return the declared example: an object with inputs, targets and loss."""
        example = self.properties["example"](batch, generator)
        for name in ("inputs", "targets", "loss"):
            if not hasattr(example, name):
                found = type(example).__name__
                raise WorkingPapersError(f"the example of {self.name} has no {name!r}; it is a {found}")
        return example


contract = Contract(ModelSubject, MODULE_CHECKS)


@contract.check("presets", "the options of every preset are options of the constructor")
def _presets(subject: ModelSubject) -> None:
    parameters = inspect.signature(subject.target).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, options in subject.presets().items():
        strange = [option for option in options if option not in parameters]
        expect(
            anything or not strange, f"the preset {name!r} has {strange}, which the constructor does not take"
        )


@contract.check(
    "trains",
    "the loss on eight samples falls by 90 % within 300 steps of Adam, "
    "at a learning rate of 1e-2, 3e-3 or 1e-3",
)
def _trains(subject: ModelSubject) -> None:
    example = subject.example_with_loss(8, torch.Generator().manual_seed(0))
    floor = float(subject.declared("loss_floor", 0.0))
    reached = []
    for rate in RATES:
        first, last = _train(subject.build(), example, rate, floor)
        if last - floor <= 0.1 * (first - floor):
            return
        reached.append(f"{last:.3g} at {rate:g}")
    raise ContractFailure(f"the loss began at {first:.3g} and came down to {', '.join(reached)}")


def _train(model: nn.Module, example: Any, rate: float, floor: float) -> tuple[float, float]:
    """Return the loss at the start and the least that was reached; stop where that is enough."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    first = least = float("inf")
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = example.loss(model(*example.inputs), example.targets)
        expect(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, not that of a number")
        if step == 0:
            first = float(loss)
        least = min(least, float(loss))
        if least - floor <= 0.1 * (first - floor) or not torch.isfinite(loss):
            break
        loss.backward()
        optimizer.step()
    return first, least

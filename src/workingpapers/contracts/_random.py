"""Checks of where an nn.Module takes its randomness from."""

import random
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, expect
from workingpapers.contracts._module import ModuleSubject, call

contract = Contract(ModuleSubject)


@contract.check(
    "determinism",
    "the same weights, input and seed give the same output in both modes, and in "
    "evaluation mode no seed is needed unless deterministic=False is declared",
)
def _determinism(subject: ModuleSubject) -> None:
    inputs = subject.inputs()

    def differs(training: bool, seeds: Sequence[int]) -> bool:
        with torch.no_grad():
            one, other = (call(subject.build().train(training), inputs, seed) for seed in seeds)
        return not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    for training in (False, True):
        mode = "training" if training else "evaluation"
        expect(not differs(training, (0, 0)), f"in {mode} mode the same seed gave two different outputs")
    if subject.declared("deterministic", True):
        expect(not differs(False, (0, 1)), "in evaluation mode the output depends on the global seed")
    else:
        expect(
            differs(False, (0, 1)) or differs(True, (0, 1)),
            "deterministic=False is declared, but the output never depends on the seed",
        )


@contract.check(
    "global generators",
    "only random weights draw from torch's global generator, and nothing draws from numpy's or Python's",
)
def _global_generators(subject: ModuleSubject) -> None:
    one, other = subject.build(0), subject.build(1)
    random_weights = any(not torch.equal(a, b) for a, b in zip(_state(one), _state(other), strict=True))
    torch.manual_seed(5)
    before, foreign = torch.get_rng_state(), _foreign_state()
    args, options = subject.arguments()
    module = subject.target(*args, **options).eval()
    expect(
        random_weights or torch.equal(before, torch.get_rng_state()),
        "building it moved torch's global generator though it has no random weights",
    )
    before = torch.get_rng_state()
    with torch.no_grad():
        module(*subject.inputs())
    expect(
        not subject.declared("deterministic", True) or torch.equal(before, torch.get_rng_state()),
        "forward in evaluation mode moved torch's global generator",
    )
    expect(foreign == _foreign_state(), "building or calling it moved numpy's or Python's global generator")


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _foreign_state() -> str:
    return repr(
        (
            random.getstate(),
            [part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()],
        )
    )

"""The contract of mixers: (B, T, D) -> (B, T, D), causality, masks, and steps equal to the parallel form."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, expect, is_true
from workingpapers.contracts._module import ModuleSubject, call, evaluate
from workingpapers.contracts._shared import MODULE_CHECKS
from workingpapers.contracts._tensors import distance

LENGTH = 12
EXACT = 1e-9  # in float64, where only rounding may differ


class MixerSubject(ModuleSubject):
    """A mixer, built with its width as first argument; its examples are twelve tokens long."""

    odd_batches = (63,)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.declared("dim", 16),), dict(self.options)

    def example(self, batch: int, generator: torch.Generator) -> Any:
        return torch.randn(batch, LENGTH, self.declared("dim", 16), generator=generator)

    def mixer(self, causal: bool) -> nn.Module:
        """Return a mixer with slightly moved weights in evaluation mode, in float64, causal or not."""
        changes: dict[str, Any] = {"causal": causal} if self.declared("causal", False) == "option" else {}
        return self.shaken(**changes)

    def modes(self) -> list[bool]:
        """Return which values of causal the mixer has."""
        declared = self.declared("causal", False)
        return [True, False] if declared == "option" else [bool(declared)]

    def tokens(self, seed: int = 0, length: int = LENGTH) -> Tensor:
        """Return four sequences in float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(4, length, self.declared("dim", 16), generator=generator, dtype=torch.float64)


contract = Contract(MixerSubject, MODULE_CHECKS)


def _causal(properties: Mapping[str, Any]) -> bool:
    return properties.get("causal") in (True, "option")


def _sees_later(properties: Mapping[str, Any]) -> bool:
    return properties.get("causal", False) in (False, "option")


def _output(mixer: nn.Module, *inputs: Tensor) -> Tensor:
    return evaluate(mixer, inputs)[0]


@contract.check("same shape", "(B, T, D) comes out as (B, T, D) for every length, from one token on")
def _same_shape(subject: MixerSubject) -> None:
    for causal in subject.modes():
        mixer = subject.mixer(causal)
        for length in (1, 2, 7, 63):
            x = subject.tokens(length=length)
            outputs = evaluate(mixer, (x,))
            shapes = [tuple(output.shape) for output in outputs]
            expect(shapes == [tuple(x.shape)], f"the input has shape {tuple(x.shape)}, the output {shapes}")


@contract.check("causality", "an output never changes with a later token", _causal)
def _causality(subject: MixerSubject) -> None:
    mixer = subject.mixer(True)
    x, other = subject.tokens(), subject.tokens(seed=1)
    wanted = _output(mixer, x)
    for t in range(LENGTH - 1):
        changed = torch.cat([x[:, : t + 1], other[:, t + 1 :]], dim=1)
        gap = distance(_output(mixer, changed)[:, : t + 1], wanted[:, : t + 1])
        expect(gap <= EXACT, f"outputs up to token {t} move by {gap:.2g} when later tokens change")


@contract.check("prefixes", "a causal mixer gives a prefix the outputs that it has within the whole", _causal)
def _prefixes(subject: MixerSubject) -> None:
    mixer, x = subject.mixer(True), subject.tokens(length=63)
    wanted = _output(mixer, x)
    for length in (1, 2, 31):
        gap = distance(_output(mixer, x[:, :length]), wanted[:, :length])
        expect(gap <= EXACT, f"the outputs of the first {length} tokens alone differ by {gap:.2g}")


@contract.check(
    "sees later tokens", "without causality the first output changes with later tokens", _sees_later
)
def _sees_later_tokens(subject: MixerSubject) -> None:
    mixer, x, other = subject.mixer(False), subject.tokens(), subject.tokens(seed=1)
    changed = torch.cat([x[:, :1], other[:, 1:]], dim=1)
    gap = distance(_output(mixer, changed)[:, :1], _output(mixer, x)[:, :1])
    expect(gap > EXACT, "the first output stays the same whatever comes later")


@contract.check("sees earlier tokens", "the last output changes with earlier tokens")
def _sees_earlier_tokens(subject: MixerSubject) -> None:
    x, other = subject.tokens(), subject.tokens(seed=1)
    changed = torch.cat([other[:, :-1], x[:, -1:]], dim=1)
    for causal in subject.modes():
        mixer = subject.mixer(causal)
        gap = distance(_output(mixer, changed)[:, -1:], _output(mixer, x)[:, -1:])
        expect(gap > EXACT, "the last output stays the same whatever came before")


@contract.check(
    "mask",
    "with mask=, padded tokens do not influence real ones, at the end or at the start, "
    "and a mask of all real tokens changes nothing",
    is_true("mask"),
)
def _mask(subject: MixerSubject) -> None:
    x, other = subject.tokens(), subject.tokens(seed=1)
    real = torch.tensor([LENGTH, LENGTH - 1, 7, 1])
    places = torch.arange(LENGTH)
    for causal in subject.modes():
        mixer = subject.mixer(causal)
        for side, mask in (("end", places < real[:, None]), ("start", places >= LENGTH - real[:, None])):
            changed = torch.where(mask[:, :, None], x, other)
            one, two = (_masked(mixer, tokens, mask) for tokens in (x, changed))
            gap = distance(one[mask], two[mask])
            expect(gap <= EXACT, f"outputs of real tokens move by {gap:.2g} with padding at the {side}")
        gap = distance(_masked(mixer, x, torch.ones_like(mask)), _output(mixer, x))
        expect(gap <= EXACT, f"a mask of all real tokens moves the outputs by {gap:.2g}")


def _masked(mixer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return call(lambda tokens: mixer(tokens, mask=mask), (x,))[0]


@contract.check(
    "step",
    "step(x, state), token by token from state None, gives the outputs of the parallel form",
    is_true("step", default=False),
)
def _step(subject: MixerSubject) -> None:
    mixer: Any = subject.mixer(True)
    x, state, outputs = subject.tokens(), None, []
    with torch.no_grad():
        for t in range(LENGTH):
            y, state = mixer.step(x[:, t], state)
            expect(y.shape == x[:, t].shape, f"step on {tuple(x[:, t].shape)} gives {tuple(y.shape)}")
            outputs.append(y)
    gap = distance(torch.stack(outputs, dim=1), _output(mixer, x))
    expect(gap <= 1e-8, f"the outputs by steps differ by {gap:.2g}")

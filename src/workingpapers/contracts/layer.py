"""The contract of layers: the arguments and shapes of the torch.nn layer that it stands in for."""

from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import Contract, ContractFailure, declares, expect
from workingpapers.contracts._module import ModuleSubject, call, evaluate
from workingpapers.contracts._shared import MODULE_CHECKS
from workingpapers.contracts._tensors import expect_close, map_floating
from workingpapers.errors import WorkingPapersError, unknown

Size = tuple[tuple[Any, ...], tuple[int, ...]]  # positional arguments, and the shape of one example

_NORM_SIZES: list[Size] = [((6,), (6, 5, 4)), ((6, 1e-3), (6, 1, 3))]

SIZES: dict[str, list[Size]] = {
    "Linear": [((6, 5), (6,)), ((6, 5), (3, 6)), ((6, 5, False), (2, 3, 6))],
    "Conv1d": [
        ((4, 6, 3), (4, 11)),
        ((4, 6, 3, 2), (4, 11)),
        ((4, 6, 3, 1, 1), (4, 11)),
        ((4, 6, 3, 1, 2, 2), (4, 11)),
        ((4, 6, 3, 1, 0, 1, 2), (4, 11)),
        ((4, 6, 1, 1, 0, 1, 1, False), (4, 11)),
    ],
    "Conv2d": [
        ((4, 6, 3), (4, 9, 8)),
        ((4, 6, 3, 2), (4, 9, 8)),
        ((4, 6, 3, 1, 1), (4, 9, 8)),
        ((4, 6, (3, 2), (2, 1), (1, 0)), (4, 9, 8)),
        ((4, 6, 3, 1, 2, 2), (4, 9, 8)),
        ((4, 6, 3, 1, 1, 1, 2), (4, 9, 8)),
        ((4, 6, 1, 1, 0, 1, 1, False), (4, 9, 8)),
    ],
    "Conv3d": [
        ((2, 4, 3), (2, 5, 6, 4)),
        ((2, 4, 3, 2, 1), (2, 5, 6, 4)),
        ((2, 4, 3, 1, 1, 1, 2), (2, 5, 6, 4)),
    ],
    "ConvTranspose1d": [((4, 6, 3), (4, 7)), ((4, 6, 3, 2, 1, 1), (4, 7)), ((4, 6, 3, 1, 0, 0, 2), (4, 7))],
    "ConvTranspose2d": [((4, 6, 3), (4, 5, 6)), ((4, 6, 3, 2, 1, 1), (4, 5, 6))],
    "LayerNorm": [((6,), (3, 6)), (((3, 6),), (3, 6)), ((6, 1e-3), (6,))],
    "RMSNorm": [((6,), (3, 6)), (((3, 6),), (3, 6))],
    "GroupNorm": [((2, 6), (6, 5)), ((3, 6, 1e-3), (6, 5, 4))],
    "BatchNorm1d": [((6,), (6,)), ((6, 1e-3), (6, 5))],
    "BatchNorm2d": _NORM_SIZES,
    "InstanceNorm2d": _NORM_SIZES[:1],
    "MaxPool2d": [((2,), (3, 8, 9)), ((3, 2, 1), (3, 8, 9))],
    "AvgPool2d": [((2,), (3, 8, 9)), ((3, 2, 1), (3, 8, 9))],
    "Dropout": [((0.5,), (6,)), ((0.1,), (3, 6))],
}


class LayerSubject(ModuleSubject):
    """A layer; its arguments and inputs follow from the torch layer that it replaces, or are declared."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replaces = self.declared("replaces")
        if self.replaces is not None and not hasattr(nn, self.replaces):
            raise unknown("layer of torch.nn", self.replaces, [n for n in dir(nn) if n[0].isupper()])
        if self.replaces not in SIZES and self.declared("example") is None:
            raise WorkingPapersError(
                f"the contract of {self.name} needs the property 'example', or one of these in 'replaces': "
                f"{', '.join(SIZES)}"
            )

    def comparisons(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Return all (positional arguments, inputs for four examples) that the layer is compared at."""
        generator = torch.Generator().manual_seed(0)
        if self.declared("example") is not None or self.replaces not in SIZES:
            return [(self.arguments()[0], self.inputs(4))]
        return [(a, (torch.randn(4, *shape, generator=generator),)) for a, shape in SIZES[self.replaces]]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        usual = SIZES[self.replaces][0][0] if self.replaces in SIZES else ()
        return tuple(self.declared("arguments", usual)), dict(self.options)

    def example(self, batch: int, generator: torch.Generator) -> Any:
        if self.declared("example") is None and self.replaces in SIZES:
            return torch.randn(batch, *SIZES[self.replaces][0][1], generator=generator)
        return self.properties["example"](batch, generator)

    def both(self, arguments: tuple[Any, ...]) -> tuple[nn.Module, nn.Module]:
        """Return the layer and the one that it replaces, built from the same positional arguments."""
        torch.manual_seed(0)
        try:
            layer = self.target(*arguments, **self.options)
        except Exception as error:
            raise ContractFailure(f"the arguments {arguments} of {self.replaces} raise {error!r}") from error
        return layer.eval(), getattr(nn, self.replaces)(*arguments).eval()


contract = Contract(LayerSubject, MODULE_CHECKS)


@contract.check(
    "arguments", "it takes the positional arguments of the layer that it replaces", declares("replaces")
)
def _arguments(subject: LayerSubject) -> None:
    for arguments, _ in subject.comparisons():
        subject.both(arguments)


@contract.check(
    "shapes", "its outputs have the shapes that the layer which it replaces gives", declares("replaces")
)
def _shapes(subject: LayerSubject) -> None:
    for arguments, inputs in subject.comparisons():
        own, torchs = (_shapes_of(evaluate(layer, inputs)) for layer in subject.both(arguments))
        expect(own == torchs, f"with the arguments {arguments} the output has shape {own}, not {torchs}")


def _shapes_of(outputs: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(output.shape) for output in outputs]


@contract.check("in a sequence", "inside nn.Sequential it gives what it gives alone, and is saved with it")
def _in_a_sequence(subject: LayerSubject) -> None:
    inputs = subject.inputs()
    if len(inputs) > 1:
        return
    layer = subject.build().eval()
    alone = evaluate(layer, inputs)
    sequence = nn.Sequential(nn.Identity(), layer).eval()
    expect_close(evaluate(sequence, inputs), alone, 0.0, "outputs inside nn.Sequential differ")
    missing = {f"1.{name}" for name in layer.state_dict()} ^ set(sequence.state_dict())
    expect(not missing, f"the state_dict of the sequence lacks or adds {sorted(missing)}")


@contract.check(
    "wrong sizes",
    "an input with another number of features or channels is refused with an error",
    when=lambda properties: properties.get("replaces") in SIZES and properties.get("example") is None,
)
def _wrong_sizes(subject: LayerSubject) -> None:
    inputs = subject.inputs()
    replaced = getattr(nn, subject.replaces)(*subject.arguments()[0])
    axis = -1 if subject.replaces in ("Linear", "LayerNorm", "RMSNorm") else 1
    wrong = map_floating(lambda t: torch.cat([t, t.narrow(axis, 0, 1)], dim=axis), inputs)
    try:
        call(replaced.eval(), wrong)
    except Exception as error:  # so torch's own layer refuses it, and ours has to
        torchs = error
    else:
        return
    try:
        outputs = evaluate(subject.build(), wrong)
    except Exception:
        return
    raise ContractFailure(
        f"an input of shape {tuple(wrong[0].shape)} gave an output of shape {tuple(outputs[0].shape)}, "
        f"where torch says {str(torchs).splitlines()[0]}"
    )

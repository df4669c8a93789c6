"""How the contracts of activations, layers, mixers and models build and call an nn.Module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.contracts._check import ContractFailure, expect
from workingpapers.contracts._subject import Subject
from workingpapers.contracts._tensors import cast, floating, rows, tensors
from workingpapers.errors import WorkingPapersError


class ModuleSubject(Subject):
    """A component that is an nn.Module; kinds say how its arguments and its inputs look."""

    odd_batches: tuple[int, ...] = (63, 1000)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if isinstance(self.target, nn.Module):
            raise WorkingPapersError(
                f"the contract builds its own instances: give the class {self.name}, or a function that builds "
                "one, instead of an instance"
            )

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the small instance that the checks build."""
        return (), dict(self.options)

    def example(self, batch: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Return the inputs of `forward` for `batch` examples, in float32."""
        raise NotImplementedError

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
        """Return a fresh instance whose random weights follow `seed`, with some options changed."""
        args, options = self.arguments()
        torch.manual_seed(seed)
        module = self.target(*args, **{**options, **changes})
        if not isinstance(module, nn.Module):
            raise ContractFailure(f"building it gives a {type(module).__name__}, which is no nn.Module")
        return module.to(dtype)

    def shaken(self, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
        """Return an instance in evaluation mode whose weights are moved a little, off zeros and ties."""
        module = self.build(dtype=dtype, **changes).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.05 * noise.to(dtype))
        return module

    def inputs(self, batch: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Return inputs for `batch` examples that follow `seed`."""
        return tuple(cast(_as_tuple(self.example(batch, torch.Generator().manual_seed(seed))), dtype))


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    inputs = getattr(inputs, "inputs", inputs)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def batched(properties: Any) -> bool:
    """Whether the first dimension of inputs and outputs is the batch (the default)."""
    return bool(properties.get("batched", True))


def call(module: Callable[..., Any], inputs: tuple[Any, ...], seed: int = 0) -> list[Tensor]:
    """Return the tensors that the module gives, with the global generator seeded before."""
    torch.manual_seed(seed)
    found = tensors(module(*inputs))
    expect(bool(found), "the output holds no tensor")
    return found


def evaluate(module: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> list[Tensor]:
    """Return the tensors that the module gives in evaluation mode, without gradients."""
    with torch.no_grad():
        return [output.clone() for output in call(module.eval(), inputs, seed)]


def train_one_step(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Take one small gradient step in training mode, so that running state leaves its initial value."""
    outputs = call(module.train(), inputs)
    parameters = [p for p in module.parameters() if p.requires_grad]
    loss = sum((output.square().mean() for output in floating(outputs)), torch.zeros(()))
    if not parameters or not loss.requires_grad:
        return
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                parameter.sub_(1e-2 * slope.clamp(-1, 1))


def per_example(inputs: tuple[Any, ...], batch: int, start: int, stop: int) -> tuple[Any, ...]:
    """Return the inputs of the examples from `start` to `stop` out of a batch."""
    return tuple(rows(inputs, batch, slice(start, stop)))

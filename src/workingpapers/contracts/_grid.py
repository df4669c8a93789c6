"""Activations under contract: their example inputs, the grid that they are probed on, and comparisons there."""

from typing import Any

import torch
from torch import Tensor

from workingpapers.contracts._module import ModuleSubject, call, evaluate

FINE = torch.linspace(-12.0, 12.0, 9601, dtype=torch.float64) + 1.23456e-4  # off the usual kinks
FAR = torch.logspace(-8, 4, 97, dtype=torch.float64)
GRID = torch.cat([-FAR, torch.zeros(1, dtype=torch.float64), FAR, FINE]).sort().values  # -1e4 to 1e4
PASSES = 1e-9  # what rounding may do to a property, relative to the numbers involved


class ActivationSubject(ModuleSubject):
    """An activation; its examples have seven features, or eight where outputs depend on several inputs.

    On a grid every element of one example takes the same value, so that activations with a parameter per
    feature are checked in each of them.
    """

    @property
    def elementwise(self) -> bool:
        """Whether each output depends on its own input alone, as declared."""
        return bool(self.declared("elementwise", True))

    def example(self, batch: int, generator: torch.Generator) -> Any:
        if self.declared("example") is not None:
            return self.properties["example"](batch, generator)
        return 2.0 * torch.randn(batch, 7 if self.elementwise else 8, generator=generator)

    def points(self, scale: float = 1.0) -> Tensor:
        """Return inputs to probe a property at: the grid, one value per row, or random rows at many scales."""
        shape = self.inputs(1)[0].shape[1:]
        if self.elementwise:
            return in_every_feature(scale * GRID, shape)
        generator = torch.Generator().manual_seed(5)
        rows = torch.randn(200, *shape, generator=generator, dtype=torch.float64)
        sizes = scale * torch.logspace(-4, 3, 200, dtype=torch.float64)
        return torch.cat([torch.zeros_like(rows[:1]), in_every_feature(sizes, shape) * rows])

    def values(self, x: Tensor) -> Tensor:
        """Return the outputs for `x`, each row flattened."""
        return evaluate(self.build(dtype=x.dtype), (x,))[0].reshape(len(x), -1)

    def slopes(self, x: Tensor) -> Tensor:
        """Return the derivative of each output by its own input, each row flattened; elementwise only."""
        if self.declared("surrogate_gradient"):
            return (self.values(x + 1e-7) - self.values(x - 1e-7)) / 2e-7
        x = x.detach().clone().requires_grad_()
        slope = torch.autograd.grad(call(self.build(dtype=x.dtype).eval(), (x,))[0].sum(), x)[0]
        return slope.reshape(len(x), -1)


def in_every_feature(x: Tensor, shape: torch.Size) -> Tensor:
    """Return one example of the shape per number in `x`, filled with it."""
    return x.reshape(-1, *(1 for _ in shape)).expand(-1, *shape).contiguous()


def difference(x: Tensor, found: Tensor, wanted: Tensor, what: str, tolerance: float = PASSES) -> str | None:
    """Describe where `found` is furthest from `wanted`, relative to both, if it is beyond the tolerance."""
    x, found, wanted = (t.reshape(len(x), -1) for t in (x, found, wanted))
    gap = torch.nan_to_num((found - wanted).abs() / (1e-3 + found.abs() + wanted.abs()), nan=torch.inf)
    place = int(gap.argmax())
    if float(gap.flatten()[place]) <= tolerance:
        return None
    at, one, other = (float(t.flatten()[place]) for t in (x, found, wanted))
    return f"at x = {at:.6g} {what} is {one:.6g}, not {other:.6g}"

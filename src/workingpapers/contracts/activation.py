"""The contract of activations: finite everywhere, true gradients, and each declared property on dense grids."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from workingpapers.contracts import _properties
from workingpapers.contracts._check import Contract, ContractFailure, expect, expect_none
from workingpapers.contracts._grid import PASSES, ActivationSubject, difference, in_every_feature
from workingpapers.contracts._module import call, evaluate
from workingpapers.contracts._shared import MODULE_CHECKS
from workingpapers.contracts._tensors import NAMES

contract = Contract(ActivationSubject, [*MODULE_CHECKS, *_properties.contract.checks])


def _elementwise(properties: Any) -> bool:
    return bool(properties.get("elementwise", True))


@contract.check("same shape", "the output has the shape of the input, whatever that is")
def _same_shape(subject: ActivationSubject) -> None:
    module = subject.build().eval()
    inputs = [subject.inputs()[0]]
    if (
        subject.elementwise
        and subject.declared("example") is None
        and all(p.numel() == 1 for p in module.parameters())
    ):
        inputs += [torch.randn(shape) for shape in ((), (5,), (2, 3, 4, 5), (3, 0))]
    for x in inputs:
        shape = tuple(module(x).shape)
        expect(shape == x.shape, f"an input of shape {tuple(x.shape)} gives an output of shape {shape}")


@contract.check(
    "finite at extremes", "values and gradients are finite from -1e4 to 1e4 and at 0, in float32 and bfloat16"
)
def _finite_at_extremes(subject: ActivationSubject) -> None:
    points = (0.0, 1e-30, 1e-4, 1.0, 88.0, 1e2, 1e3, 1e4)
    for dtype in (torch.float32, torch.bfloat16):
        for point in [sign * p for p in points for sign in (1, -1)]:
            x = torch.full_like(subject.inputs(2)[0], point, dtype=dtype).requires_grad_()
            (y,) = call(subject.build(dtype=dtype).eval(), (x,))
            (slope,) = torch.autograd.grad(y.sum(), x)
            for what, found in (("value", y), ("gradient", slope)):
                bad = found[~torch.isfinite(found)].tolist()
                expect_none(bad, f"the {what} at {point:g} in {NAMES[dtype]} is {{}}")


@contract.check(
    "slopes on a grid",
    "the gradient equals finite differences at every point from -20 to 20",
    when=lambda properties: _elementwise(properties) and not properties.get("surrogate_gradient"),
)
def _slopes_on_a_grid(subject: ActivationSubject) -> None:
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64) + 1.23456e-4
    x = in_every_feature(grid, subject.points().shape[1:])
    step = 1e-6
    numeric = (subject.values(x + step) - subject.values(x - step)) / (2 * step)
    found = subject.slopes(x)
    rounding = 1e-8 * subject.values(x).abs() + 1e-7  # what subtracting two values loses, over the step
    close = (found - numeric).abs() <= rounding
    if broken := difference(x, found, torch.where(close, found, numeric), "the gradient", 1e-5):
        raise ContractFailure(broken)


@contract.check("double backward", "gradients of the gradient equal finite differences in float64")
def _double_backward(subject: ActivationSubject) -> None:
    module = subject.shaken()
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def function(x: Tensor, *parameters: Tensor) -> Any:
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        torch.manual_seed(0)
        return functional_call(module, {**state, **dict(zip(named, parameters, strict=True))}, (x,))

    x = subject.inputs(2, dtype=torch.float64)[0].requires_grad_()
    sources = [x, *(p.detach().clone().requires_grad_() for p in named.values())]
    try:
        torch.autograd.gradgradcheck(function, sources, fast_mode=True)
    except GradcheckError as error:
        line = " ".join(str(error).split())
        raise ContractFailure(f"the second derivative is off: {line[:150]}") from None


@contract.check(
    "elementwise",
    "each output depends on its own input alone if and only if elementwise is declared (the default)",
)
def _elementwise_dependence(subject: ActivationSubject) -> None:
    module = subject.shaken()
    inputs, others = (subject.inputs(4, seed=s, dtype=torch.float64)[0] for s in (0, 1))
    kept = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    one, other = (evaluate(module, (x,))[0] for x in (inputs, torch.where(kept, inputs, others)))
    gap = float((one - other)[kept].abs().max())
    if subject.elementwise:
        expect(gap <= PASSES, f"outputs move by {gap:.3g} when only other inputs change")
    else:
        expect(gap > PASSES, "elementwise=False is declared, but no output moves with other inputs")

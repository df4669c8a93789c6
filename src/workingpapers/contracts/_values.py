"""Checks of what an nn.Module computes: gradients, dtypes, sizes, extremes and randomness."""

import torch
from torch import Tensor
from torch.func import functional_call

from workingpapers.contracts._check import Contract, expect, expect_none, is_true
from workingpapers.contracts._module import ModuleSubject, call, evaluate
from workingpapers.contracts._tensors import (
    NAMES,
    cast,
    distance,
    expect_close,
    expect_finite,
    floating,
    gradients,
    map_floating,
    map_tensors,
    tensors,
    weighted_sum,
    with_gradients,
)

contract = Contract(ModuleSubject)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float64: 1e-9}


def _derivatives(subject: ModuleSubject, training: bool) -> list[tuple[str, float, float, float]]:
    """Return (source, by backward, by central difference, scale) along one direction for each source."""
    module = subject.shaken().train(training)
    inputs = with_gradients(subject.inputs(dtype=torch.float64))
    own = {f"parameter {n}": p for n, p in module.named_parameters() if p.requires_grad}
    sources = {**{f"input {i}": t for i, t in enumerate(floating(inputs))}, **own}
    if not sources:
        return []

    def loss() -> Tensor:
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        torch.manual_seed(0)
        return weighted_sum(functional_call(module, state, inputs))

    def shifted(source: Tensor, step: Tensor) -> float:
        with torch.no_grad():
            source.add_(step)
            value = float(loss())
            source.sub_(step)
        return value

    found = []
    slopes = gradients(loss(), list(sources.values()))
    generator = torch.Generator().manual_seed(11)
    for (name, source), slope in zip(sources.items(), slopes, strict=True):
        direction = torch.randn(source.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        numeric = (shifted(source, step * direction) - shifted(source, -step * direction)) / (2 * step)
        product = (slope * direction).double()
        found.append((name, float(product.sum()), numeric, float(product.norm())))
    return found


def _wrong_derivatives(subject: ModuleSubject) -> list[str]:
    wrong = []
    for training in (False, True):
        for name, backward, numeric, scale in _derivatives(subject, training):
            if not abs(backward - numeric) <= 1e-4 * (abs(numeric) + scale) + 1e-6:
                wrong.append(
                    f"in {'training' if training else 'evaluation'} mode the gradient of {name} along "
                    f"a random direction is {backward:.6g}, by finite differences {numeric:.6g}"
                )
    return wrong


@contract.check(
    "gradients",
    "gradients of inputs and parameters equal finite differences in float64",
    when=lambda properties: not properties.get("surrogate_gradient"),
)
def _gradients(subject: ModuleSubject) -> None:
    expect_none(_wrong_derivatives(subject), "{}")


@contract.check(
    "surrogate gradient",
    "the backward pass is, on purpose, not the derivative",
    when=is_true("surrogate_gradient", default=False),
)
def _surrogate_gradient(subject: ModuleSubject) -> None:
    expect(bool(_wrong_derivatives(subject)), "every gradient equals its finite difference")


@contract.check(
    "gradients reach parameters", "every parameter that asks for a gradient gets one that is not zero"
)
def _gradients_reach_parameters(subject: ModuleSubject) -> None:
    module = subject.shaken()
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        return
    slopes = gradients(
        weighted_sum(call(module, subject.inputs(8, dtype=torch.float64))), list(named.values())
    )
    for name, slope in zip(named, slopes, strict=True):
        expect(bool(slope.any()), f"the gradient of {name} is zero everywhere")


@contract.check(
    "dtypes", "float32, bfloat16 and float64 come out as they went in, close to the float64 result"
)
def _dtypes(subject: ModuleSubject) -> None:
    for dtype, tolerance in TOLERANCE.items():
        module, inputs = subject.build(dtype=dtype), subject.inputs(dtype=dtype)
        outputs = evaluate(module, inputs)
        truth = evaluate(module.double(), cast(inputs, torch.float64))
        for output, wanted in zip(outputs, truth, strict=True):
            if wanted.is_floating_point():
                expect(
                    output.dtype == dtype, f"{NAMES[dtype]} came out as {output.dtype}".replace("torch.", "")
                )
                gap = distance(output, wanted)
                expect(
                    gap <= tolerance,
                    f"in {NAMES[dtype]} the outputs are {gap:.2g} off in relative norm, "
                    f"at most {tolerance:.2g} is allowed",
                )


@contract.check("large inputs", "inputs a thousand times larger give finite outputs and gradients")
def _large_inputs(subject: ModuleSubject) -> None:
    module = subject.build().eval()
    inputs = with_gradients(map_floating(lambda t: 1e3 * t, subject.inputs()))
    outputs = call(module, inputs)
    expect_finite(outputs, "the outputs")
    sources = [*floating(inputs), *(p for p in module.parameters() if p.requires_grad)]
    if sources:
        expect_finite(gradients(weighted_sum(outputs), sources), "the gradients")


@contract.check(
    "strided inputs",
    "inputs that are not contiguous give what contiguous ones give",
    when=is_true("deterministic"),
)
def _strided_inputs(subject: ModuleSubject) -> None:
    module, inputs = subject.build().eval(), subject.inputs()
    wanted = evaluate(module, inputs)
    every_other = map_tensors(lambda t: torch.stack([t, t], dim=-1).select(-1, 0), inputs)
    transposed = map_tensors(
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim else t, inputs
    )
    for how, strided in (("every other element", every_other), ("transposed", transposed)):
        expect_close(evaluate(module, strided), wanted, 1e-5, f"outputs for strided inputs ({how}) differ")


@contract.check("inputs untouched", "forward leaves its inputs as they were")
def _inputs_untouched(subject: ModuleSubject) -> None:
    for training in (False, True):
        inputs = subject.inputs()
        before = map_tensors(torch.clone, inputs)
        with torch.no_grad():
            call(subject.build().train(training), inputs)
        expect(
            all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(inputs), strict=True)),
            f"forward changed its input in place in {'training' if training else 'evaluation'} mode",
        )

"""Checks of how an nn.Module treats the batch: empty, of one, of odd size, and example by example."""

from typing import Any

import torch
from torch import Tensor

from workingpapers.contracts._check import Contract, expect
from workingpapers.contracts._module import ModuleSubject, batched, call, evaluate, per_example
from workingpapers.contracts._tensors import (
    distance,
    expect_close,
    expect_finite,
    floating,
    gradients,
    map_tensors,
    tensors,
    weighted_sum,
    with_gradients,
)

contract = Contract(ModuleSubject)


@contract.check("empty batch", "a batch of no examples goes through, forward and backward", when=batched)
def _empty_batch(subject: ModuleSubject) -> None:
    module = subject.build().eval()
    inputs = with_gradients(per_example(subject.inputs(2), 2, 0, 0))
    outputs, usual = call(module, inputs), evaluate(module, subject.inputs(2))
    for output, wanted in zip(outputs, usual, strict=True):
        if wanted.ndim and wanted.shape[0] == 2:
            expect(output.shape == (0, *wanted.shape[1:]), f"the output has shape {tuple(output.shape)}")
    if sources := floating(inputs):
        gradients(weighted_sum(outputs), sources)


@contract.check("batch of one", "a single example goes through and keeps the batch dimension", when=batched)
def _batch_of_one(subject: ModuleSubject) -> None:
    module = subject.build().eval()
    outputs = evaluate(module, per_example(subject.inputs(4), 4, 0, 1))
    for output, wanted in zip(outputs, evaluate(module, subject.inputs(4)), strict=True):
        if wanted.ndim and wanted.shape[0] == 4:
            expect(
                output.shape == (1, *wanted.shape[1:]),
                f"four examples give the shape {tuple(wanted.shape)}, one gives {tuple(output.shape)}",
            )


@contract.check("odd sizes", "batches of odd size give what their two halves give", when=batched)
def _odd_sizes(subject: ModuleSubject) -> None:
    independent = subject.declared("batch_independent", True) and subject.declared("deterministic", True)
    module = subject.build().eval()
    for batch in subject.odd_batches:
        inputs, cut = subject.inputs(batch), batch // 2
        whole = evaluate(module, inputs)
        expect_finite(whole, f"the outputs for {batch} examples")
        if independent:
            first = evaluate(module, per_example(inputs, batch, 0, cut))
            second = evaluate(module, per_example(inputs, batch, cut, batch))
            for output, one, other in zip(whole, first, second, strict=True):
                if output.ndim and output.shape[0] == batch:
                    expect_close(
                        output,
                        torch.cat([one, other]),
                        1e-4,
                        f"{batch} examples at once differ from the same in two parts",
                    )


@contract.check(
    "batch independence",
    "in evaluation mode the other examples of the batch change an example's "
    "output if and only if batch_independent=False is declared",
    when=batched,
)
def _batch_independence(subject: ModuleSubject) -> None:
    module = subject.shaken()
    inputs, others = subject.inputs(4, dtype=torch.float64), subject.inputs(4, seed=1, dtype=torch.float64)
    mixed = _first_of(inputs, others)
    pairs = zip(evaluate(module, inputs), evaluate(module, mixed), strict=True)
    gap = max(distance(one[:1], other[:1]) for one, other in pairs if one.ndim and one.shape[0] == 4)
    if subject.declared("batch_independent", True):
        expect(gap <= 1e-9, f"the first example's output moves by {gap:.2g} with the other examples")
    else:
        expect(gap > 1e-9, "batch_independent=False is declared, but no output moves with the other examples")


def _first_of(inputs: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `inputs` with all examples but the first taken from `others`."""
    replacing = iter(tensors(others))

    def mix(tensor: Tensor) -> Tensor:
        other = next(replacing)
        return torch.cat([tensor[:1], other[1:]]) if tensor.ndim and tensor.shape[0] == 4 else tensor

    return tuple(map_tensors(mix, inputs))

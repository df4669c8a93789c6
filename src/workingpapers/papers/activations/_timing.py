"""What an activation costs: the time of forward and backward passes, all candidates taking turns."""

import statistics
import timeit
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def pass_seconds(
    functions: Mapping[str, Callable[[Tensor], Tensor]], numel: int, *, repeats: int = 20, seed: int = 0
) -> dict[str, float]:
    """Return by name the median seconds of a forward and backward pass over `numel` standard normal float32s.

    One pass of each goes before, in which kernels are made.  The functions take turns, so that a busy machine
    is as hard on all of them.
    """
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    weight = torch.ones_like(x)
    runs = [lambda f=f: torch.autograd.grad(f(x), x, weight) for f in functions.values()]
    rounds = [[timeit.timeit(run, number=1) for run in runs] for _ in range(repeats + 1)][1:]
    medians = (statistics.median(taken) for taken in zip(*rounds, strict=True))
    return dict(zip(functions, medians, strict=True))
